"""Which traits exclude each other: one table, and one check over all parts of a method.

A row names two traits (`mmrl.ground.traits`), never two classes: whoever has them says so, and a new part needs no
change here. Rows follow from what the papers' formulas do to each other, for example that a mean of the group takes
away what was added to all of its rewards.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from mmrl.ground.traits import Slot, owns, traits_of
from mmrl.losses.advantages import group_normalized
from mmrl.losses.surrogates import Bounded, clipped, innermost
from mmrl.objectives.base import Objective
from mmrl.rollouts.groups import PlainRollout, RolloutFunction


@dataclass(frozen=True)
class Clash:
    """Two traits that one run cannot have."""

    one: str
    other: str
    reason: str
    """Why, as the end of a sentence; with what to do where that is not to leave one of them out."""
    verdict: Literal["error", "warn"] = "error"
    behind: bool = False
    """Only objectives that stand in this order in the list: `one` first."""


OWNERS = {
    "estimator": "each replaces the advantage that the other made",
    "surrogate": "each is the policy's whole loss",
    "temperature": "each decides at which temperature a token is sampled",
    "counts": "each decides how many answers a prompt gets",
    "tree": "each decides where answers branch",
}
assert set(OWNERS) == set(get_args(Slot))

CLASHES = (
    *(Clash(owns(slot), owns(slot), reason) for slot, reason in OWNERS.items()),
    Clash("owns the estimator", "is a chosen estimator", OWNERS["estimator"]),
    Clash(
        "shapes the advantage",
        "owns the estimator",
        "the second replaces the advantage, and with it what the first made of it; list the second one first",
        behind=True,
    ),
    # A loss of one's own knows neither advantages nor ratios.
    Clash(
        "owns the surrogate",
        "shapes the advantage",
        "the first is a loss without an advantage, so the second would change nothing",
    ),
    Clash("owns the surrogate", "is a chosen surrogate", OWNERS["surrogate"]),
    Clash(
        "owns the surrogate",
        "bounds each ratio",
        "the first is a loss without a clip, so the second would bound nothing",
    ),
    Clash(
        "bounds each ratio",
        "ratio of whole answers",
        "the bounds follow from the probability of one token, and the ratio is of a whole answer",
    ),
    Clash("bounds each ratio", "has no clip", "there is no clip that could be bounded"),
    # What is the same for a whole group goes away with the group's own statistics.
    Clash(
        "maps rewards alike",
        "z-scores groups",
        "dividing by the deviation of each group takes exactly that away; use group_centered",
    ),
    Clash(
        "maps rewards alike",
        "z-scores the batch",
        "dividing by the deviation of the batch takes exactly that away; use group_centered",
    ),
    Clash(
        "shifts rewards",
        "centres groups",
        "the mean of each group takes the shift away; use an estimator without a baseline",
    ),
    Clash("shifts rewards", "z-scores the batch", "the mean of the batch takes the shift away"),
    Clash(
        "scales rewards",
        "centres groups",
        "behind the mean of each group only the learning rate is scaled",
        verdict="warn",
    ),
    Clash(
        "pays domains apart",
        "z-scores the batch",
        "the deviation of the batch mixes sums of different scale, so that one data set's answers weigh more than "
        "another's; use group_normalized",
    ),
    Clash(
        "maps each group alike",
        "z-scores groups",
        "dividing by the deviation of each group takes exactly that away; use group_centered",
    ),
    Clash(
        "shifts each group",
        "centres groups",
        "the mean of each group takes the shift away; use an estimator without a baseline",
    ),
    Clash(
        "corrects verdicts",
        "owns the estimator",
        "the second makes the advantage from the verdicts themselves, or from statistics that undo the correction; "
        "use a plain estimator",
    ),
    Clash(
        "corrects verdicts",
        "knows the largest reward",
        "corrected pay lies elsewhere than the verdicts, whose largest one the second was told",
    ),
    Clash(
        "corrects verdicts", "corrects verdicts", "the same verdict would be corrected twice"
    ),
    *(
        Clash(
            "compares with one of the group",
            other,
            "the answer that was drawn is the baseline, and another one would undo the draw; use uncentred",
        )
        for other in ("centres groups", "z-scores the batch")
    ),
    Clash(
        "undone by centring",
        "centres groups",
        "the second takes the group's mean away again, which is what the first puts there",
        behind=True,
    ),
    Clash(
        "learns from some answers",
        "learns from some answers",
        "each leaves answers out by whether they are right, so that hardly any would be left",
    ),
    # Groups of one mind.
    Clash(
        "learns from all-wrong groups",
        "drops all-wrong groups",
        "the second drops the groups that the first learns from; keep them (DynamicSampling: low=-1, spread=False)",
    ),
    Clash(
        "learns from all-right groups",
        "drops all-right groups",
        "the second drops the groups that the first learns from; keep them (DynamicSampling: high=2, spread=False)",
    ),
    Clash(
        "reads group statistics",
        "drops all-wrong groups",
        "groups of one mind, which the first would remember, are dropped before it sees them",
        verdict="warn",
    ),
    Clash(
        "reads group statistics",
        "samples noisy views",
        "answers to other pixels would count as answers to the real ones",
    ),
    # Who helps where no answer is right.
    Clash(
        "injects answers",
        "learns from all-wrong groups",
        "statistics of the policy's own answers alone, and a signal from groups that are all wrong, contradict "
        "each other",
    ),
    Clash(
        "teaches all-wrong groups",
        "drops all-wrong groups",
        "the second drops the groups in which the first puts answers of others; keep them (DynamicSampling: low=-1, "
        "spread=False)",
    ),
    Clash(
        "injects answers", "injects answers", "the same answers would be weighed in two ways"
    ),
    *(
        Clash("adds texts to learn", other, reason)
        for other, reason in {
            "injects answers": "the second would take texts of the first for answers of teachers",
            "adds texts to learn": "the same texts would be learned twice",
            "owns the surrogate": "the second would take texts of the first for answers",
        }.items()
    ),
    *(
        Clash(
            "hints all-wrong groups", other, "both answer to the same groups, in different ways"
        )
        for other in (
            "learns from all-wrong groups",
            "samples hard prompts again",
            "injects answers",
            "hints all-wrong groups",
        )
    ),
    *(
        Clash(
            "hints questions",
            other,
            "answers with longer and shorter hints are no answers to one question of one difficulty",
        )
        for other in (
            "hints all-wrong groups",
            "samples hard prompts again",
            "injects answers",
            "learns from all-wrong groups",
            "assumes independent rows",
            "reads group statistics",
            "samples noisy views",
        )
    ),
    *(
        Clash(
            trait,
            "samples noisy views",
            "answers to other pixels would count in whether a prompt is hard for the policy",
        )
        for trait in ("samples hard prompts again", "hints all-wrong groups")
    ),
    Clash(
        "rewards certainty",
        "corrects verdicts",
        "the first does not read verdicts, so the second would change nothing",
    ),
    # How answers were sampled.
    Clash(
        "anneals the temperature",
        "reads one temperature",
        "scores of the second would be at other temperatures than the tokens were sampled at",
    ),
    Clash(
        "samples trees",
        "assumes independent rows",
        "answers that share their beginning are not independent, so the statistics of the second are biased",
        verdict="warn",
    ),
)


def refuse_clashes(
    objectives: Sequence[Objective],
    parts: Sequence[RolloutFunction],
    rewards: Sequence[Callable[..., Any]] = (),
    surrogate: Callable[..., Any] = clipped,
    estimator: Callable[..., Any] = group_normalized,
) -> None:
    """Raise ValueError for the first two parts that exclude each other; warn of those that are merely pointless."""
    owned = any("estimator" in objective.owns() for objective in objectives)
    told: list[tuple[object, frozenset[str]]] = [
        *((one, _of_objective(one)) for one in objectives),
        *((part, _of_rollout(part)) for part in parts),
        *((reward, traits_of(reward)) for reward in rewards),
        (surrogate, _of_surrogate(surrogate)),
        (estimator, _of_estimator(estimator, owned)),
    ]
    places = {id(objective): place for place, objective in enumerate(objectives)}
    for clash in CLASHES:
        for first, of_first in told:
            for second, of_second in told:
                if clash.one not in of_first or clash.other not in of_second:
                    continue
                # The same trait on both sides needs two parts; two traits may meet in one part.
                if first is second and (clash.one == clash.other or clash.behind):
                    continue
                if first is second and clash.other == "shapes the advantage":
                    continue  # whoever owns a slot may shape for itself
                if clash.behind and not _behind(places, first, second):
                    continue
                _say(clash, first, second)


def called(part: object) -> str:
    """How a part is named in a message."""
    if isinstance(part, partial):
        return called(part.func)
    if isinstance(part, PlainRollout):
        return called(part.function)
    if isinstance(part, Bounded):
        return f"Bounded({called(part.inner)})"
    return getattr(part, "__name__", type(part).__name__)


def _behind(places: dict[int, int], first: object, second: object) -> bool:
    """Does the second objective come later than the first, and so undo what that one did?"""
    # What is no objective comes before them all.
    return places.get(id(first), -1) < places.get(id(second), -1)


def _say(clash: Clash, first: object, second: object) -> None:
    one, other = called(first), called(second)
    both = f"{one} and {other}"
    if first is second:
        raise ValueError(f"{one} {clash.one} and {clash.other}, but {clash.reason}.")
    if clash.verdict == "error":
        raise ValueError(
            f"{both} cannot be used together: {one} {clash.one}, {other} {clash.other}, and {clash.reason}."
        )
    warnings.warn(
        f"{both} do little together: {one} {clash.one}, {other} {clash.other}, and {clash.reason}.",
        stacklevel=6,
    )


def _of_objective(objective: Objective) -> frozenset[str]:
    found = traits_of(objective)
    noisy = any(kind.branch for kind in objective.answer_kinds())
    found |= {"samples noisy views"} if noisy else set()
    # Whoever owns the estimator makes the advantage rather than shaping one.
    makes = owns("estimator") in found
    if type(objective).shape is not Objective.shape and not makes:
        found |= {"shapes the advantage"}
    return found


def _of_rollout(part: RolloutFunction) -> frozenset[str]:
    noisy = any(kind.branch for kind in part.brings())
    return traits_of(part) | ({"samples noisy views"} if noisy else set())


def _of_estimator(estimator: Callable[..., Any], owned: bool) -> frozenset[str]:
    """What it says; where an objective owns the advantage, only whether somebody wanted another one."""
    if not owned:
        return traits_of(estimator)
    while isinstance(estimator, partial):
        estimator = estimator.func
    # Those of the library stand in for "no matter which".
    is_method = getattr(estimator, "__module__", "") != group_normalized.__module__
    return frozenset({"is a chosen estimator"} if is_method else set())


def _of_surrogate(surrogate: Callable[..., Any]) -> frozenset[str]:
    # The default is what everybody replaces; another one is somebody's choice.
    chosen = innermost(surrogate) is not clipped
    return traits_of(surrogate) | ({"is a chosen surrogate"} if chosen else set())
