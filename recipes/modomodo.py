"""MoDoMoDo (arXiv 2505.24871): several data sets, each with its own rewards, mixed by weights that a fit proposes.

on a laptop CPU, minutes:       python -m recipes.modomodo
your own data sets:             python -m recipes.modomodo 2b --dataset charts=charts.parquet style=choice \\
                                    --dataset boxes=boxes.parquet style=objects reward=iou=2 reward=format \\
                                    --dataset photos=photos/ --mix.weights charts=2 boxes=1 photos=1
the next weights, from runs:    mmrl mixture runs/one runs/two runs/three ...

What stands behind --dataset is explained in shared/domains.py. Each step draws a data set by its weight and a row of it
that did not come before, and ends where one is used up; `--mix.ends never` begins small ones again. A weight of 0 is
evaluated and never drawn. Accuracy is logged for each data set, in training and evaluation.

Departures
1. The published run stops after 2,000 steps of one device's prompts; here it is one pass, however many steps that is.
2. Published answers are compared by exact equality; here by the rules of each style, or --reward.grader.
3. The order of data sets is drawn for the whole run beforehand; the official loader draws it as it goes.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.domains import (
    Mix,
    open_domains,
    read_domains,
    refuse_labels,
    rewards_of,
    weights_of,
)
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_policy
from mmrl.recipes.shared.paying import RewardWeights

PUBLISHED = """\
coco=coco.jsonl style=objects reward=iou=2 reward=format
lisa=lisa.jsonl style=objects reward=iou=2 reward=format
geoqav=geoqav.jsonl style=choice
sat=sat.jsonl
scienceqa=scienceqa.jsonl style=choice"""
DRAWN = """\
shapes='drawn:lookup?cells=2&size_px=32'
gaps='drawn:lookup?cells=2&size_px=32&ask_empty=1'
counts='drawn:counting?cells=2&size_px=32'"""
PRESETS = {
    EMBEDDED: miniature(dataset=DRAWN),
    "2b": Preset("five data sets alike, the vision tower rests", 2.0),
    "exclude-coco-2b": Preset(
        "without one of them",
        mix={"weights": ("coco=0", "lisa=1", "geoqav=1", "sat=1", "scienceqa=1")},
    ),
}


def main(
    model: str = "Qwen/Qwen2-VL-2B-Instruct",
    dataset: str = PUBLISHED,
    data: Data = Data(style="answer-open"),
    mix: Mix = Mix(ends="first", form_first=True),
    reward: RewardWeights = RewardWeights(accuracy=2.0, format=1.0),
    grpo: GRPO = GRPO(kl=0.04, clip_low=0.2, clip_high=0.2),
    sampling: Sampling = Sampling(group_size=6, temperature=1.0, max_tokens=1024),
    optim: Optim = Optim(lr=1e-6, schedule="linear", warmup_share=0.1),
    run: Run = Run(name="modomodo", prompts_per_step=2, epochs=1),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_pixels=409_600, freeze=("vision",)),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on a mixture of data sets.

    Args:
        dataset: NAME=PLACE and words such as style=choice, once for each data set (shared/domains.py).
        mix: How often each data set is drawn.
        reward: What is paid where a data set does not say reward= itself.
    """
    domains = read_domains(dataset, data, reward)
    refuse_labels(domains, "modomodo")
    prompts, heldout = open_domains(domains, mix, run.seed)
    trainer = Trainer(
        open_policy(model, load, lora, run),
        prompts=prompts,
        heldout=heldout,
        rewards=rewards_of(domains, mix),
        estimator=group_normalized,
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
