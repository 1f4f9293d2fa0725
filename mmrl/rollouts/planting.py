"""Open a forest on some prompts, whatever engine there is, or refuse by name one that cannot let answers fork."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmrl.model.processing import Patches
from mmrl.rollouts.forking import Forest
from mmrl.rollouts.request import asked_of, innermost, refuse_beyond
from mmrl.types import Now, Prompt, Sampling

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
