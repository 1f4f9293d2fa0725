"""PEARL's rollout (arXiv 2511.18437): answer a checklist about the picture first, the question only if it was seen.

For each prompt with a checklist: G answers to the checklist, each paid R_p, the share of its sub-questions that are
right. If the mean of R_p exceeds `PEARL.threshold` (the fidelity gate), or without a checklist, G answers to the
question itself. With `soft_filter` a prompt stays only if the mean of either branch is neither 0 nor 1, and further
prompts are sampled until the step is full. The advantages are the objective's task (`objectives/pearl.py`).

Checklist answers are paid here, by a rule that needs no worker, and not by the run's rewards: those judge answers to
the question. They are in groups of their own, with prompts whose column `checklist_of` names the question.

Our choices, since the training code is not published: prompts behind a closed gate are dropped by the soft filter (all
their rewards are 0 and teach nothing), kept without it; a checklist that does not fit the model's context counts as
none and is counted; a prompt without a checklist stays if the mean of its answers is neither 0 nor 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from mmrl.ground.faults import BadRow
from mmrl.ground.require import require
from mmrl.objectives.base import CHECKLIST, AnswerKind
from mmrl.objectives.pearl import PEARL, gate_open, keeps
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import Pay, RolloutFunction, by_group, first_places, renumbered
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.streaming import paid_answers
from mmrl.types import Now, Prompt, Rollout, Sampling

__all__ = ["ChecklistRollout"]


@dataclass(frozen=True)
class ChecklistRollout(RolloutFunction):
    """Perception answers, gate, reasoning answers, soft filter."""

    ask: Callable[[Prompt], Prompt | None]
    """The prompt that asks the checklist of a prompt; None if it has none."""
    mark: Callable[[Rollout], float | None]
    """R_p of an answer to a checklist, in [0, 1]."""
    pearl: PEARL = field(default_factory=PEARL)
    """Its `threshold` opens the gate; its `part` names the reward of checklist answers."""
    check: Callable[[Prompt], object] | None = None
    """Raises `BadRow` for a checklist prompt that cannot be shown to the model, `Policy.encode`."""
    accuracy: str = "accuracy"
    """Reward part whose mean the soft filter reads; "total" for the sum."""
    max_tokens: int = 0
    """Longest checklist answer in tokens; 0 takes the run's limit."""
    soft_filter: bool = True
    """Keep only prompts that carry signal in either branch, and sample others in their place."""
    rounds: int = 20
    """Most rounds of sampling per step; afterwards the step goes on with what there is."""

    def __post_init__(self) -> None:
        require(
            self,
            rounds=(self.rounds >= 1, "at least 1"),
            max_tokens=(self.max_tokens >= 0, "0 (the run's limit) or positive"),
        )

    def brings(self) -> tuple[AnswerKind, ...]:
        """Answers to checklists, in groups of their own."""
        return (CHECKLIST,)

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        kept: list[_Answered] = []
        full = 0  # prompts that all ranks kept
        for _ in range(self.rounds if self.soft_filter else 1):
            supply.counters["rollout/rounds"] += supply.ranks.first
            prompts = supply.take()
            with supply.ranks.together():
                answered = self._answered(engine, pay, prompts, supply, sampling, now)
                good = answered
                if self.soft_filter:
                    good = [one for one in answered if self._keeps(one)]
            supply.counters["rollout/dropped_groups"] += len(answered) - len(good)
            kept.extend(good)
            full = int(supply.ranks.total([len(kept)])[0])
            if full >= supply.per_step:
                break
        # Fewer than a full step is no error: the rounds are bounded so that a hard set cannot hang the run.
        if not full:
            raise ValueError(
                f"PEARL's soft filter kept no prompt in {self.rounds} rounds of {supply.per_step} prompts: in both "
                "branches every prompt was all right or all wrong. Use easier or harder prompts or checklists, or set "
                "soft_filter=False."
            )
        places = first_places([one.place for one in kept], supply)
        chosen = [one for one in kept if one.place in places]
        supply.counters["rollout/surplus_groups"] += len(kept) - len(chosen)
        groups: list[list[Rollout]] = []
        for one in chosen:
            groups += [group for group in (one.perception, one.reasoning) if group]
        return renumbered(groups)

    def _answered(
        self,
        engine: Engine,
        pay: Pay,
        prompts: Sequence[Prompt],
        supply: Supply,
        sampling: Sampling,
        now: Now,
    ) -> list[_Answered]:
        """Both branches of the prompts that were taken last."""
        perception = self._perception(engine, prompts, supply, sampling, now)
        is_open: list[int] = []
        for i in range(len(prompts)):
            if i not in perception:
                is_open.append(i)  # without a checklist there is no gate to pass
                continue
            seen = mean([answer.reward for answer in perception[i]])
            if gate_open(seen or 0.0, self.pearl.threshold):
                is_open.append(i)
        supply.counters["pearl/gate_closed"] += len(prompts) - len(is_open)
        reasoning: dict[int, list[Rollout]] = {}
        if is_open:
            asked = [prompts[i] for i in is_open]
            answers = paid_answers(engine, pay, asked, sampling, now)
            for group in by_group(answers):
                # The engine numbers groups by the prompts that it was given, those behind an open gate.
                reasoning[is_open[group[0].group]] = group
        answered: list[_Answered] = []
        for i in range(len(prompts)):
            if i in perception or i in reasoning:
                place = supply.places[i]
                both = _Answered(place, perception.get(i, []), reasoning.get(i, []))
                answered.append(both)
        return answered

    def _perception(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        supply: Supply,
        sampling: Sampling,
        now: Now,
    ) -> dict[int, list[Rollout]]:
        """Paid answers to the checklists, by the place of their prompt."""
        asked: dict[int, Prompt] = {}
        for i, prompt in enumerate(prompts):
            if question := self._question(prompt, supply):
                asked[i] = question
        supply.counters["pearl/without_checklist"] += len(prompts) - len(asked)
        if not asked:
            return {}
        short = replace(sampling, max_tokens=self.max_tokens or sampling.max_tokens)
        answers = engine.generate(list(asked.values()), short, now)
        groups = by_group([self._marked(answer) for answer in answers])
        return dict(zip(asked, groups, strict=True))

    def _question(self, prompt: Prompt, supply: Supply) -> Prompt | None:
        question = self.ask(prompt)
        if question is not None and self.check is not None:
            try:
                self.check(question)
            except BadRow:
                supply.counters["pearl/checklist_refused"] += 1
                return None
        return question

    def _marked(self, answer: Rollout) -> Rollout:
        value = self.mark(answer)
        assert value is not None, f"{self.mark} does not mark answers to {answer.prompt.id}"
        return replace(answer, reward=value, parts={self.pearl.part: value})

    def _keeps(self, one: _Answered) -> bool:
        seen = mean([r.reward for r in one.perception])
        values = [self._accuracy(r) for r in one.reasoning]
        # A prompt without a checklist counts as never seen right, and stays for its reasoning alone.
        return keeps(0.0 if seen is None else seen, mean(values))

    def _accuracy(self, rollout: Rollout) -> float | None:
        if self.accuracy == "total":
            return rollout.reward
        if self.accuracy not in rollout.parts:
            raise ValueError(
                f"ChecklistRollout.accuracy is {self.accuracy!r}, but the rewards have {sorted(rollout.parts)}; "
                "name one of them or 'total'."
            )
        return rollout.parts[self.accuracy]


@dataclass(frozen=True)
class _Answered:
    """The answers to one prompt; either branch may be empty."""

    place: int
    """Of the prompt in the order of the data."""
    perception: list[Rollout]
    reasoning: list[Rollout]


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are available; None without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
