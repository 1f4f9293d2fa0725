"""GHPO (arXiv 2507.10628): groups that fail are asked again with the beginning of a right solution.

on a laptop CPU, minutes:       python -m recipes.ghpo
8 answers, hints of 25 to 75 %: python -m recipes.ghpo 7b --dataset my.jsonl
your own column:                python -m recipes.ghpo 7b --dataset my.jsonl --solution reasoning

Rows need a worked solution in the column `solution`; those without are plain GRPO. On drawn look-ups the solution says
what each cell holds. The published model reads text (Qwen2.5-Math-7B on problems with solutions); here it is a
vision-language model on your rows.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.recipes.shared.solution_data import OBSERVED, Observed
from mmrl.rollouts.ghpo import GHPO, GHPORollout

PRESETS = {
    # Few prompts and answers a step, so that many groups fail.
    EMBEDDED: miniature(solution=OBSERVED, sampling={"group_size": 4}),
    "7b": Preset("8 answers; 25, 50 and 75 % of the solution where all fail", 7.0),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="answer-open"),
    ghpo: GHPO = GHPO(shares=(0.25, 0.5, 0.75)),
    solution: str = "solution",
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.5),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="ghpo", prompts_per_step=128, updates_per_step=1, epochs=5),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with hints where all of a group's answers are wrong.

    Args:
        solution: Column that holds the worked solution.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    if solution == OBSERVED:  # drawn rows say what stands in the cells, not how to solve them
        prompts = Observed(prompts)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=GHPORollout(ghpo=ghpo, column=solution, check=policy.encode),
        estimator=group_normalized,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy", "ghpo/failed_groups", "ghpo/unsolved_groups"))


if __name__ == "__main__":
    launch(main, PRESETS)
