"""MR-RLVR (arXiv 2511.17473): first fill and order worked solutions, then RL on outcomes.

on a laptop CPU, minutes:             python -m recipes.mr_rlvr
Qwen2.5-VL-3B:                        python -m recipes.mr_rlvr 3b --dataset ROWS
only the second stage (plain RLVR):   python -m recipes.mr_rlvr 3b --dataset ROWS --solutions.share 0

Rows need a worked solution besides question and answer, in the column `solution`. The first stage asks about it: half
of the questions hide numbers and right-hand sides, half shuffle its steps, and an order that is partly right earns a
part. It is a run of its own in the folder `stage1` of the run. The second stage is GRPO for the right answer, from the
model of the first, with the same tags.

Departures
1. No code is public. The two tasks and the two stages are the paper's; lengths, rewards and optimizer's numbers ours.
2. The paper trains models of language alone (Qwen2.5-3B) and takes proofs into the first stage; here it is the
   vision-language model of that size, and both stages take the same rows, with their pictures (rows without a usable
   solution are left out of the first).
3. By default only the order as written is right; `--solutions.order needs` takes any in which letters come before use.
The embedded preset asks about what each cell of a drawn picture holds, then for one cell.
"""

from dataclasses import replace

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer
from mmrl.data.pretext.prompts import pretext_correct, pretext_form, pretext_reward
from mmrl.losses.advantages import group_normalized
from mmrl.recipes.shared.clip_stages import stage_run
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of
from mmrl.recipes.shared.solution_data import (
    Solutions,
    open_solutions,
    solution_model,
)
from mmrl.training.going_on import refuse_branching
from mmrl.training.run import planned_steps

PRESETS = {
    EMBEDDED: miniature(
        solutions={"column": "observed", "share": 0.4, "bare": True},
        reward=OURS,
        sampling={"max_tokens": 32},
        run={"steps": 60},
    ),
    "3b": Preset("Qwen2.5-VL-3B: a fifth of the steps on solutions, then on answers", 3.0),
    "7b": Preset("Qwen2.5-VL-7B (ours)", 7.0, model="Qwen/Qwen2.5-VL-7B-Instruct"),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-3B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="answer"),
    solutions: Solutions = Solutions(),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.1),
    grpo: GRPO = GRPO(kl=0.0),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=2048),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="mr_rlvr", prompts_per_step=128, steps=200),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on worked solutions, then on answers."""
    # Old output goes now: the first stage writes into the folder before the second looks at it.
    run = stage_run(run)
    refuse_branching(
        run, "the second stage begins with the model of the first, in the run's own folder"
    )
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(solution_model(model), load, lora, run)
    total = planned_steps(run, prompts)
    # At least one step is left for the second stage, however short the run.
    first_steps = min(round(solutions.share * total), total - 1)
    common = {"grpo": grpo, "sampling": sampling, "optim": optim, "monitor": monitor}
    if first_steps:
        first = replace(run, output=run.folder / "stage1", steps=first_steps)
        Trainer(
            policy,
            prompts=open_solutions(dataset, data, solutions, run.seed),
            rewards=Rewards(
                solution=pretext_reward,
                format=(reward.format, pretext_form),
                accuracy=(0.0, pretext_correct),
            ),
            estimator=group_normalized,
            run=first,
            settings={"solutions": solutions},
            **common,
        ).fit()
        # Read again from its folder, so that a resumed run and one that just trained go on from the same bytes.
        policy = open_policy(str(first.folder / "model"), load, lora, run)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        estimator=group_normalized,
        run=replace(run, steps=total - first_steps),
        settings={"solutions": solutions},
        **common,
    )
    fit(trainer, watch=("reward/accuracy", "reward/format"))


if __name__ == "__main__":
    launch(main, PRESETS)
