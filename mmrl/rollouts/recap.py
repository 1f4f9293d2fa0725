"""Rollouts of RECAP (arXiv 2510.21978): sampled answers to most data sets, the label itself for some.

A prompt of a labelled domain is not sampled: its label, the column `target` or else its answer, is a group of one with
origin "label" and role POLICY, which the objective learns token by token. A label that holds special tokens is left out
and counted (`label/unusable`). All other prompts are answered as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mmrl.ground.domains import domain_of
from mmrl.ground.faults import BadRow
from mmrl.ground.printable import logger
from mmrl.objectives.base import LABEL, AnswerKind
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import (
    LABEL_TRIES,
    LabelRollout,
    Pay,
    RolloutFunction,
    by_group,
    renumbered,
)
from mmrl.rollouts.prompt_order import Supply
from mmrl.types import Now, Prompt, Rollout, Sampling

log = logger(__name__)


@dataclass(frozen=True)
class LabelsOfSome(RolloutFunction):
    """G answers to each prompt, and the label alone for prompts of the labelled domains."""

    labelled: frozenset[str]
    """Names of the domains."""
    encode: Callable[[str], Tensor]
    """Text -> token ids with the end token, `Processing.encode_answer`."""
    prompt_ids: Callable[[Prompt], Tensor]
    """Ids of a prompt as the model reads it."""

    def brings(self) -> tuple[AnswerKind, ...]:
        """Labels in groups of their own."""
        return (LABEL,) if self.labelled else ()

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        for _ in range(LABEL_TRIES):
            found = self._answered(engine, pay, supply, sampling, now)
            # Collective: a rank without answers waits for nobody.
            if supply.ranks.most(len(found)):
                return found
        raise BadRow(
            f"No label of {LABEL_TRIES} steps in a row can be used; the log names each of them."
        )

    def _answered(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        """The step's prompts with their groups, numbered in the order of the prompts."""
        prompts = supply.take()
        is_label = [domain_of(prompt.extra) in self.labelled for prompt in prompts]
        sampled = [n for n, label in enumerate(is_label) if not label]
        groups: dict[int, list[Rollout]] = {}
        if sampled:
            asked = [prompts[number] for number in sampled]
            for group in by_group(pay(engine.generate(asked, sampling, now))):
                groups[sampled[group[0].group]] = group
        for number, label in enumerate(is_label):
            if label:
                groups[number] = self._label(prompts[number], supply)
        return renumbered([groups[number] for number in sorted(groups) if groups[number]])

    def _label(self, prompt: Prompt, supply: Supply) -> list[Rollout]:
        """The label as a group of one; none if its text cannot be an answer."""
        try:
            return [LabelRollout(self.encode, self.prompt_ids).label(0, prompt)]
        except BadRow as error:  # a special token in it would be read as structure
            supply.counters["label/unusable"] += 1
            log.warning("%r: its label is left out: %s", prompt.id, error)
            return []
