"""Verdicts that err on purpose, who hears appeals, and the estimator that leaves a correction its effect."""

from __future__ import annotations

from dataclasses import replace

from mmrl.losses.advantages import Estimator, group_centered, group_normalized, uncentred
from mmrl.recipes.shared.judge_server import JudgeServer
from mmrl.recipes.shared.paying import RewardWeights, Style
from mmrl.rewards.judged_answer import JudgedAnswer
from mmrl.rewards.noisy_verdict import LabelNoise, NoisyVerdict
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.noisy_verifier import NoisyVerifier

VERDICT = "verdict"
"""Part that is paid where verdicts are turned round; the true accuracy beside it is logged only."""


def verdicts(
    reward: RewardWeights, style: Style, noise: LabelNoise, seed: int
) -> tuple[Rewards, str]:
    """The rewards of a run, and the part that is the verifier. Raises ValueError for a verifier that is not paid."""
    if reward.own or reward.correct:
        raise ValueError(
            "--reward.own and --reward.correct are given, but the verifier that is corrected here is the style's "
            "accuracy (--data.style, --reward.grader); leave them out."
        )
    if not reward.accuracy:
        raise ValueError("--reward.accuracy is 0, so there is no pay of a verifier to correct.")
    if not noise.errs:
        return reward.rewards(style), "accuracy"
    paid = replace(reward, accuracy=0.0, correct=VERDICT)
    noisy = NoisyVerdict(reward.accuracy_of(style), noise, seed)
    return paid.rewards(style, **{VERDICT: (reward.accuracy, noisy)}), VERDICT


def second_verifier(
    judge: JudgeServer, reward: RewardWeights, style: Style, noise: LabelNoise
) -> Rewards:
    """Who re-checks rejected answers: the judge, or the true accuracy behind noise on purpose. Raises ValueError."""
    if judge.url:
        return Rewards(appeal=JudgedAnswer(judge.judge()), correct="appeal")
    if noise.errs:
        return Rewards(appeal=reward.accuracy_of(style), correct="appeal")
    raise ValueError(
        "--noisy.appeals re-checks rejected answers, but there is no second verifier: give --judge.url of a server "
        "with a text model, or set --noisy.appeals 0 and the rates yourself."
    )


def estimator_for(noisy: NoisyVerifier) -> Estimator:
    """The strongest statistic of a group that takes nothing of the correction away."""
    if not noisy.corrects:
        return group_normalized
    by_kind = bool(noisy.column) and noisy.correction == "backward"
    return group_centered if by_kind else uncentred
