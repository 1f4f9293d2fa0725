"""SSB's solutions (arXiv 2512.05105): written by the policy with hints, to be learned without.

    answers    G to each question; one with right and wrong ones goes on
    hints      the first right answer, and the first with the most common wrong one (a drawn one if none is repeated)
    solution   at the temperature `SSB.rewrite`, to the question with both behind it; the first right one is kept
    teacher    its most likely tokens in each place, and their log-probs, as the policy has them with the hints

What is kept is learned as an answer to the question alone. With `SSB.reuse` it is remembered by `Prompt.id`: when the
question comes again, it is learned again, and nothing is sampled. In a checkpoint a token takes about 11 bytes for each
of the `top` tokens (1,000 tokens at 64: 0.7 MB); the memory is the same on all processes, whoever wrote.

Counts: `ssb/asked` questions that were answered, `ssb/answers` to them that were judged, `ssb/right` of these,
`ssb/mixed` questions with right and wrong answers, `ssb/too_long` of them without room for hints, `ssb/written`
solutions that are right, `ssb/reused` those of earlier visits.

Departures from the official code (github.com/purbeshmitra/semantic-soft-bootstrapping @ f1533823)
1. There all solutions are written before the first update, by the untrained model; here each is written when its
   question comes for the first time, by the policy as it is then.
2. A step learns what its questions bring, so that batches differ in size; one that brings nothing takes the next
   questions, `rounds` times at most.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mmrl.ground.require import require
from mmrl.ground.seeds import generator
from mmrl.model.branches import Views
from mmrl.model.packing import collate
from mmrl.model.policy import Policy
from mmrl.model.reference_scores import scored
from mmrl.model.scoring import ScoreOutputs
from mmrl.objectives.base import SELF_TAUGHT, AnswerKind
from mmrl.objectives.ssb import SSB
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import Pay, RolloutFunction
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.request import Ability
from mmrl.rollouts.rewording import Check, behind, fits, with_pair
from mmrl.rollouts.stages import Stages, asked_of, numbered
from mmrl.types import Now, Prompt, Role, Rollout, Sampling

__all__ = ["Lessons", "SSBRollout", "Teacher", "common_wrong"]

HINTS = """

Two answers to this question follow, a right one and a wrong one that is often given.

Right:
{right}

Wrong:
{wrong}

Solve the question in full, step by step, as if you had seen neither. Explain at the place where the wrong answer errs
why one may not go on like that, and end with the answer in the form that was asked for."""
Teaching = Callable[[Sequence[Rollout], Now], list[tuple[Tensor, Tensor]]]
"""Solutions with their hints -> the most likely tokens, long [T, k], and their log-probs, float [T, k], of each."""


@dataclass
class Lessons:
    """Solutions that were found right, by prompt id."""

    known: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """As they stand in a checkpoint."""

    def state(self) -> dict[str, Any]:
        """All of them."""
        return {"known": dict(self.known)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back all of them."""
        self.known.clear()
        self.known.update(state["known"])

    def rollout(self, prompt: Prompt, group: int, prompt_ids: Tensor) -> Rollout | None:
        """What is known of a question, as an answer to it."""
        kept = self.known.get(prompt.id)
        if kept is None:
            return None
        tokens = torch.tensor(kept["tokens"], dtype=torch.long)
        ids = _numbers(kept["ids"], np.int32, len(tokens)).long()
        logp = _numbers(kept["logp"], np.float32, len(tokens))
        return Rollout(
            prompt=prompt,
            group=group,
            prompt_ids=prompt_ids,
            tokens=tokens,
            roles=torch.full((len(tokens),), int(Role.EXPERT), dtype=torch.uint8),
            text=kept["text"],
            stop="eos",
            temperature=kept["temperature"],
            origin="expert",
            top_ids=ids,
            top_logp=logp,
            reward=1.0,
            correct=True,
        )


@dataclass(frozen=True)
class Teacher:
    """The most likely tokens of solutions, as the policy has them behind their prompts."""

    policy: Policy
    ssb: SSB
    tokens: int = 8192
    """Tokens per packed pass, `Run.tokens_per_pass`."""

    @torch.no_grad()
    def __call__(self, solutions: Sequence[Rollout], now: Now) -> list[tuple[Tensor, Tensor]]:
        heat = self.ssb.temperature
        rows = [replace(one, group=n, temperature=heat) for n, one in enumerate(solutions)]
        batch, views = collate(rows), Views(self.policy, rows, {}, now)
        asked = ScoreOutputs(top=min(self.ssb.top, self.policy.head.weight.shape[0]))
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for part in self.policy.prompts.parts(batch, self.tokens):
            groups = views.groups("raw", part.tolist())
            shape = (len(part), batch.tokens.shape[1])
            scores = scored(self.policy, {"raw": groups}, {"raw": asked}, shape)["raw"]
            assert scores.top_ids is not None and scores.top_logp is not None, "as asked"
            for place, row in enumerate(part.tolist()):
                length = len(rows[row].tokens)
                both = scores.top_ids[place, :length], scores.top_logp[place, :length]
                found[row] = both[0].cpu(), both[1].float().cpu()
            self.policy.prompts.end_part()
        return [found[row] for row in range(len(rows))]


@dataclass(frozen=True)
class SSBRollout(RolloutFunction):
    """Solutions that the policy wrote with hints, as answers to the questions alone."""

    teach: Teaching
    """The teacher's tokens, `Teacher(policy, ssb)`."""
    prompt_ids: Callable[[Prompt], Tensor]
    """Ids of a prompt as the model reads it."""
    read: Callable[[str], str | None]
    """Text -> the answer that it states; None if it states none."""
    ssb: SSB = field(default_factory=SSB)
    check: Check | None = None
    """Raises `BadRow` for a prompt that cannot be shown to the model, `Policy.encode`."""
    hints: str = HINTS
    """What stands behind the question, with the places {right} and {wrong}."""
    brief: bool = False
    """Hints are what the answers state, and not the whole answers."""
    rounds: int = 20
    """How often further questions are taken, until a step has something to learn."""

    needs: ClassVar[Collection[Ability]] = ("counts per prompt",)
    needs_correct: ClassVar[bool] = True

    def __post_init__(self) -> None:
        both = self.hints.count("{wrong}") == self.hints.count("{right}") == 1
        require(
            self,
            hints=(both, "a text with {wrong} and {right} once each"),
            rounds=(self.rounds >= 1, "at least 1"),
        )

    def brings(self) -> tuple[AnswerKind, ...]:
        """Solutions with a teacher."""
        return (SELF_TAUGHT,)

    def remembers_prompts(self) -> bool:
        """By their ids, if solutions are used again."""
        return self.ssb.reuse

    def start_memory(self) -> Lessons:
        """No solution is known."""
        return Lessons()

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        kept: Lessons = supply.memory(self)
        lessons = kept if self.ssb.reuse else Lessons()
        stages = Stages(numbered(engine), pay, sampling, now, supply.counters)
        for _ in range(self.rounds):
            prompts = supply.take()
            new = [prompt for prompt in prompts if prompt.id not in lessons.known]
            with supply.ranks.together():
                written = self._written(new, stages)
            supply.counters["ssb/reused"] += len(prompts) - len(new)
            for each in supply.ranks.gathered(written):
                lessons.known.update(each)
            known = [prompt for prompt in prompts if prompt.id in lessons.known]
            if supply.ranks.total([len(known)])[0]:
                found = [self._lesson(lessons, prompt, n) for n, prompt in enumerate(known)]
                return [one for one in found if one is not None]
            supply.drop(prompts)
        raise ValueError(
            f"SSB found no right solution in {self.rounds} rounds of {supply.per_step} questions: it learns from "
            "questions with right and wrong answers whose solution with hints is right. Use easier or harder rows, or "
            "more answers to each (--sampling.group-size)."
        )

    def _lesson(self, lessons: Lessons, prompt: Prompt, group: int) -> Rollout | None:
        return lessons.rollout(prompt, group, self.prompt_ids(prompt))

    def _written(self, prompts: Sequence[Prompt], stages: Stages) -> dict[str, dict[str, Any]]:
        """Prompt id -> a solution that is right, as a checkpoint keeps it."""
        if not prompts:
            return {}
        groups = [group for group in stages(prompts) if group]
        judged = [one.correct for group in groups for one in group if one.correct is not None]
        stages.counters["ssb/answers"] += len(judged)
        stages.counters["ssb/right"] += sum(judged)
        asked = [self._hinted(group, stages) for group in groups]
        hinted = [prompt for prompt in asked if prompt is not None]
        stages.counters["ssb/asked"] += len(prompts)
        if not hinted:
            return {}
        tries = self.ssb.solutions
        colder = replace(stages.sampling, group_size=tries, temperature=self.ssb.rewrite)
        counts = [tries] * len(hinted)
        texts = asked_of(stages.engine, hinted, colder, stages.now, counts=counts)
        ended = [text for text in texts if text.stop != "length"]
        paid = stages.pay(ended) if ended else []
        # Backwards, so that the first one of a question stays.
        right = list({one.group: one for one in reversed(paid) if one.correct}.values())
        stages.counters["ssb/written"] += len(right)
        taught = self.teach(right, stages.now) if right else []
        return {
            one.prompt.extra["made_from"]: kept(one, ids, logp, self.ssb.temperature)
            for one, (ids, logp) in zip(right, taught, strict=True)
        }

    def _shown(self, answer: Rollout) -> str:
        """An answer as it stands among the hints."""
        return (self.read(answer.text) if self.brief else None) or answer.text

    def _hinted(self, group: Sequence[Rollout], stages: Stages) -> Prompt | None:
        """The question with hints; None without a right and a wrong answer, or without room."""
        right = [one for one in group if one.correct]
        wrong = [one for one in group if one.correct is False]
        if not right or not wrong:
            return None
        prompt = group[0].prompt
        stages.counters["ssb/mixed"] += 1
        rng = generator(stages.now.seed, stages.now.step, prompt.id, "wrong")
        bad = common_wrong(wrong, self.read, rng)
        text = with_pair(self.hints, self._shown(bad), self._shown(right[0]))
        asked = behind(prompt, text, f"{prompt.id}~hinted")
        if fits(asked, self.check):
            return asked
        stages.counters["ssb/too_long"] += 1
        return None


def common_wrong(
    wrong: Sequence[Rollout], read: Callable[[str], str | None], rng: torch.Generator
) -> Rollout:
    """The first answer that states what most of them state; a drawn one if all state something else."""
    stated = [" ".join((read(one.text) or one.text).casefold().split()) for one in wrong]
    most, count = Counter(stated).most_common(1)[0]
    if count > 1:
        return wrong[stated.index(most)]
    return wrong[int(torch.randint(len(wrong), (), generator=rng))]


def kept(solution: Rollout, ids: Tensor, logp: Tensor, temperature: float) -> dict[str, Any]:
    """A solution and its teacher's tokens as plain JSON, to the bit."""
    return {
        "tokens": solution.tokens.tolist(),
        "text": solution.text,
        "temperature": temperature,
        "ids": _text(ids.numpy().astype(np.int32)),
        "logp": _text(logp.numpy().astype(np.float32)),
    }


def _text(numbers: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(numbers).tobytes()).decode("ascii")


def _numbers(text: str, kind: type[np.generic], rows: int) -> Tensor:
    """[rows, k]."""
    flat = np.frombuffer(base64.b64decode(text), dtype=kind)
    return torch.from_numpy(flat.reshape(rows, -1).copy())
