"""SEELE (arXiv 2509.06923): answers begin with as much of a right solution as it takes for half of them to be right.

on a laptop CPU, minutes:       python -m recipes.seele
8 answers in 4 rounds:          python -m recipes.seele 7b --dataset my.jsonl
32 answers in 4 rounds:         python -m recipes.seele 7b-32 --dataset my.jsonl
your own column:                python -m recipes.seele 7b --dataset my.jsonl --solution reasoning
no hints (Dr. GRPO):            python -m recipes.seele 7b --dataset my.jsonl --seele.most 0

Rows need a worked solution in the column `solution`, and ids of their own; rows without are plain Dr. GRPO. On drawn
look-ups the solution is the right answer itself. The published models read text; here it is a vision-language model on
your rows. The paper's code could not be had: which numbers are ours, `mmrl/objectives/seele.py` says.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.losses.advantages import group_centered
from mmrl.objectives.seele import SEELE
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.rollouts.seele import SEELERollout

PRESETS = {
    EMBEDDED: miniature(solution="target"),
    "7b": Preset("8 answers in 4 rounds of two", 7.0),
    "7b-32": Preset("32 answers in 4 rounds of eight", 7.0, sampling={"group_size": 32}),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="answer-open"),
    seele: SEELE = SEELE(rounds=4, start=0.5, target=0.5, most=0.95, weight=0.1),
    solution: str = "solution",
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2),
    sampling: Sampling = Sampling(group_size=8, temperature=1.0, max_tokens=4096),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2, decay_all=True),
    run: Run = Run(name="seele", prompts_per_step=128, updates_per_step=2, epochs=5),
    monitor: Monitor = Monitor(),
    load: Load = Load(min_pixels=200_704, max_pixels=1_003_520, max_prompt_tokens=4096),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model with hints that are fitted to what it can do.

    Args:
        solution: Column that holds the worked solution.
        sampling: group_size counts the answers of all rounds, max_tokens the hint as well.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    rounds = SEELERollout(seele=seele, processing=policy.processing, column=solution)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=reward.rewards(style_of(data.style)),
        rollout=rounds,
        estimator=group_centered,
        grpo=grpo,
        objectives=[seele],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/accuracy", "seele/missed", "seele/hints"))


if __name__ == "__main__":
    launch(main, PRESETS)
