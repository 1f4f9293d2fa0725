"""Answers that the policy did not write, put next to its own: labels that are trained, experts that are only scored.

`WithLabel` (ViSurf, arXiv 2510.10606) adds each prompt's label to its group with origin "label" and role POLICY, so
that it is trained like a rollout. Two of its reward controls are done here, the third (smoothing) by the objective:

    align          the label is written as the model writes: `aligned` with the order of keys and the layout given
    no thinking    it is paid by the run's rewards, with the parts named in `thinking` left out

`WithExpert` (CalibRL, arXiv 2602.20197) adds one expert answer with origin "expert" and role EXPERT: no mask holds its
tokens, so it is scored and never trained.

Both are added after the inner rollout function has chosen its groups, so filters by pass rate never see them. A prompt
without such an answer, or with one that holds special tokens, keeps its group as it is and is counted
(`label/missing`, `expert/missing`). Log-probs of the sampler do not exist for them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from mmrl.ground.faults import BadRow
from mmrl.ground.require import require
from mmrl.ground.seeds import uniform_draw
from mmrl.objectives.base import EXPERT, LABEL, AnswerKind
from mmrl.objectives.visurf import aligned, pay_without_thinking
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import (
    Pay,
    RolloutCall,
    RolloutFunction,
    by_group,
    chain,
    group_rollout,
)
from mmrl.rollouts.prompt_order import Supply
from mmrl.types import Now, Prompt, Role, Rollout, Sampling

__all__ = ["WithExpert", "WithLabel"]

Encode = Callable[[str], Tensor]
"""Text -> token ids with the end token, `Processing.encode_answer`."""


@dataclass(frozen=True)
class WithLabel(RolloutFunction):
    """The label as a member of each group."""

    encode: Encode
    weights: Mapping[str, float] = field(default_factory=dict)
    """Reward part -> weight, `Rewards.weights`; needed if `thinking` names parts."""
    thinking: tuple[str, ...] = ()
    """Reward parts that pay for thinking, which a label has none of."""
    column: str = "target"
    """Column of the row that holds the label; "" takes the row's answer."""
    layout: str = "{}"
    """How the label is written, with one place for it, for example <answer>{}</answer>."""
    keys: tuple[str, ...] = ()
    """Order of the keys of JSON objects in the label."""
    inner: RolloutCall = group_rollout
    """Makes the groups."""

    def __post_init__(self) -> None:
        aligned(
            "", self.keys, self.layout
        )  # raises for a layout without a place, before a run starts
        if unknown := sorted(set(self.thinking) - set(self.weights)):
            raise ValueError(
                f"WithLabel.thinking names {unknown}, but the weights are those of {sorted(self.weights)}; "
                "pass weights=rewards.weights and name parts of it."
            )
        refuse_annealing_inside(self)

    def brings(self) -> tuple[AnswerKind, ...]:
        """Labels in the groups."""
        return (LABEL,)

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        # First the groups, then the labels: no filter of the inner function sees a label.
        groups = by_group(self.inner(engine, pay, supply, sampling, now))
        labels: list[Rollout] = []
        for group in groups:
            label = _given(group, self.text, self.encode, "label", Role.POLICY, sampling)
            if label is not None:
                labels.append(label)
        paid = {label.group: self._without_thinking(label) for label in pay(labels)}
        return _joined(groups, paid, supply, "label")

    def text(self, prompt: Prompt) -> str | None:
        """The label as the model would write it; None if the row has none. With `keys`, a text is read as JSON, and
        one that is broken counts as none."""
        label = prompt.answer
        if self.column:
            label = prompt.extra.get(self.column)
        # Only with `keys`: a plain text that happens to be JSON is left as it was written.
        if self.keys and isinstance(label, str):
            try:
                label = json.loads(label)
            except (ValueError, RecursionError):  # one row's broken label is a missing one
                return None
        return None if label is None else aligned(label, self.keys, self.layout)

    def missing(self, prompt: Prompt) -> str:
        """The column that this row lacks, or ""."""
        return "" if self.text(prompt) is not None else self.column or "answer"

    def _without_thinking(self, label: Rollout) -> Rollout:
        if not self.thinking:
            return label
        return replace(
            label, reward=pay_without_thinking(label.parts, self.weights, self.thinking)
        )


@dataclass(frozen=True)
class WithExpert(RolloutFunction):
    """An expert's answer next to each group."""

    encode: Encode
    column: str = "solution"
    """Column of the row that holds the expert's answer."""
    probability: float = 1.0
    """Probability that a prompt keeps its expert answer, in [0, 1] (mix_ratio of the official code)."""
    right_above: float | None = None
    """Leave out expert answers whose reward does not exceed this; None keeps all."""
    inner: RolloutCall = group_rollout
    """Makes the groups."""

    def __post_init__(self) -> None:
        require(self, probability=(0 <= self.probability <= 1, "in [0, 1]"))
        refuse_annealing_inside(self)

    def brings(self) -> tuple[AnswerKind, ...]:
        """Experts' answers."""
        return (EXPERT,)

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        groups = by_group(self.inner(engine, pay, supply, sampling, now))
        experts: list[Rollout] = []
        for group in groups:
            coin = uniform_draw(now.seed, now.step, group[0].prompt.id, "expert")
            if coin >= self.probability:
                continue
            expert = _given(group, self.text, self.encode, "expert", Role.EXPERT, sampling)
            if expert is not None:
                experts.append(expert)
        paid = {expert.group: expert for expert in pay(experts)}
        if self.right_above is not None:
            # An expert that the rewards find wrong would pull right answers towards it.
            right = {
                number: expert
                for number, expert in paid.items()
                if (expert.reward or 0.0) > self.right_above
            }
            supply.counters["expert/wrong"] += len(paid) - len(right)
            paid = right
        return _joined(groups, paid, supply, "expert")

    def text(self, prompt: Prompt) -> str | None:
        """The expert's answer; None if the row has none."""
        answer = prompt.extra.get(self.column)
        return None if answer is None else str(answer)

    def missing(self, prompt: Prompt) -> str:
        """The column that this row lacks, or ""."""
        return "" if self.text(prompt) is not None else self.column


def refuse_annealing_inside(outer: RolloutFunction) -> None:
    """Raise ValueError if a part inside says how hot each token is: answers that are added outside would not be."""
    for part in chain(outer)[1:]:
        if "temperature" in part.owns():
            name = type(part).__name__
            raise ValueError(
                f"{type(outer).__name__} adds answers to groups that {name} samples at temperatures of its own, and "
                f"would have them scored at another one. Let {name} be the outermost: {name}(inner=...)."
            )


def _given(
    group: Sequence[Rollout],
    text_of: Callable[[Prompt], str | None],
    encode: Encode,
    origin: Literal["label", "expert"],
    role: Role,
    sampling: Sampling,
) -> Rollout | None:
    """A given answer to the prompt of a group; None without one, or with one that holds special tokens."""
    text = text_of(group[0].prompt)
    return (
        None if text is None else given_answer(group[0], text, encode, origin, role, sampling)
    )


def given_answer(
    beside: Rollout,
    text: str,
    encode: Encode,
    origin: Literal["label", "expert"],
    role: Role,
    sampling: Sampling,
) -> Rollout | None:
    """A given text as a further answer of the group of `beside`; None if it holds special tokens."""
    try:
        tokens = encode(text)
    except BadRow:  # special tokens inside would be read as structure
        return None
    return Rollout(
        prompt=beside.prompt,
        group=beside.group,
        prompt_ids=beside.prompt_ids,
        tokens=tokens,
        roles=torch.full((len(tokens),), int(role), dtype=torch.uint8),
        text=text,
        stop="eos",
        # Scored at the temperature of its group, so that the log-probs can be compared.
        temperature=sampling.temperature or 1.0,
        origin=origin,
    )


def _joined(
    groups: Sequence[Sequence[Rollout]], given: Mapping[int, Rollout], supply: Supply, name: str
) -> list[Rollout]:
    """Each group followed by its given answer."""
    out: list[Rollout] = []
    missing = 0
    for group in groups:
        out += group
        number = group[0].group
        if number in given:
            out.append(given[number])
        else:
            missing += 1
    # Added once, also where it is 0: a count that is always there can be plotted.
    supply.counters[f"{name}/missing"] += missing
    return out
