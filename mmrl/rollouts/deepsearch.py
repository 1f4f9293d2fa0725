"""DeepSearch's rollout: a tree search answers each prompt; answers to hard ones are kept for their next visit.

    until a prompt has `answers` ended ones, no open leaf, or no room for `width` more nodes:
        grow `width` ways on from the node that is looked at, each one run of tokens
        where none of them ends the answer       look at the best sibling among them
        where some do                            judge them, back one up, look at the best open leaf of the whole tree

All prompts of a step search together, one layer each per call of the engine. Scores, backup: `objectives.deepsearch`.
A search that ends without any answer grows its best open leaf to its end, so that every prompt has one.

Kept answers: where a search was right in at most `hard` of its answers, the right ones are kept. At its next visit such
a prompt is not searched: it is answered independently, and one kept answer takes a place of its group. If then again at
most `hard` are right, new right ones are kept as well; else the prompt is forgotten, and searched when it comes again.
What is kept is a memory of the run: saved with it, the same on all ranks.

A kept answer is of older weights. Its probabilities are those of the present ones (the ratio of the first update is 1),
it has none of the sampler, and it counts under `kept/`, not among the policy's own answers.

Departures from the official code (github.com/smiles724/DeepSearch, commit daf9067b)
1. `nodes` is ours, as is the last resort. There the number of rounds is bounded.
2. Which kept answer is drawn, and when a prompt is forgotten, are ours. At most `MOST_KEPT` are kept, the newest.
3. The paper leaves out prompts that are easy in later rounds of its curriculum; here all are answered. `inner` may be a
   filter.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from mmrl.ground.seeds import uniform_draw
from mmrl.ground.traits import Slot
from mmrl.objectives.base import AnswerKind
from mmrl.objectives.deepsearch import DeepSearch
from mmrl.rollouts.engine import Engine
from mmrl.rollouts.groups import Pay
from mmrl.rollouts.prompt_order import Supply
from mmrl.rollouts.request import Ability
from mmrl.rollouts.search_tree import Search
from mmrl.rollouts.stages import StagedRollout, Stages
from mmrl.rollouts.tree_groups import GrowingRollout, Growth
from mmrl.types import Now, Prompt, Role, Rollout, Sampling

__all__ = ["KEPT", "DeepSearchRollout", "Kept", "KeptAnswer", "searched"]

MOST_KEPT = 8
"""Kept answers to a prompt."""
KEPT = AnswerKind("kept", sampled=False)
"""Right answers of earlier visits as trained members of a group."""


@dataclass(frozen=True)
class KeptAnswer:
    """A right answer of an earlier visit."""

    tokens: tuple[int, ...]
    text: str
    stop: str


class Kept:
    """Right answers to hard prompts; a rollout function's memory, the same on all ranks."""

    def __init__(self) -> None:
        self.answers: dict[str, list[KeptAnswer]] = {}
        """Prompt id -> answers, the newest last."""

    def take(self, prompt: str, right: Sequence[KeptAnswer]) -> None:
        """Keep these as well; nothing changes without any."""
        known = self.answers.get(prompt, [])
        new = [answer for answer in dict.fromkeys(right) if answer not in known]
        if known or new:
            self.answers[prompt] = [*known, *new][-MOST_KEPT:]

    def forget(self, prompt: str) -> None:
        """Keep nothing of a prompt."""
        self.answers.pop(prompt, None)

    def state(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            name: [[list(one.tokens), one.text, one.stop] for one in answers]
            for name, answers in self.answers.items()
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        self.answers = {
            name: [
                KeptAnswer(tuple(map(int, tokens)), text, stop) for tokens, text, stop in rows
            ]
            for name, rows in state.items()
        }


News = dict[str, list[KeptAnswer] | None]
"""Prompt id -> right answers to keep; None: forget it."""


@dataclass(frozen=True)
class DeepSearchRollout(StagedRollout):
    """Groups that a tree search finds, or plain ones with a kept answer."""

    deepsearch: DeepSearch = field(default_factory=DeepSearch)

    needs: ClassVar[Collection[Ability]] = ("forks", "likely tokens", "counts per prompt")
    needs_correct: ClassVar[bool] = True

    def brings(self) -> tuple[AnswerKind, ...]:
        """Kept answers."""
        return (KEPT,) if self._keeps else ()

    def owns(self) -> tuple[Slot, ...]:
        """Where answers branch, and how many there are."""
        return ("tree", "counts") if self.deepsearch.search else ()

    def traits(self) -> tuple[str, ...]:
        """Answers of a group share beginnings, and are as many as the search finds."""
        return ("samples trees", "samples beside answers") if self.deepsearch.search else ()

    def remembers_prompts(self) -> bool:
        """Their kept answers."""
        return self._keeps

    def start_memory(self) -> Kept | None:
        """Nothing kept."""
        return Kept() if self._keeps else None

    def __call__(
        self, engine: Engine, pay: Pay, supply: Supply, sampling: Sampling, now: Now
    ) -> list[Rollout]:
        if not self.deepsearch.search:
            return self.inner(engine, pay, supply, sampling, now)
        kept: Kept | None = supply.memory(self)
        step = _Searching(self.inner, deepsearch=self.deepsearch, kept=kept or Kept())
        found = step(engine, pay, supply, sampling, now)
        if kept is not None:
            # All ranks remember what each of them found: the prompt may come to another one next.
            for news in supply.ranks.gathered(step.news):
                _remember(kept, news)
            supply.counters["deepsearch/kept_prompts"] += len(kept.answers) * supply.ranks.first
        return found

    @property
    def _keeps(self) -> bool:
        return self.deepsearch.search and self.deepsearch.hard >= 0


def _remember(kept: Kept, news: News) -> None:
    for prompt, right in news.items():
        if right is None:
            kept.forget(prompt)
        else:
            kept.take(prompt, right)


@dataclass(frozen=True)
class _Searching(GrowingRollout):
    """One step's searches, and what is to be kept of them."""

    deepsearch: DeepSearch = field(default_factory=DeepSearch)
    kept: Kept = field(default_factory=Kept)
    """As it was before the step: a prompt that is there twice is treated alike both times."""
    news: News = field(default_factory=dict)

    needs: ClassVar[Collection[Ability]] = DeepSearchRollout.needs

    def groups(self, stages: Stages, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        """The searched group of each prompt; a plain one with a kept answer where there is any."""
        known = self.kept.answers
        new = [prompt for prompt in prompts if prompt.id not in known]
        old = [prompt for prompt in prompts if prompt.id in known]
        trees = iter(super().groups(stages, new) if new else ())
        plain = iter(self._direct(stages, old) if old else ())
        found: list[list[Rollout]] = []
        for prompt in prompts:
            found.append(next(plain if prompt.id in known else trees))
            self._note(prompt, found[-1])
        return found

    def grow(self, growth: Growth, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        """The searched group of each prompt."""
        return searched(growth, prompts, self.deepsearch)

    def _direct(self, stages: Stages, prompts: Sequence[Prompt]) -> list[list[Rollout]]:
        """Independent answers, and one that was kept in the place of the last."""
        size = stages.sampling.group_size
        if size == 1:
            return stages(prompts)
        groups = stages(prompts, [size - 1] * len(prompts))
        # Of a group without any own answer nobody knows how the prompt was read.
        replayed = [self._drawn(group[0], stages) for group in groups if group]
        paid = stages.pay(replayed) if replayed else []
        for rollout in paid:
            groups[rollout.group].append(rollout)
        stages.counters["deepsearch/replayed"] += len(paid)
        return groups

    def _drawn(self, beside: Rollout, stages: Stages) -> Rollout:
        """One kept answer to the prompt of another answer."""
        answers = self.kept.answers[beside.prompt.id]
        now = stages.now
        coin = uniform_draw(now.seed, now.step, beside.prompt.id, "kept answer")
        answer = answers[int(coin * len(answers))]
        tokens = torch.tensor(answer.tokens, dtype=torch.long)
        return Rollout(
            prompt=beside.prompt,
            group=beside.group,
            prompt_ids=beside.prompt_ids,
            tokens=tokens,
            roles=torch.full_like(tokens, int(Role.POLICY), dtype=torch.uint8),
            text=answer.text,
            stop=answer.stop,
            temperature=stages.sampling.temperature or 1.0,
            origin="kept",
        )

    def _note(self, prompt: Prompt, group: Sequence[Rollout]) -> None:
        """What is to be kept of a prompt: the right ones of a hard one, of others nothing."""
        own = [rollout for rollout in group if rollout.origin == "policy"]
        if not own:  # nothing is known of answers whose reward was not available
            return
        right = [_kept(rollout) for rollout in own if rollout.correct]
        is_hard = len(right) <= self.deepsearch.hard * len(own)
        self.news[prompt.id] = right if is_hard else None


def _kept(rollout: Rollout) -> KeptAnswer:
    tokens = tuple(rollout.tokens.tolist())
    return KeptAnswer(tokens, rollout.text, rollout.stop)


def searched(
    growth: Growth, prompts: Sequence[Prompt], settings: DeepSearch
) -> list[list[Rollout]]:
    """The paid answers that a search of each prompt finds, with the values of their tokens."""
    run = -(
        -growth.sampling.max_tokens // settings.chunks
    )  # rounded up, or the last run would have no room
    searches = [Search(settings, index, run) for index in range(len(prompts))]
    active = searches
    while active:
        asked = [(search, start) for search in active for start in search.starts()]
        pieces = growth.trees.grow([start for _, start in asked], entropy=True)
        for (search, _), piece in zip(asked, pieces, strict=True):
            search.add(piece)
        _judge(growth, active)
        for search in active:
            search.move()
        active = [search for search in active if not search.over]
    growth.counters["deepsearch/nodes"] += sum(search.nodes for search in searches)
    growth.counters["deepsearch/rounds"] += sum(search.rounds for search in searches)
    return _finished(growth, searches)


def _finished(growth: Growth, searches: Sequence[Search]) -> list[list[Rollout]]:
    """The chosen answers of each search, as they were paid, with paths that fit together and values of tokens."""
    chosen = [search.chosen() for search in searches]
    nodes = [node for some in chosen for node in some]
    found: list[list[Rollout]] = [[] for _ in searches]
    # All at once: which tokens answers share is told of those that are asked for together.
    for node, fresh in zip(
        nodes, growth.trees.rollouts([n.number for n in nodes]), strict=True
    ):
        found[fresh.group].append(node.paid(fresh))
    growth.count(found)
    return found


def _judge(growth: Growth, searches: Sequence[Search]) -> None:
    """Pay the answers that have just ended, and tell their searches."""
    ended = [(search, node) for search in searches for node in search.ended()]
    if not ended:
        return
    unpaid = growth.trees.rollouts([node.number for _, node in ended])
    # The tokens of an answer are the same tensor before and after it was paid, and those that were dropped are missing.
    paid = {id(one.tokens): one for one in growth.pay(unpaid)}
    for (search, node), rollout in zip(ended, unpaid, strict=True):
        search.judge(node, paid.get(id(rollout.tokens)))
