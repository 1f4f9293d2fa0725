"""Answers that fork: what a rollout that grows a tree asks of an engine, and what it gets.

    with forest(engine, prompts, sampling, now) as trees:
        first  = trees.grow([Start(prompt=0), Start(prompt=0)])
        again  = trees.grow([Start(prompt=0, piece=first[0].number, cut=12)])    another end behind twelve tokens
        answers = trees.rollouts([first[0].number, first[1].number, again[0].number])

A piece is a run of tokens that goes on where its `Start` says: from the prompt, or from any token of an earlier piece.
Nothing before that place is computed again. A leaf is a piece, and its answer is all that lies on the way to it; where
answers of a group have pieces in common, `Rollout.path` says so, and scoring and update compute these once as well.

    trees.flow(feed)        pieces that end are told at once, and others begin while the rest goes on

Draws are keyed by the way to a piece and its number among those that start at the same place, so a fork neither
disturbs its siblings nor depends on what else is grown in the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from mmrl.model.processing import Patches
from mmrl.rollouts.request import asked_of, innermost, refuse_beyond
from mmrl.types import Media, Now, Prompt, Role, Rollout, Sampling


@dataclass(frozen=True)
class Start:
    """Where a piece begins, and how far it may go."""

    prompt: int
    """Place of its prompt among those of the forest."""
    piece: int | None = None
    """Number of the piece that it goes on from; None: the prompt itself."""
    cut: int | None = None
    """So many tokens of that piece are kept; None: all of them."""
    given: tuple[int, ...] = ()
    """Ids that it begins with, which the policy does not choose."""
    role: Role = Role.HINT
    """Whose words these are."""
    media: tuple[Media, ...] = ()
    """What is shown among them, in the order of its placeholders; then they are observations, and ids of words end
    them (`answer_media.observed`)."""
    max_tokens: int | None = None
    """Most tokens of the piece, given ones included; None: what `Sampling.max_tokens` leaves for the answer. 0: nothing
    is drawn, the given ones alone are read."""
    stop: tuple[str, ...] = ()
    """Strings that end the piece, besides those of the sampling."""


@dataclass(frozen=True)
class Piece:
    """A run of tokens that was grown."""

    number: int
    """Its number in the forest."""
    start: Start
    tokens: tuple[int, ...]
    """Given ones first; the end token included when one was drawn."""
    logp: Tensor
    """float [n]: at the sampling temperature over the whole vocabulary; of given tokens too, but 0 of observations."""
    stop: str
    """"eos", "length" (the answer has no room left), "piece" (`Start.max_tokens`), or the stop string."""
    entropy: Tensor | None = None
    """float [n]: entropy of the distribution that each token was drawn from, if asked for."""
    top_logp: Tensor | None = None
    """float [n, k]: log-probs of the k most likely tokens in each place, falling, if asked for."""
    top_ids: Tensor | None = None
    """long [n, k]."""
    way: tuple[int, ...] = ()
    """Number of its answer, then what tells forks apart: the same in every run and order."""


Feed = Callable[[Sequence[Piece], int], Sequence[Start]]
"""Is given the pieces that have ended since it was asked last, and how many are still growing; returns where further
ones begin. With 0 growing the flow ends unless it returns one."""


class Forest(Protocol):
    """Trees of answers, one per prompt, while they grow."""

    def grow(
        self, starts: Sequence[Start], *, entropy: bool = False, top: int = 0
    ) -> list[Piece]:
        """One new piece per start, in their order. `entropy`, `top`: what to say of each place besides."""
        ...

    def flow(self, feed: Feed, *, entropy: bool = False, top: int = 0) -> None:
        """Let pieces grow; those that end are told, and `feed` is asked after each token for others, which join in."""
        ...

    def rollouts(self, leaves: Sequence[int]) -> list[Rollout]:
        """The answers that end with these pieces, unpaid, with `group` the place of their prompt and their `path`."""
        ...

    def close(self) -> None:
        """Forget what is held for further pieces; answers can still be had."""
        ...


ROOTS = 2**20
"""Numbers of answers to a prompt that belong to one forest."""


@contextmanager
def forest(
    engine: Any,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    now: Now,
    *,
    visual: Sequence[tuple[Patches, ...]] | None = None,
    branch: str = "raw",
    first: Sequence[int] | None = None,
) -> Iterator[Forest]:
    """Trees on these prompts, as long as the context is open; `visual`, `branch` and `first` as `Asking.generate`.

    `sampling`: how tokens are drawn; `group_size` is not read. Raises ValueError, naming the engine, if it cannot let
    answers fork, and BadRow for a prompt that cannot be shown.
    """
    refuse_beyond(engine, ("forks",), "A forest")
    if first is None:
        first = _opened(engine, prompts, (now.seed, now.step, branch))
    server = innermost(engine)
    requests = asked_of(
        server.policy,
        prompts,
        sampling,
        now,
        visual=visual,
        branch=branch,
        counts=[1] * len(prompts),
        first=first,
    )
    for request in requests:
        refuse_beyond(engine, request.needs(), f"prompt {request.prompt.id!r}")
    trees: Forest = server.plant(requests)
    try:
        yield trees
    finally:
        trees.close()


def _opened(engine: Any, prompts: Sequence[Prompt], where: tuple[Any, ...]) -> list[int]:
    """Numbers of the prompts' first answers, from whoever counts answers within a step; else 0."""
    inside = engine
    while inside is not None:
        if hasattr(inside, "opened"):
            return inside.opened(prompts, where, ROOTS)
        inside = getattr(inside, "stands_for", None)
    return [0] * len(prompts)
