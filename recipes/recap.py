"""RECAP (arXiv 2510.21978): general data is replayed beside the task, and what still moves weighs more.

on a laptop CPU, minutes:              python -m recipes.recap
five data sets, rewards alone:         python -m recipes.recap 3b --dataset NAME=FILE ... --dataset NAME=FILE ...
reasoning beside boxes and labels:     python -m recipes.recap hybrid-7b --dataset ...
the other reading of convergence:      … --recap.convergence inverse
mixed, but not weighted (GRPO):        … --recap.window 0

What stands behind --dataset is explained in shared/domains.py; learn=next-token makes a data set's labels its answers.
Each part of the reward that weighs anything is an objective with an advantage of its own, so that the size of its
weight has no say; those of weight 0 are logged. Windows are a part of checkpoints.

Departures beside those of the objective (mmrl/objectives/recap.py): data sets are drawn by weight, uniformly unless
--mix.weights says otherwise, as the published loader does; the tokens of answers and the warm-up are ours.
"""

from dataclasses import replace

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.objectives.recap import RECAP
from mmrl.recipes.shared.domains import (
    Mix,
    labelled,
    objectives_of,
    open_domains,
    read_domains,
    rewards_of,
    weights_of,
)
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_policy
from mmrl.recipes.shared.paying import RewardWeights
from mmrl.rollouts.recap import LabelsOfSome

DRAWN = """\
shapes='drawn:lookup?cells=2&size_px=32'
gaps='drawn:lookup?cells=2&size_px=32&ask_empty=1'
counts='drawn:counting?cells=2&size_px=32' learn=next-token"""
REWARDED = """\
coco=coco.jsonl style=objects reward=iou reward=format
lisa=lisa.jsonl style=objects reward=iou reward=format
geoqav=geoqav.jsonl style=choice
sat=sat.jsonl
scienceqa=scienceqa.jsonl style=choice"""
HYBRID = """\
reasoning=thinklite.jsonl
boxes=refcoco.jsonl style=tag reward=iou reward=format
text=ocr.jsonl style=plain learn=next-token"""
PRESETS = {
    EMBEDDED: miniature(dataset=DRAWN, recap={"window": 5}),
    "3b": Preset("five data sets, rewards alone", 3.0),
    "hybrid-7b": Preset(
        "reasoning, boxes, and labels token by token",
        7.0,
        model="Qwen/Qwen2.5-VL-7B-Instruct",
        dataset=HYBRID,
        mix={"ends": "never"},
        run={"steps": 500},
    ),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-3B-Instruct",
    dataset: str = REWARDED,
    data: Data = Data(style="answer-open"),
    mix: Mix = Mix(ends="first", form_first=False),
    recap: RECAP = RECAP(window=10, temperature=5.0, convergence="paper"),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=1.0),
    grpo: GRPO = GRPO(kl=0.0, clip_low=0.2, clip_high=0.2),
    sampling: Sampling = Sampling(group_size=4, temperature=1.0, max_tokens=1024),
    optim: Optim = Optim(lr=1e-6, schedule="linear", warmup_share=0.1),
    run: Run = Run(name="recap", prompts_per_step=16, epochs=1),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_pixels=1_003_520),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model that keeps what it could do.

    Args:
        dataset: NAME=PLACE and words such as style=choice, once for each data set (shared/domains.py).
        mix: How often each data set is drawn.
        recap: Weights of the objectives.
        reward: What is paid where a data set does not say reward= itself.
    """
    domains = read_domains(dataset, data, reward)
    prompts, heldout = open_domains(domains, mix, run.seed)
    policy = open_policy(model, load, lora, run)
    encode, encoded = policy.processing.encode_answer, policy.encode
    names = objectives_of(domains, recap.objectives)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=rewards_of(domains, mix),
        estimator=group_normalized,
        objectives=[
            replace(recap, objectives=names, labels=recap.labels or bool(labelled(domains)))
        ],
        rollout=LabelsOfSome(labelled(domains), encode, lambda prompt: encoded(prompt).ids),
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
        settings={"mix": mix, "domains": weights_of(domains, mix)},
    )
    fit(trainer, watch=tuple(f"domain/{domain.name}/reward" for domain in domains))


if __name__ == "__main__":
    launch(main, PRESETS)
