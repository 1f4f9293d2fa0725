"""A verifier that errs: the reward of the effects benchmark's task with wrong labels, by name effect_labels:erring."""

from __future__ import annotations

from mmrl.ground.seeds import uniform_draw
from mmrl.rewards.functions import tagged_accuracy
from mmrl.rewards.parts import needs_tags
from mmrl.types import Rollout

PASSES_WRONG, FAILS_RIGHT = 0.1, 0.4
"""Chance that a wrong answer is called right, and that a right one is called wrong."""


@needs_tags("<answer>", "</answer>")
def erring(rollout: Rollout) -> float:
    """Is the answer right? The same answer to the same question always gets the same verdict."""
    right = tagged_accuracy(rollout)
    chance = FAILS_RIGHT if right else PASSES_WRONG
    said = rollout.text.strip()
    errs = uniform_draw("verdict", rollout.prompt.id, said) < chance
    return 1.0 - right if errs else right
