"""Which prompts come next: shuffled epochs, bad rows skipped and counted, position exactly resumable."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from mmrl.ground.contents import digest
from mmrl.ground.faults import BadRow
from mmrl.ground.printable import logger
from mmrl.ground.seeds import generator
from mmrl.model.preparing import Ahead
from mmrl.model.ranks import Ranks
from mmrl.types import Now, Prompt, Prompts, Rollout

log = logger(__name__)


class Remembers(Protocol):
    """A rollout function with a memory."""

    def start_memory(self) -> Any:
        """A fresh one."""
        ...


class Supply:
    """Hands out prompts in a seeded order; the order depends on nothing but (seed, epoch).

    `check` may raise `BadRow` for a prompt that loads but cannot be used, for example one that is too long. With
    `on_bad="skip"` a bad row is counted, written to `log` and replaced by the next row; with "stop" it ends the run.
    An endless collection is read in its own order. What prompts count (decoded clips, skipped media) joins `counters`.
    With `ahead`, which checks as well, rows are prepared before they are asked for; the prompts are the same.

    Parts in `named_for` remember prompts by their id: then two different rows of one id are an error.

    Of several ranks each reads its share alone, and all learn which rows are bad: the prompts of a step are the same
    for any number of ranks, rank r has r, r + world, … of them.
    """

    def __init__(
        self,
        prompts: Prompts,
        per_step: int,
        seed: int,
        *,
        check: Callable[[Prompt], object] | None = None,
        on_bad: str = "skip",
        log: Path | None = None,
        ahead: Ahead | None = None,
        forget: Callable[[Sequence[Prompt]], None] | None = None,
        ranks: Ranks | None = None,
        named_for: Sequence[str] = (),
    ) -> None:
        if not isinstance(prompts, Prompts):
            raise ValueError(
                f"{type(prompts).__name__} is no collection of prompts: it needs size, __getitem__ and drain. Derive "
                "it from mmrl.types.Prompts, which has defaults."
            )
        if prompts.size == 0:
            raise ValueError("The dataset is empty: there is no prompt to train on.")
        self.prompts = prompts
        self.per_step = per_step
        self.seed = seed
        self.position = 0
        """Rows handed out or skipped so far."""
        self.now: Now | None = None
        """The step that takes, for what is drawn ahead."""
        self.counters: Counter[str] = Counter()
        self._waited = 0.0
        self._check = check
        self._ahead = ahead
        self._forget = forget
        self._on_bad = on_bad
        self.log = log
        self._listed: set[int] = set()
        """Rows in the log: one that is bad again in a later pass is counted again and not listed again."""
        self._orders: dict[int, list[int]] = {}
        self.ranks = Ranks.alone() if ranks is None else ranks
        self.places: list[int] = []
        """Where in the order the prompts stand that `take` returned last."""
        self._owners: dict[int, int] = {}
        """Row -> the rank that got it in this step."""
        self._step: dict[str, list[int]] = {}
        """Prompt id -> places, of what was handed out in this step."""
        self._named_for = named_for
        self._names: dict[str, tuple[int, bytes]] = {}
        """Prompt id -> row and what it holds, as far as they were read; kept only for who remembers them."""
        self._looked: dict[int, Prompt] = {}
        """Row -> prompt, of those that `coming` read."""
        self._memories: dict[int, tuple[Remembers, Any]] = {}
        """Rollout functions and their memories, by object."""

    def take(self, count: int | None = None, *, counted: bool = True) -> list[Prompt]:
        """This rank's share of the next prompts, of which all ranks together get `per_step` by default. Collective.

        `places` then says where in the order they stand. Raises `BadRow` if a whole epoch holds nothing usable.
        """
        wanted = self.per_step if count is None else count
        began = time.monotonic()
        found = self._next(wanted, self.ranks)
        self._waited += time.monotonic() - began
        if counted:
            self.counters.update(self.prompts.drain())
            if self._ahead is not None:
                self.counters.update(self._ahead.drain())
        # A row that others could not use was replaced by one from further on.
        self.places = sorted(found)
        for place in self.places:
            self._step.setdefault(found[place].id, []).append(place)
        return [found[place] for place in self.places]

    def memory(self, part: Remembers) -> Any:
        """What a rollout function remembers of this run, which it started itself (`start_memory`)."""
        # By object: two parts with equal settings remember different things. The part is held, so that its id stays.
        found = self._memories.get(id(part))
        if found is None:
            found = self._memories[id(part)] = (part, part.start_memory())
        return found[1]

    def again(self, place: int) -> Prompt | None:
        """The prompt at a place of the order that was handed out before; None if it cannot be read any more."""
        index = self._index(place)
        try:
            prompt = self.prompts[index]
            if self._check is not None:
                self._check(prompt)
        except BadRow as problem:
            self.counters["data/skipped"] += 1
            log.warning("row %d was asked for again and cannot be used: %s", index, problem)
            return None
        self._step.setdefault(prompt.id, []).append(place)
        return prompt

    def visit(self, place: int) -> int:
        """How often the row at this place of the order has come by then, itself included; 1 in endless data."""
        return 1 + (place // self.prompts.size if self.prompts.size else 0)

    def waited(self) -> float:
        """Seconds in `take` since the last call."""
        seconds, self._waited = self._waited, 0.0
        return seconds

    def new_step(self) -> None:
        """Forget whose places are known: those of prompts that a step asked for are asked about in that step."""
        self._step.clear()
        self._owners.clear()

    def group_places(self, rollouts: Sequence[Rollout]) -> dict[int, int]:
        """Group number -> place in the order of the prompt that it answers; in a step's rollouts of this rank."""
        asked: dict[str, list[int]] = {}
        for rollout in rollouts:
            # A prompt made from another stands at that one's place.
            extra = rollout.prompt.extra
            owner = extra.get("checklist_of", extra.get("made_from", rollout.prompt.id))
            groups = asked.setdefault(owner, [])
            if rollout.group not in groups:
                groups.append(rollout.group)
        places: dict[int, int] = {}
        for owner, groups in asked.items():
            known = self._step.get(owner, [self.position])
            # A prompt that was handed out twice, or answered in several groups: in turn.
            for number, group in enumerate(groups):
                places[group] = known[number * len(known) // len(groups)]
        return places

    def _next(self, wanted: int, ranks: Ranks) -> dict[int, Prompt]:
        """Place -> prompt of this rank's share of the next `wanted` usable ones; the position moves for all ranks."""
        found: dict[int, Prompt] = {}
        bad: set[int] = set()  # since the last usable row
        if self._ahead is not None:
            self._ahead.expect(self._coming(wanted, ranks))
        missing = list(range(wanted))  # slots of the step
        # A look ahead (`peek`) gives nothing to anybody.
        owners = self._owners if ranks is self.ranks else {}
        while missing:
            places = range(self.position, self.position + len(missing))
            rows = [self._index(place) for place in places]
            for slot, row in zip(missing, rows, strict=True):
                # A row that comes again in a step stays with one rank, which gives it other answers then.
                owners.setdefault(row, slot % ranks.world)
            mine = [
                (place, row)
                for place, row in zip(places, rows, strict=True)
                if owners[row] == ranks.rank
            ]
            problems = self._read(mine, found)
            told: dict[int, str] = {}
            for each in ranks.gathered({place: str(why) for place, why in problems.items()}):
                told |= each
            self._skip(list(zip(places, rows, strict=True)), told, bad, problems)
            missing = [
                slot for slot, place in zip(missing, places, strict=True) if place in told
            ]
        return found

    def _read(
        self, rows: Sequence[tuple[int, int]], found: dict[int, Prompt]
    ) -> dict[int, BadRow]:
        """Read and check rows, given as (place, index), into `found`; place -> what is wrong with it."""
        problems: dict[int, BadRow] = {}
        for place, index in rows:
            try:
                prompt = self._usable(index)
            except BadRow as problem:
                problems[place] = problem
                if self._on_bad == "stop":
                    break
                continue
            if self._named_for:
                self._refuse_namesake(index, prompt)
            found[place] = prompt
        return problems

    def _refuse_namesake(self, index: int, prompt: Prompt) -> None:
        """Raise ValueError if another row had this id: what is remembered of one would be told of the other."""
        shapes = [tuple(medium.frames.shape) for medium in prompt.media]
        held = digest((prompt.messages, prompt.answer, prompt.extra, shapes))
        first, known = self._names.setdefault(prompt.id, (index, held))
        if known != held:
            raise ValueError(
                f"{' and '.join(self._named_for)} remember prompts by their id, but the rows {first} and {index} are "
                f"different and both have the id {prompt.id!r}. Give each row an id of its own."
            )

    def _skip(
        self,
        rows: Sequence[tuple[int, int]],
        told: Mapping[int, str],
        bad: set[int],
        own: Mapping[int, BadRow],
    ) -> None:
        """Move on over rows, report those that some rank cannot use, and raise where that shall end the run."""
        for place, index in rows:
            self.position = place + 1
            if place not in told:
                bad.clear()
                continue
            problem = own.get(place) or BadRow(told[place])
            if self._on_bad == "stop":
                raise problem
            self._report(index, problem)
            # A set, so that an epoch which is all bad is noticed even when it begins in the middle.
            bad.add(index)
            if len(bad) >= (self.prompts.size or 1000):
                whole = ", the whole dataset" if self.prompts.size else ""
                raise BadRow(
                    f"{len(bad)} rows in a row cannot be used{whole}; the last one: {problem}"
                ) from problem

    def drop(self, prompts: Sequence[Prompt]) -> None:
        """Prompts that were handed out and are of no use: nothing of them is kept until the step ends."""
        if self._forget is not None and prompts:
            self._forget(prompts)

    def close(self) -> None:
        """End what reads ahead; the next `take` starts it again."""
        if self._ahead is not None:
            self._ahead.close()

    def peek(self) -> Prompt:
        """The next usable prompt, without handing it out, counting or logging; each rank by itself."""
        # Borrowed: bad rows on the way would otherwise be counted and logged twice.
        position, log, counters, ahead = self.position, self.log, self.counters, self._ahead
        self.log, self.counters, self._ahead = None, Counter(), None
        try:
            (prompt,) = self._next(1, Ranks.alone()).values()
            return prompt
        finally:
            self.position, self.log, self.counters = position, log, counters
            self._ahead = ahead

    def coming(self) -> list[Prompt]:
        """This rank's share of the next step's prompts, without handing them out: `take` gives the same. Collective.

        Empty if they cannot be had, which `take` then says.
        """
        before = self.position, self.log, self.counters, self.now, self._owners
        self.log, self.counters, self._owners = None, Counter(), {}
        self.now = None if self.now is None else self.now.following()
        try:
            found = self._next(self.per_step, self.ranks)
            self._looked = {self._index(place): found[place] for place in found}
            return [found[place] for place in sorted(found)]
        except BadRow:
            return []
        finally:
            self.position, self.log, self.counters, self.now, self._owners = before

    @property
    def epoch(self) -> float:
        """Passes over the data so far; 0 for an endless collection."""
        return self.position / self.prompts.size if self.prompts.size else 0.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {"position": self.position}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; bad rows that were logged later will be met again and are forgotten."""
        self.position = int(state["position"])
        if not self.ranks.first:
            return
        if self.log is not None and self.log.is_file():
            rows = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
            kept = [row + "\n" for row in rows if _logged_at(row) < self.position]
            self.log.write_text("".join(kept), encoding="utf-8")
            # Rows of the opening and held-out ones have numbers of their own.
            told = [json.loads(row) for row in kept]
            self._listed = {row["row"] for row in told if row["position"] >= 0}

    def _index(self, position: int) -> int:
        size = self.prompts.size
        if size is None:
            return position
        epoch, offset = divmod(position, size)
        if epoch not in self._orders:
            # Reading ahead crosses the end of an epoch; what lies further back is made again from the seed.
            kept = {n: order for n, order in self._orders.items() if abs(n - epoch) == 1}
            order = torch.randperm(size, generator=generator(self.seed, "epoch", epoch))
            self._orders = {**kept, epoch: order.tolist()}
        return self._orders[epoch][offset]

    def _usable(self, index: int) -> Prompt:
        """A prompt that can be used. Raises `BadRow`."""
        if index in self._looked:
            return self._looked.pop(index)
        if self._ahead is not None:
            return self._ahead.read(index)
        prompt = self.prompts[index]
        if self._check is not None:
            self._check(prompt)
        return prompt

    def _coming(self, wanted: int, ranks: Ranks) -> dict[int, Now | None]:
        """This rank's rows of this call and of one in the next step that asks for as many, should none be bad."""
        following = None if self.now is None else self.now.following()
        coming: dict[int, Now | None] = {}
        for number in range(2 * wanted):
            if number % wanted % ranks.world != ranks.rank:
                continue
            index = self._index(self.position + number)
            if index in self._looked:
                continue
            coming.setdefault(index, self.now if number < wanted else following)
        return coming

    def _report(self, index: int, problem: BadRow) -> None:
        if not self.ranks.first:  # all ranks know of it
            return
        self.counters["data/skipped"] += 1
        if self.log is not None and index not in self._listed:
            self._listed.add(index)
            entry = {"position": self.position - 1, "row": index, "reason": str(problem)}
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


def _logged_at(row: str) -> float:
    """The position a line of the log speaks of; a torn line is of the future."""
    try:
        return json.loads(row)["position"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf
