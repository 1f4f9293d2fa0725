"""DARS (arXiv 2508.13755): hard prompts are answered again, until they weigh as much as medium ones.

on a laptop CPU, minutes:               python -m recipes.dars
8 to 32 answers, equal treatment:       python -m recipes.dars 7b --dataset my.jsonl
8 to 64, weighted by hardness:          python -m recipes.dars 7b-hw --dataset my.jsonl
the same with large batches:            python -m recipes.dars 7b-breadth --dataset my.jsonl

The published models read text (Qwen2.5-Math on OpenR1, 45 thousand problems); here it is a vision-language model on
your rows. Departure: the published large batches are used for two epochs of updates, here for one.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_centered, group_normalized
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.rollouts.dars import DARS, DARSRollout

HARD = {"schedule": "HW", "most": 64}
LARGE = {
    "run": {"prompts_per_step": 3072, "updates_per_step": 1},
    "optim": {"lr": 5e-6},
}
PRESETS = {
    EMBEDDED: miniature(dars={"most": 32}),
    "7b": Preset("equal treatment: 8 answers, at most 32", 7.0),
    "7b-hw": Preset("weighted by hardness: 8 answers, at most 64", dars=HARD),
    "7b-breadth": Preset("equal treatment, 3,072 prompts in one update", **LARGE),
    "7b-breadth-hw": Preset(
        "weighted by hardness, 3,072 prompts in one update", dars=HARD, **LARGE
    ),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="answer-open"),
    dars: DARS = DARS(schedule="ET", most=32),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=3072),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="dars", prompts_per_step=128, updates_per_step=2, epochs=1),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with more answers to hard prompts.

    Args:
        sampling: How answers are sampled in both stages; group_size is that of the first.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    trainer = Trainer(
        open_policy(model, load, lora, run),
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=DARSRollout(dars=dars),
        # The weight of a prompt follows from the estimator, so both are chosen together.
        estimator=group_normalized if dars.z_scored else group_centered,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    watched = ("reward/accuracy", "dars/hard_prompts", "dars/further_answers")
    fit(trainer, watch=watched)


if __name__ == "__main__":
    launch(main, PRESETS)
