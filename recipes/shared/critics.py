"""Who names the wrong steps of an answer: a judge with several readings, or a rule whose part says that it is one."""

from __future__ import annotations

from functools import partial

from mmrl.objectives.capo import CAPO, voted
from mmrl.recipes.shared.judge_server import JudgeServer
from mmrl.rewards.critique import Critique, RuleCritique

REPLY = 2048
"""Most tokens of a critique, which may think before it lists."""


def critic(
    capo: CAPO, judge: JudgeServer, between: str, words: tuple[str, ...]
) -> tuple[str, Critique | RuleCritique]:
    """Name and function of the critique's part. `words`: see `RuleCritique`."""
    if not judge.url:
        return "critique_rule", RuleCritique(words, between)
    asked = judge.judge(temperature=capo.temperature, max_tokens=REPLY)
    vote = partial(voted, vote=capo.vote)
    return "critique", Critique(asked, capo.critiques, vote=vote, between=between)
