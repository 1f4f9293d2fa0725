"""A run that earns nothing says, once, what its answers look like: mostly it is their form or length, not the model."""

from __future__ import annotations

from collections.abc import Sequence

from mmrl.ground.progress import Progress
from mmrl.types import Rollout

STEPS = 20
"""Steps in a row without any reward after which it is said."""
SHOWN, LONGEST = 2, 300
"""Answers that are shown, and characters of each."""


class Stuck:
    """Watches the rewards of each step."""

    def __init__(self) -> None:
        self.steps = 0
        """Steps in a row of which no answer earned anything."""
        self._told = False

    def observe(self, rollouts: Sequence[Rollout]) -> None:
        """Look at the answers of a step."""
        if not rollouts:
            return
        earned = any((rollout.reward or 0.0) > 0 for rollout in rollouts)
        self.steps = 0 if earned else self.steps + 1
        if self.steps >= STEPS and not self._told:
            self._told = True
            Progress.say(told(rollouts, self.steps))


def told(rollouts: Sequence[Rollout], steps: int) -> str:
    """What to say about answers none of which earned anything."""
    # Of different questions, as far as there are some.
    first = {rollout.group: rollout for rollout in reversed(rollouts)}
    answers = [_line(rollout) for rollout in list(reversed(first.values()))[:SHOWN]]
    cut = sum(rollout.stop == "length" for rollout in rollouts)
    advice = "Compare their form with what is paid: mmrl preview, --data.style, --data.prompt."
    if 2 * cut > len(rollouts):
        advice = f"{cut} of {len(rollouts)} were cut: raise --sampling.max-tokens."
    head = f"No answer has earned anything in {steps} steps. They look like this:"
    return "\n".join([head, *answers, advice])


def _line(rollout: Rollout) -> str:
    """An answer on one line, with its truth."""
    text = " ".join(rollout.text.split())
    short = text if len(text) <= LONGEST else f"{text[: LONGEST - 30]} … {text[-27:]}"
    truth = " ".join(str(rollout.prompt.answer).split())[:LONGEST]
    return f"  {short!r} ({len(rollout.tokens)} tokens, {rollout.stop}; truth: {truth!r})"
