"""Groups whose answers are done are scored while others are still being drawn.

    answers = engine.generate(prompts, …, done=pay.begin)     groups, as they end, go to the workers and judges
    paid    = pay(answers)                                    the rest, and what is compared over groups, as ever

Which answers there are, their order, and every value are those of an engine that tells nothing: `pay.begin` begins
calls that would be made later and finds them again by the very record (`rewards.begun`). Nothing that the policy
computes is done early: its passes share a device with the engine, and packed otherwise they would round otherwise.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from mmrl.types import Now, Prompt, Rollout, Sampling


def paid_answers(
    engine: Any,
    pay: Callable[[Sequence[Rollout]], list[Rollout]],
    prompts: Sequence[Prompt],
    sampling: Sampling,
    now: Now,
    **more: Any,
) -> list[Rollout]:
    """Paid answers to the prompts: `pay(engine.generate(…))`, streamed where engine and `pay` can.

    `more`: further arguments of `engine.generate`.
    """
    begin = getattr(pay, "begin", None)
    if begin is None or not tells_of_groups(engine):
        answers = engine.generate(prompts, sampling, now, **more)
        return pay(answers) if answers else []
    try:
        return pay(engine.generate(prompts, sampling, now, done=begin, **more))
    finally:
        # After an error in the engine nobody asks for what was begun; after `pay` nothing is left.
        pay.forget()  # type: ignore[attr-defined]


def tells_of_groups(engine: Any) -> bool:
    """Can it be asked to tell of groups as they end, and do those that it stands for hear of that?"""
    while engine is not None:
        if "done" not in inspect.signature(engine.generate).parameters:
            return False
        engine = getattr(engine, "stands_for", None)
    return True
