"""Pay for looking closer: what VerlTool, Pixel Reasoner, DeepEyes and ViGoRL add to the right answer.

n calls of an answer, ρ the share of the group's answers with a call, A in [0, 1] the accuracy.

    VerlTool         A + α·[n > 0]·max(0, H - ρ) + β·min(N - n, 0)        α 0.5, H 0.3, β 0.05, N 1; valid calls only
    Pixel Reasoner   n = 0: A        else A' + c + p       c = max(H - ρ, 0) / 2 · 0.25 / ρ, of clips / 1.5, not / 2
                     p = -0.05·(n - 1)     A' = 0 where the last call was refused, else A
    DeepEyes         0.8·A + 0.2·F + 1.2·[A > 0.5 and a crop came back]   F in {0, -1}; rows without tools 1.2·A + 0.4·F
    ViGoRL           0.6·A + 0.4·F       F = 1 + 0.2·(u - 1) in the right form, else 0; u points at least 10 px apart

As parts of `Rewards` each term is an object below, whose weight is its factor. A group that lost answers (a tool
failed) is counted by those that are there; a group of one has ρ 0 or 1; ρ = 0 pays nobody.

Sources: TIGER-AI-Lab/verl-tool (commit 980962b4), Pixel-Reasoner (a3a6c3a), DeepEyes and grounded-rl, read.
Departures
1. VerlTool's first term is called a penalty there; it is a bonus for being one of few.
2. Pixel Reasoner: that a failed operation "was not repaired" is read as: no later call was answered.
3. ViGoRL's bonus has no end there: ten points pay more than the right answer. Here at most `most` points count.

No torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mmrl.ground.calls import Call
from mmrl.ground.require import require
from mmrl.rewards.contract import Reward

if TYPE_CHECKING:
    from mmrl.types import Rollout

Point = tuple[float, float]
Rule = Literal["verltool", "pixel-reasoner", "pixel-reasoner-clips"]
CROPS = ("box",)
"""Keys of `Call.found` that only a crop has."""


def curiosity(counts: Sequence[int], rare: float = 0.3, rule: Rule = "verltool") -> list[float]:
    """The bonus of each answer of a group, from how many calls each has; 0 for answers without a call.

    `rare`: H, the share of answers with a call from which on there is none.
    """
    share = sum(count > 0 for count in counts) / len(counts) if counts else 0.0
    bonus = max(rare - share, 0.0)
    if rule != "verltool" and share:
        bonus *= 0.25 / share / (2 if rule == "pixel-reasoner" else 1.5)
    return [bonus if count else 0.0 for count in counts]


def redundancy(count: int, free: int = 1) -> int:
    """min(free - count, 0): minus the calls beyond those that are free."""
    return min(free - count, 0)


def verltool(
    counts: Sequence[int],
    accuracy: Sequence[float],
    alpha: float = 0.5,
    rare: float = 0.3,
    beta: float = 0.05,
    free: int = 1,
) -> list[float]:
    """Rewards of a group from valid calls and accuracies."""
    bonus = curiosity(counts, rare)
    rows = zip(counts, accuracy, bonus, strict=True)
    return [right + alpha * extra + beta * redundancy(n, free) for n, right, extra in rows]


def pixel_reasoner(
    counts: Sequence[int],
    accuracy: Sequence[float],
    unrepaired: Sequence[bool],
    rare: float = 0.3,
    beta: float = 0.05,
    clips: bool = False,
) -> list[float]:
    """Rewards of a group from all calls, accuracies, and whether a failed call was the last word."""
    rule: Rule = "pixel-reasoner-clips" if clips else "pixel-reasoner"
    bonus = curiosity(counts, rare, rule)
    paid = []
    for n, right, extra, lost in zip(counts, accuracy, bonus, unrepaired, strict=True):
        kept = 0.0 if n and lost else right
        paid.append(kept + extra + beta * redundancy(n))
    return paid


def deep_eyes(accuracy: float, form: float, crops: int, offered: bool = True) -> float:
    """The reward of an answer; `form` is 0 or -1, `crops` came back, `offered`: could it call a tool?"""
    if not offered:
        return 1.2 * accuracy + 0.4 * form
    return 0.8 * accuracy + 0.2 * form + 1.2 * (accuracy > 0.5 and crops > 0)


def vigorl(accuracy: float, in_form: bool, points: Sequence[Point], most: int = 3) -> float:
    """The reward of an answer that looked at these points; at most `most` of them count, 0: all."""
    return 0.6 * accuracy + 0.4 * looked_at(in_form, points, most)


def looked_at(
    in_form: bool, points: Sequence[Point], most: int = 3, apart: float = 10
) -> float:
    """F of ViGoRL: 0 in the wrong form, else 1 and 0.2 for each further point that is `apart` from those before."""
    if not in_form:
        return 0.0
    count = len(distinct(points, apart))
    counted = min(count, most) if most else count
    return 1 + 0.2 * (counted - 1)


def distinct(points: Sequence[Point], apart: float = 10) -> list[Point]:
    """Points at least so many pixels from all that were kept before them."""
    kept: list[Point] = []
    for x, y in points:
        if all((x - a) ** 2 + (y - b) ** 2 >= apart**2 for a, b in kept):
            kept.append((x, y))
    return kept


def is_unrepaired(calls: Sequence[Call]) -> bool:
    """Was a call refused, and no later one answered?"""
    return bool(calls) and not calls[-1].valid


def crops_of(calls: Sequence[Call]) -> int:
    """Crops that came back."""
    return sum(call.valid and any(key in call.found for key in CROPS) for call in calls)


@dataclass(frozen=True)
class Curiosity(Reward):
    """The group's bonus for being one of few that call a tool. A batch reward; its weight is α (Pixel Reasoner: 1)."""

    rare: float = 0.3
    """H: the share of answers with a call from which on there is none."""
    rule: Rule = "verltool"
    """How the bonus falls with the share."""

    batched = True

    def __post_init__(self) -> None:
        require(self, rare=(0 <= self.rare <= 1, "a share, in [0, 1]"))

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]:
        groups: defaultdict[Any, list[int]] = defaultdict(list)
        for place, rollout in enumerate(rollouts):
            groups[rollout.group].append(place)
        values = [0.0] * len(rollouts)
        for places in groups.values():
            counts = [self._count(rollouts[place]) for place in places]
            for place, bonus in zip(
                places, curiosity(counts, self.rare, self.rule), strict=True
            ):
                values[place] = bonus
        return values

    def _count(self, rollout: Rollout) -> int:
        # Pixel Reasoner counts what was tried, VerlTool what was done.
        every = self.rule != "verltool"
        return sum(every or call.valid for call in rollout.calls)


@dataclass(frozen=True)
class Redundancy(Reward):
    """Minus the calls beyond those that are free; its weight is β."""

    free: int = 1
    """N: calls that cost nothing."""
    every: bool = False
    """Count refused calls, too (Pixel Reasoner)."""

    def __post_init__(self) -> None:
        require(self, free=(0 <= self.free <= 1000, "0 to 1,000"))

    def __call__(self, rollout: Rollout) -> float:
        count = sum(self.every or call.valid for call in rollout.calls)
        return float(redundancy(count, self.free))


@dataclass(frozen=True)
class Unrepaired(Reward):
    """Minus the accuracy where the last call was refused (Pixel Reasoner); its weight is the accuracy's."""

    accuracy: Callable[[Any], float]
    """What pays the right answer."""

    def __call__(self, rollout: Rollout) -> float:
        return -float(self.accuracy(rollout)) if is_unrepaired(rollout.calls) else 0.0


@dataclass(frozen=True)
class RightCrop(Reward):
    """1 for a right answer for which a crop came back (DeepEyes); its weight is 1.2."""

    accuracy: Callable[[Any], float]
    """What pays the right answer."""

    def __call__(self, rollout: Rollout) -> float:
        # The crop first: where there is none nobody need be asked.
        return float(crops_of(rollout.calls) > 0 and self.accuracy(rollout) > 0.5)


@dataclass(frozen=True)
class LookedAt(Reward):
    """F of ViGoRL, from the points of its calls; its weight is 0.4."""

    form: Callable[[Any], float]
    """Pays the right form."""
    most: int = 3
    """Most points that count: three keep the bonus below the pay of the right answer. 0: no limit, as published."""
    apart: float = 10.0
    """Pixels by which points must differ."""
    argument: str = "point_2d"
    """Argument of a call that holds its point."""

    def __post_init__(self) -> None:
        require(
            self,
            most=(0 <= self.most <= 1000, "0 (no limit) to 1,000"),
            apart=(0 <= self.apart <= 1 << 16, "0 to 65,536 pixels"),
        )

    def __call__(self, rollout: Rollout) -> float:
        points = [self._point(call) for call in rollout.calls if call.valid]
        found = [point for point in points if point is not None]
        return looked_at(self.form(rollout) > 0, found, self.most, self.apart)

    def _point(self, call: Call) -> Point | None:
        given = call.action.arguments.get(self.argument) if call.action else None
        return (float(given[0]), float(given[1])) if isinstance(given, Sequence) else None
