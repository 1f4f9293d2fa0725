"""Beyond Variance (arXiv 2602.03452): pairs of a hard question that can be solved and an easy one that can fail.

on a laptop CPU, minutes:                                 python -m recipes.beyond_variance
one pair, GRPO on it, the 7B model:                       python -m recipes.beyond_variance 7b --dataset ROWS
statistics over both questions, failures weigh double:    python -m recipes.beyond_variance pair-7b --dataset ROWS
rare right and rare wrong answers weigh double:           python -m recipes.beyond_variance weighted-7b --dataset ROWS

The first `--pairs.candidates` rows are answered `--pairs.answers` times before the run; both questions of a pair are in
each step. Reconstructed: see mmrl/objectives/beyond_variance.py.
"""

from mmrl import GRPO, LoRA, Monitor, Optim, Run, Sampling, Trainer
from mmrl.objectives.beyond_variance import BeyondVariance
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.pairing import Pairs, paired
from mmrl.recipes.shared.paying import OURS, RewardWeights, style_of
from mmrl.rollouts.choosing import opened

# The tiny model finds nothing easy: the widest band takes what it answers most often.
TINY = {"pairs": {"candidates": 64, "answers": 8, "band": 7, "count": 8}}
SPANNING = {"scope": "pair", "failure": 2.0}
RARE = {"right_on_hard": 2.0, "wrong_on_easy": 2.0}
PRESETS = {
    EMBEDDED: miniature(**TINY, reward=OURS),
    "7b": Preset("one pair, the z-score of each question", 7.0),
    "pair-7b": Preset("statistics over both questions, ours", beyond_variance=SPANNING),
    "weighted-7b": Preset("weights behind the z-score, ours", beyond_variance=RARE),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(),
    beyond_variance: BeyondVariance = BeyondVariance(scope="group", failure=1.0),
    pairs: Pairs = Pairs(candidates=1209, answers=16, band=2, count=1),
    reward: RewardWeights = RewardWeights(accuracy=1.0, format=0.0, grader="math-verify"),
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2),
    sampling: Sampling = Sampling(group_size=16, temperature=1.0, max_tokens=3072),
    optim: Optim = Optim(lr=1e-6, weight_decay=1e-2),
    run: Run = Run(name="beyond_variance", prompts_per_step=2, updates_per_step=1, steps=200),
    monitor: Monitor = Monitor(),
    load: Load = Load(max_prompt_tokens=2048),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model on pairs of a hard and an easy question.

    Args:
        pairs: How the questions are chosen.
    """
    if run.prompts_per_step % 2:
        raise ValueError(
            f"--run.prompts-per-step is {run.prompts_per_step}; it must be even, so that a step holds whole pairs."
        )
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    rewards = reward.rewards(style_of(data.style))
    engine = opened(policy, run.rows_at_once, sampling)
    chosen = paired(prompts, pairs, engine, rewards, sampling, run.seed, policy.encode)
    trainer = Trainer(
        policy,
        prompts=chosen,
        heldout=heldout,
        rewards=rewards,
        engine=engine,
        grpo=grpo,
        objectives=[beyond_variance],
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("beyondvariance/right_on_hard", "beyondvariance/right_on_easy"))


if __name__ == "__main__":
    launch(main, PRESETS)
