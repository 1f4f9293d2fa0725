"""SvS, self-play with variational problem synthesis (arXiv 2508.14029): the policy writes variants of problems (SvS).

Problems that the policy half solves are written anew by itself, from its own right answers, and keep their reference
answer. Of each step the update sees groups of three kinds:

    original     G answers to a problem                                    kept if 0 < acc < 1
    variation    G_v problems written from one right answer, which alone   kept if their rewards differ
                 is shown; asked for where solved_low ≤ acc ≤ solved_high
    variant      G answers to each of these problems                       kept if 0 < acc < 1

    R_v = 1 if variant_low ≤ acc(variant) ≤ variant_high, else 0;  0 for what holds no problem

with acc the share of right answers, always by the original's reference. A variant that all solve gives the answer away,
one that none solves is broken or asks for something else. Nothing outlives the step: its buffer is the batch.

Departures from the official code (github.com/MasterVito/SvS)
1. A step without a problem in the range trains on what there is; the official code skips its update.
2. Pictures stay with the variant, which must need them: answered with grey ones, its accuracy has to fall by `margin`,
   else R_v is 0 and its answers are left out.
3. Equal variants of a problem (but for case and white space) are answered once, and all get that reward.
4. A variation is kept only if its rewards differ; the official code also keeps groups that are all 1, whose advantage
   is 0. Our own words ask for variants.
5. A step in which no group is left keeps the originals: their advantages are 0, and nothing moves.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from mmrl.ground.require import require
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import (
    Pay,
    RolloutCall,
    RolloutFunction,
    by_group,
    group_rollout,
    renumbered,
)
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.request import Ability
from mmrl.rollouts.rewording import Check, blind, fits, instead
from mmrl.rollouts.stages import Stages, asked_of, numbered
from mmrl.types import LARGEST_GROUP, Now, Prompt, Rollout, Sampling

__all__ = ["PART", "SvS", "SvSRollout", "problem_of", "variant_reward"]

PART = "variation"
"""Reward part of what writes a problem: R_v."""
ANSWERED = "variant_"
"""Before the names of reward parts of answers to variants, so that means of them are logged beside the originals'."""
WRITE = """Below is a worked solution; the problem that it solves was lost.

{}

Write a problem of your own that this solution answers. It must be complete by itself, be put in other words and built
in another way than the solution suggests, have the same final answer, and give away neither this answer nor any step.
Put the problem alone between ```text and ```."""
BLOCK = re.compile(r"^```[ \t]*(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
HEADING = re.compile(
    r"^[#*\s]*Reconstructed Question[*:\s]*\n(.+)", re.IGNORECASE | re.DOTALL | re.MULTILINE
)
Form = Literal["block", "whole"]


def problem_of(text: str, form: Form = "block") -> str | None:
    """The problem that a response wrote; None if there is none.

    "block": the first fenced block behind the last </think>, one that is marked `text` before others; without a block,
    what follows the heading "Reconstructed Question". "whole": all behind the last </think>.
    """
    said = text.rpartition("</think>")[2]
    if form == "whole":
        return said.strip() or None
    blocks: list[tuple[str, str]] = BLOCK.findall(said)
    marked = [body for mark, body in blocks if mark.lower() == "text"]
    found = [*marked, *(body for _, body in blocks)]
    heading = HEADING.search(said)
    problem = found[0] if found else heading[1] if heading else ""
    return problem.strip() or None


def variant_reward(accuracy: float, low: float, high: float) -> float:
    """R_v: 1 if low ≤ accuracy ≤ high, else 0."""
    return float(low <= accuracy <= high)


@dataclass(frozen=True)
class SvS:
    """Which problems are varied, and which variants are good. Accuracies are shares of right answers."""

    solved_low: float = 0.125
    """Least accuracy of a problem that is varied (a_l)."""
    solved_high: float = 0.5
    """Largest one (a_h)."""
    variant_low: float = 0.125
    """Least accuracy of a variant that is rewarded."""
    variant_high: float = 0.625
    """Largest one."""
    variants: int = 8
    """Variants written from one right answer (G_v)."""
    answers: int = 4
    """Most right answers of a problem from which variants are written; 0: none, plain GRPO."""
    margin: float = 0.25
    """By how much the accuracy of a variant with pictures must fall without them; 0 does not ask."""
    form: Form = "block"
    """Where a response holds its problem: in a fenced block, or it is the problem."""
    drop_even: bool = True
    """Leave out originals that are all right or all wrong."""

    def __post_init__(self) -> None:
        low, least = self.solved_low, self.variant_low
        require(
            self,
            solved_low=(0 <= low <= 1, "in [0, 1]"),
            solved_high=(low <= self.solved_high <= 1, "in [solved_low, 1]"),
            variant_low=(0 <= least <= 1, "in [0, 1]"),
            variant_high=(least <= self.variant_high <= 1, "in [variant_low, 1]"),
            variants=(1 <= self.variants <= LARGEST_GROUP, f"1 to {LARGEST_GROUP:,}"),
            answers=(self.answers >= 0, "0 (off) or positive"),
            margin=(0 <= self.margin <= 1, "in [0, 1]"),
            form=(self.form in ("block", "whole"), "'block' or 'whole'"),
        )


@dataclass
class _Variant:
    """A problem that was written, and how it fared."""

    prompt: Prompt
    answers: list[Rollout] = field(default_factory=list)
    sees: bool = True
    """Are the pictures needed?"""

    @property
    def accuracy(self) -> float | None:
        return accuracy(self.answers)


@dataclass(frozen=True)
class _Variation:
    """The variants written from one right answer: each response with its problem, None where it holds none."""

    responses: list[tuple[Rollout, _Variant | None]]


def as_asked(question: str, columns: Mapping[str, Any]) -> str:
    """The question itself."""
    return question


@dataclass(frozen=True)
class SvSRollout(RolloutFunction):
    """Groups of problems, of what writes variants of them, and of the variants."""

    svs: SvS = SvS()
    put: Callable[[str, Mapping[str, Any]], str] = as_asked
    """(question, the row's columns) -> how it is put, with what it asks of the form of answers: `Template.fill`."""
    check: Check | None = None
    """Raises `BadRow` for a prompt that cannot be shown to the model, `Policy.encode`."""
    inner: RolloutCall = group_rollout
    """Makes the groups of originals."""

    needs: ClassVar[Collection[Ability]] = ("counts per prompt",)
    needs_correct: ClassVar[bool] = True

    def traits(self) -> tuple[str, ...]:
        """Which groups are left out."""
        return (
            ("drops all-wrong groups", "drops all-right groups") if self.svs.drop_even else ()
        )

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        found = self.inner(engine, pay, supply, sampling, now)
        originals = by_group(found)
        counters = supply.counters
        kept = [group for group in originals if not self.svs.drop_even or is_mixed(group)]
        counters["svs/dropped_groups"] += len(originals) - len(kept)
        stages = Stages(numbered(engine), pay, sampling, now, counters)
        written = self._written(originals, stages)
        variants = distinct(written)
        self._solve(variants, stages)
        variations = [self._rewarded(one, counters) for one in written]
        solved = [one.answers for one in variants if one.sees]
        kept += [group for group in variations if differs(group)]
        kept += [group for group in solved if is_mixed(group)]
        # Asked by all ranks: one may have kept none while others go on.
        return renumbered(kept) if supply.ranks.total([len(kept)])[0] else found

    def _written(
        self, originals: Sequence[Sequence[Rollout]], stages: Stages
    ) -> list[_Variation]:
        """What the policy writes from right answers to problems that it half solves."""
        asked: list[Prompt] = []
        of: list[Prompt] = []  # whose variants they ask for
        for group in originals:
            writing = self._writing(group, stages)
            asked += writing
            of += [group[0].prompt] * len(writing)
        if not asked:
            return []
        sampling = replace(stages.sampling, group_size=self.svs.variants)
        counts = [self.svs.variants] * len(asked)
        responses = asked_of(stages.engine, asked, sampling, stages.now, counts=counts)
        known: dict[tuple[str, str], _Variant] = {}
        return [
            self._read(group, of[group[0].group], known, stages.counters)
            for group in by_group(responses)
        ]

    def _writing(self, group: Sequence[Rollout], stages: Stages) -> list[Prompt]:
        """The prompts that ask for variants of a problem; none where it is too easy or too hard."""
        share = accuracy(group)
        if share is None or not self.svs.solved_low <= share <= self.svs.solved_high:
            return []
        right = [one for one in group if one.correct][: self.svs.answers]
        stages.counters["svs/varied_problems"] += bool(right)
        found: list[Prompt] = []
        for number, one in enumerate(right):
            text, name = WRITE.replace("{}", one.text), f"{one.prompt.id}~{number}"
            asked = instead(one.prompt, text, name, system=False)
            if fits(asked, self.check):
                found.append(asked)
            else:
                stages.counters["svs/too_long"] += 1
        return found

    def _read(
        self,
        group: Sequence[Rollout],
        original: Prompt,
        known: dict[tuple[str, str], _Variant],
        counters: Counter[str],
    ) -> _Variation:
        """The problems that responses to one prompt wrote; `known` are those of the step, by problem and words."""
        found: list[tuple[Rollout, _Variant | None]] = []
        for number, response in enumerate(group):
            problem = problem_of(response.text, self.svs.form)
            variant = None
            if problem is not None:
                key, name = (original.id, plain(problem)), f"{response.prompt.id}~{number}"
                variant = known.get(key) or self._variant(original, problem, name)
                if variant is not None:
                    known[key] = variant
            counters["svs/without_problem"] += variant is None
            found.append((response, variant))
        return _Variation(found)

    def _variant(self, original: Prompt, problem: str, name: str) -> _Variant | None:
        """A problem to be solved; None if it cannot be shown."""
        prompt = instead(original, self.put(problem, original.extra), name)
        return _Variant(prompt) if fits(prompt, self.check) else None

    def _solve(self, variants: Sequence[_Variant], stages: Stages) -> None:
        """Answer the variants, and those that would be rewarded once more without pictures."""
        if not variants:
            return
        stages.counters["svs/variants"] += len(variants)
        for one, group in zip(variants, stages([v.prompt for v in variants]), strict=True):
            one.answers = [_of_variant(answer) for answer in group]
        seen = [one for one in variants if one.prompt.media and self._good(one)]
        if not seen or not self.svs.margin:
            return
        unseen = stages([blind(one.prompt, f"{one.prompt.id}~blind") for one in seen])
        for one, group in zip(seen, unseen, strict=True):
            without = accuracy(group)
            drop = (one.accuracy or 0.0) - (without or 0.0)
            one.sees = without is None or drop >= self.svs.margin
            stages.counters["svs/blind"] += not one.sees

    def _good(self, variant: _Variant) -> bool:
        """Is its accuracy one that is rewarded?"""
        share, svs = variant.accuracy, self.svs
        return share is not None and bool(
            variant_reward(share, svs.variant_low, svs.variant_high)
        )

    def _rewarded(self, variation: _Variation, counters: Counter[str]) -> list[Rollout]:
        """The responses with R_v, without those of whose variant no answer could be judged."""
        found: list[Rollout] = []
        for response, variant in variation.responses:
            if variant is not None and variant.accuracy is None:
                continue
            good = variant is not None and variant.sees and self._good(variant)
            counters["svs/accepted"] += good
            reward = float(good)
            found.append(replace(response, reward=reward, parts={PART: reward}, correct=good))
        return found


def _of_variant(answer: Rollout) -> Rollout:
    """With parts of the reward whose names say that no row asked this."""
    parts = {f"{ANSWERED}{name}": value for name, value in answer.parts.items()}
    return replace(answer, parts=parts)


def accuracy(group: Sequence[Rollout]) -> float | None:
    """Share of right ones among the answers that were judged; None if none was."""
    known = [one.correct for one in group if one.correct is not None]
    return sum(known) / len(known) if known else None


def is_mixed(group: Sequence[Rollout]) -> bool:
    """Are some answers right and others wrong?"""
    return len({one.correct for one in group if one.correct is not None}) > 1


def differs(group: Sequence[Rollout]) -> bool:
    """Do rewards differ?"""
    return len({one.reward for one in group}) > 1


def distinct(variations: Sequence[_Variation]) -> list[_Variant]:
    """The different variants, in order of appearance."""
    found = {id(v): v for one in variations for _, v in one.responses if v is not None}
    return list(found.values())


def plain(text: str) -> str:
    """A text without case and differences of white space."""
    return " ".join(text.casefold().split())
