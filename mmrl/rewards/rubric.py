"""Rubrics (Rubric Anchors, arXiv 2508.12790): several criteria of an answer made into one reward.

Each criterion k is scored r_k of top_k; with x_k = r_k / top_k in [0, 1], weights w and pairs v

    g_k = s(min(x_k, τ_k) / τ_k)                       saturation: more than τ_k is worth no more
    u   = Σ w_k·g_k / Σ w_k + Σ v_jk·g_j·g_k           pairs: two criteria that help or hurt each other
    R   = clip(u, 0, 1)^p · Π over k with a floor of 1[x_k ≥ floor_k]        veto, in [0, 1]

s(z) = z, or with a steepness a the logistic curve around 1/2, scaled so that s(0) = 0 and s(1) = 1. Without τ, v, a and
p it is the weighted mean with vetoes. A criterion without a score counts 0, and so fails its floor.

A rubric is a YAML or JSON file:

    version: 1
    power: 2                                                     p; 1 if left out
    steepness: 0                                                 a; 0 if left out
    criteria:
    - {id: seen, text: "Names what can be seen", top: 4, weight: 2, saturation: 0.8}
    - {id: honest, text: "Does not praise itself", top: 1, floor: 1}
    - {id: short, text: "At most 60 words", check: {words: 60}, weight: 1}
    pairs:
    - {between: [seen, short], weight: 0.1}

A criterion with a `check` is scored by rule (`rubric_checks`), any other by a judge. Departures: the paper names the
four mechanisms without equations; all of the above are ours. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from mmrl.ground.require import require
from mmrl.rewards.rubric_checks import Check, parsed_check

FOLDER = Path(__file__).with_name("rubrics")
MOST = 64
"""Criteria of one rubric: more would not fit one reply."""


@dataclass(frozen=True)
class Criterion:
    """One line of a rubric."""

    id: str
    text: str
    """What is asked of the answer, for the judge and the report."""
    top: int = 1
    """Highest level; the lowest is 0."""
    weight: float = 1.0
    saturation: float = 1.0
    """Share of the top from which on more is worth no more (τ)."""
    floor: float | None = None
    """Share of the top below which the whole answer is worth nothing; None: no veto."""
    check: Check | None = None
    """The rule that scores it; None: a judge does."""

    def __post_init__(self) -> None:
        name = isinstance(self.id, str) and self.id.isidentifier()
        said = isinstance(self.text, str) and self.text.strip() != ""
        levels = type(self.top) is int and 1 <= self.top <= 100
        weight = _number(self.weight) and 0 <= self.weight <= 1e6
        share = _is_share(self.saturation)
        floor = self.floor is None or _is_share(self.floor)
        require(
            self,
            id=(name, "a word of letters, digits and underscores"),
            text=(said, "a text"),
            top=(levels, "a whole number, 1 to 100"),
            weight=(weight, "0 to 1,000,000"),
            saturation=(share, "in (0, 1]"),
            floor=(floor, "in (0, 1], or left out"),
        )


@dataclass(frozen=True)
class Pair:
    """Two criteria that are worth more, or less, together."""

    between: tuple[str, str]
    weight: float = 0.0
    """v; negative where one spoils the other."""


@dataclass(frozen=True)
class Rubric:
    """Criteria and how they become one number."""

    criteria: tuple[Criterion, ...]
    pairs: tuple[Pair, ...] = ()
    power: float = 1.0
    """p: above 1 spreads good answers, 1 is off."""
    steepness: float = 0.0
    """a of the logistic saturation; 0 is a straight line."""
    version: int = 1

    def __post_init__(self) -> None:
        ids = [one.id for one in self.criteria]
        double = [name for name in ids if ids.count(name) > 1]
        counted = type(self.version) is int and self.version >= 1
        ends = {name for pair in self.pairs for name in pair.between}
        require(
            self,
            criteria=(0 < len(ids) <= MOST, f"1 to {MOST} criteria"),
            power=(0 < self.power <= 100, "above 0, at most 100"),
            steepness=(0 <= self.steepness <= 100, "0 (straight) to 100"),
            version=(counted, "1, 2, 3, …"),
        )
        if double:
            raise ValueError(
                f"A rubric has two criteria called {double[0]!r}; name them apart."
            )
        if strange := sorted(ends - set(ids)):
            raise ValueError(
                f"A pair of a rubric is between {strange[0]!r} and another; the criteria are {', '.join(ids)}."
            )
        if any(len(set(pair.between)) < 2 for pair in self.pairs):
            raise ValueError("A pair of a rubric is between a criterion and itself; name two.")
        if not any(one.weight > 0 for one in self.criteria):
            raise ValueError("All criteria of a rubric have weight 0; at least one must count.")

    @property
    def judged(self) -> tuple[Criterion, ...]:
        """Criteria that no rule scores."""
        return tuple(one for one in self.criteria if one.check is None)

    def guarded(self, veto: Rubric) -> Rubric:
        """With the criteria of another one as vetoes of weight 0. Raises ValueError for one without a floor."""
        if loose := [one.id for one in veto.criteria if one.floor is None]:
            raise ValueError(
                f"The criterion {loose[0]!r} of the veto has no floor, so it could never forbid anything; give it one."
            )
        added = [replace(one, weight=0.0) for one in veto.criteria]
        return replace(self, criteria=(*self.criteria, *added))


def aggregated(rubric: Rubric, scores: Mapping[str, float | None]) -> float:
    """R in [0, 1] of the share x in [0, 1] that each criterion got; None or absent: no score."""
    worth: dict[str, float] = {}
    for one in rubric.criteria:
        share = scores.get(one.id) or 0.0
        # A veto, whatever else the answer has.
        if one.floor is not None and share < one.floor:
            return 0.0
        worth[one.id] = saturated(share, one.saturation, rubric.steepness)
    weights = [one.weight for one in rubric.criteria]
    parts = [one.weight * worth[one.id] for one in rubric.criteria]
    together = 0.0
    for pair in rubric.pairs:
        first, second = pair.between
        together += pair.weight * worth[first] * worth[second]
    # fsum rounds once, so that the order of the criteria does not decide the last bit.
    total = math.fsum(parts) / math.fsum(weights) + together
    return min(max(total, 0.0), 1.0) ** rubric.power


def saturated(share: float, saturation: float, steepness: float = 0.0) -> float:
    """g in [0, 1] of a share in [0, 1]: rising up to the saturation, 1 from there on."""
    near = min(share, saturation) / saturation
    if steepness == 0:
        return near
    low, high = _logistic(-steepness / 2), _logistic(steepness / 2)
    curve = _logistic(steepness * (near - 0.5))
    return (curve - low) / (high - low)


def read_rubric(name: str) -> Rubric:
    """The rubric of a file, or one of ours by its name. Raises ValueError, naming the file and what is wrong."""
    file = FOLDER / f"{name}.yaml" if name in rubric_names() else Path(name)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(
            f"The rubric {name} cannot be read ({' '.join(str(error).split())}); name a YAML or JSON file, or one of "
            f"{', '.join(rubric_names())}."
        ) from error
    try:
        return parsed_rubric(content)
    except ValueError as error:
        raise ValueError(f"The rubric {name}: {error}") from error


def rubric_names() -> list[str]:
    """The rubrics that come with mmrl."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def parsed_rubric(content: Any) -> Rubric:
    """A rubric of plain mappings and lists. Raises ValueError for what is unknown, missing or of another kind."""
    _refuse_unknown("the rubric", content, Rubric)
    criteria = [_criterion(one) for one in _listed(content, "criteria")]
    pairs = [_pair(one) for one in _listed(content, "pairs")]
    others = dict(content)
    others.pop("criteria", None)
    others.pop("pairs", None)
    for name in ("power", "steepness"):
        if not _number(others.get(name, 1.0)):
            raise ValueError(f"{name} is {others[name]!r}; it must be a number.")
    return Rubric(tuple(criteria), tuple(pairs), **others)


def _criterion(given: Any) -> Criterion:
    _refuse_unknown("a criterion", given, Criterion)
    for name in ("id", "text"):
        if name not in given:
            raise ValueError(f"a criterion has no {name}: {given!r}.")
    check = given.get("check")
    rule = None if check is None else parsed_check(check, f"criterion {given['id']!r}")
    return Criterion(**{**given, "check": rule})


def _pair(given: Any) -> Pair:
    _refuse_unknown("a pair", given, Pair)
    ends = given.get("between")
    two = isinstance(ends, list) and len(ends) == 2
    named = two and all(isinstance(end, str) for end in ends)
    weight = given.get("weight")
    if not named or not _number(weight) or abs(weight) > 1e6:
        raise ValueError(
            f"a pair is {given!r}; it must read {{between: [one, other], weight: NUMBER}}."
        )
    return Pair((ends[0], ends[1]), weight)


def _refuse_unknown(where: str, given: Any, kind: type) -> None:
    known = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} is {given!r}; it must have {', '.join(known)}.")
    if strange := sorted(str(key) for key in given if key not in known):
        raise ValueError(f"{where} has {strange[0]!r}; it may have {', '.join(known)}.")


def _listed(content: Mapping[str, Any], name: str) -> Sequence[Any]:
    found = content.get(name, [])
    if not isinstance(found, list):
        raise ValueError(f"{name} is {found!r}; it must be a list.")
    return found


def _is_share(value: Any) -> bool:
    return _number(value) and 0 < value <= 1


def _number(value: Any) -> bool:
    # True is an int to Python, and no number to a reader of the file.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))
