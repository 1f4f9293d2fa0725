"""What parts of a method say about themselves, so that two which exclude each other are refused.

A trait is one of the texts of `TRAITS`. Objectives, rollout functions and other objects say theirs in a method
`traits()`; functions (estimators, surrogates, rewards) are marked: `@having("z-scores groups")`. Which traits exclude
each other stands in one table, `mmrl.training.clashes`. Imports no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, get_args

Slot = Literal["estimator", "surrogate", "temperature", "counts", "tree"]
"""What one part alone may decide: the advantage that others shape, the policy's own loss, how hot each token is
sampled, how many answers each prompt gets, and the tree that answers are sampled from."""

TRAITS = {
    # What is done to rewards and advantages.
    "centres groups": "subtracts the mean of each group",
    "z-scores groups": "divides by the deviation of each group as well",
    "z-scores the batch": "divides by the deviation of the whole batch",
    "undone by centring": "a later mean of the group takes it away again",
    "maps rewards alike": "only maps all rewards to a * R + b with one a > 0 and one b",
    "shifts rewards": "only adds one number to all rewards",
    "scales rewards": "only multiplies all rewards by one positive number",
    "maps each group alike": "maps all rewards of a group to a * R + b, with an a > 0 and a b of its own",
    "shifts each group": "only adds one number to all rewards of a group",
    "pays domains apart": "sums of different data sets are made of other parts or weights",
    "corrects verdicts": "pays a verdict by what it means at the rates at which the verifier errs",
    "knows the largest reward": "compares rewards with the largest one, of which it was told",
    "compares with one of the group": "pays how answers compare with one that was drawn from their group",
    "shapes the advantage": "changes the advantage that comes in",
    "rewards certainty": "pays answers for how sure the policy is of them",
    "reads group statistics": "remembers or counts how groups fared",
    # What is done to ratios.
    "bounds each ratio": "clips the ratio of each token by bounds of its own",
    "ratio of whole answers": "has one ratio for a whole answer",
    "has no clip": "does not read the clip range",
    "is a chosen surrogate": "was given in the place of the default one",
    "is a chosen estimator": "is a method of its own, and no function of the library",
    # Which groups matter.
    "learns from all-wrong groups": "its signal lies in groups without a right answer",
    "learns from all-right groups": "its signal lies in groups without a wrong answer",
    "drops all-wrong groups": "leaves out groups whose answers are all wrong",
    "drops all-right groups": "leaves out groups whose answers are all right",
    "hints all-wrong groups": "samples them again with a part of the solution",
    "hints questions": "answers of a group begin with parts of the solution, of several lengths",
    "samples hard prompts again": "adds answers where few are right",
    "teaches all-wrong groups": "puts answers of others into groups without a right answer",
    "injects answers": "trains answers that the policy did not write",
    "learns from some answers": "leaves answers of a group out by whether they are right",
    "adds texts to learn": "adds texts that are learned by likelihood",
    # How answers are sampled.
    "anneals the temperature": "samples later tokens at another temperature",
    "reads one temperature": "compares log-probs that must all be at the run's temperature",
    "samples trees": "answers of a group share beginnings",
    "assumes independent rows": "its statistics take the answers of a group for independent",
    "samples beside answers": "asks the engine for more than the answers of groups, the more the wider these are",
    "samples noisy views": "some answers are sampled under another view",
}
"""Trait -> what it says."""

Marked = TypeVar("Marked", bound=Callable[..., Any])


def having(*traits: str) -> Callable[[Marked], Marked]:
    """Mark a function with traits. Raises ValueError for an unknown one."""
    _refuse_unknown("A function", traits)

    def mark(function: Marked) -> Marked:
        vars(function)["traits"] = traits
        return function

    return mark


def traits_of(part: object) -> frozenset[str]:
    """What a part says about itself, and which slots it owns ("owns the estimator"); a partial speaks for its function.

    Raises ValueError for an unknown trait or slot.
    """
    # A partial has no attributes of its function; they are at the bottom.
    while isinstance(part, functools.partial):
        part = part.func
    name = getattr(part, "__name__", type(part).__name__)
    told = _said(part, "traits")
    _refuse_unknown(name, told)
    owned = _said(part, "owns")
    if strange := sorted(set(owned) - set(get_args(Slot))):
        raise ValueError(f"{name} owns {strange[0]!r}; it may own {list(get_args(Slot))}.")
    return frozenset(told) | {owns(slot) for slot in owned}


def owns(slot: str) -> str:
    """The trait of who owns a slot."""
    return f"owns the {slot}"


def _said(part: object, name: str) -> tuple[str, ...]:
    found: Any = getattr(part, name, ())
    said: Any = found() if callable(found) else found
    return tuple(said)


def _refuse_unknown(name: str, traits: tuple[str, ...]) -> None:
    for trait in traits:
        if trait not in TRAITS:
            near = get_close_matches(trait, TRAITS, 1, 0.6)
            meant = (
                f"; did you mean {near[0]!r}?" if near else f"; the traits are {list(TRAITS)}."
            )
            raise ValueError(f"{name} has the trait {trait!r}, which is none{meant}")
