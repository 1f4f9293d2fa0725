"""Writing-Zero (arXiv 2506.00103): requests without a right answer, paid by comparing answers with one of their group.

on a laptop CPU, minutes:       python -m recipes.writing_zero
a judge on a server:            python -m recipes.writing_zero 7b --dataset my.jsonl --judge.url http://host:8000/v1
either order of each pair:      python -m recipes.writing_zero both-orders-7b --dataset my.jsonl
rows have requests alone:       ... --data.columns answer=

BRPO: one answer of each group is drawn as its reference, the others earn +1 or -1 as they beat it or not, and that is
the advantage. A model that sees, or a text model with --no-pictures, says who is better; verdicts can be kept in
--judge.cache. If it is down the run stops with a checkpoint, or leaves the groups out (--unavailable drop). With an
empty --judge.url the accuracy of two answers says who is better: the part is then called `preferred_rule`, and such a
run is BRPO on verifiable answers, no reproduction. The published models read text, and their judge was trained for it.
"""

from typing import Any, Literal

from mmrl import GRPO, LoRA, Monitor, Optim, Rewards, Run, Sampling, Trainer
from mmrl.losses.advantages import uncentred
from mmrl.recipes.shared.judge_server import JudgeServer
from mmrl.recipes.shared.launch import Preset, fit, launch
from mmrl.recipes.shared.miniature import EMBEDDED, NOTE, miniature
from mmrl.recipes.shared.opening import Data, Load, open_data, open_policy
from mmrl.recipes.shared.paying import RewardWeights, style_of
from mmrl.rewards.pairwise import BRPO, Preferred, RulePreferred
from mmrl.rollouts.brpo import SkewSampling
from mmrl.rollouts.groups import group_rollout

PRESETS = {
    EMBEDDED: miniature(f"{NOTE}; a rule in place of the judge", judge={"url": ""}),
    "7b": Preset("16 answers, compared in a drawn order", 7.0),
    "both-orders-7b": Preset("compared in both orders", brpo={"both_orders": True}),
}


def main(
    model: str = "Qwen/Qwen2.5-VL-7B-Instruct",
    dataset: str = "train.jsonl",
    data: Data = Data(style="plain"),
    brpo: BRPO = BRPO(tie=-1.0, skew=0.6),
    rounds: int = 20,
    reward: RewardWeights = RewardWeights(accuracy=0.0, format=0.0),
    judge: JudgeServer = JudgeServer(),
    pictures: bool = True,
    unavailable: Literal["stop", "drop"] = "stop",
    grpo: GRPO = GRPO(clip_low=0.2, clip_high=0.2),
    sampling: Sampling = Sampling(group_size=16, temperature=1.0, max_tokens=4096),
    optim: Optim = Optim(lr=1e-6),
    run: Run = Run(name="writing_zero", prompts_per_step=64, steps=200, eval_prompts=0),
    monitor: Monitor = Monitor(),
    load: Load = Load(),
    lora: LoRA = LoRA(),
) -> None:
    """Train a vision-language model by comparing its answers with each other.

    Args:
        rounds: Most rounds of sampling a step, to fill it with groups that are not too skewed; 0: as many as it takes.
        pictures: Show the pictures to the judge; off for one that only reads.
        unavailable: What an outage of the judge does: stop the run, or leave the groups out.
    """
    prompts, heldout = open_data(dataset, data, run.seed)
    policy = open_policy(model, load, lora, run)
    style, has_answers = style_of(data.style), "answer=" not in data.columns
    # Under another name when a rule stands in, so that no curve of it passes for the paper's.
    part = "preferred" if judge.url else "preferred_rule"
    if judge.url:
        asking = judge.judge(max_tokens=2048)
        compared: Any = Preferred(asking, brpo=brpo, seed=run.seed, pictures=pictures)
    elif has_answers:
        compared = RulePreferred(reward.accuracy_of(style), seed=run.seed)
    else:
        raise ValueError(
            "--judge.url is empty and --data.columns says that rows have no answers: without a judge and without "
            "answers nothing says who is better. Name a server, or the column of the answers."
        )
    others = {part: compared, "on_unavailable": unavailable}
    rewards = reward.rewards(style, **others) if has_answers else Rewards(**others)
    skewed = SkewSampling(part=part, skew=brpo.skew, rounds=rounds)
    trainer = Trainer(
        policy,
        prompts=prompts,
        heldout=heldout,
        rewards=rewards,
        rollout=skewed if brpo.skew < 1 else group_rollout,
        estimator=uncentred,
        grpo=grpo,
        sampling=sampling,
        optim=optim,
        run=run,
        monitor=monitor,
    )
    fit(trainer, watch=("reward/preferred", "reward/preferred_rule", "pairwise/compared"))


if __name__ == "__main__":
    launch(main, PRESETS)
