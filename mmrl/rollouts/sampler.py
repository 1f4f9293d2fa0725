"""One call of the in-process engine: answers wait for a row, advance, end, and give their row to others.

The host keeps who sits where; tokens and log-probs stay on the device until somebody has ended (`advance.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmrl.ground.progress import Progress
from mmrl.model.budget import Costs
from mmrl.model.decoding import LARGEST_BLOCK, Decoding, PromptBlocks, Widths, blocks_of
from mmrl.model.encoded import Encoded
from mmrl.model.packing import Group, pack
from mmrl.model.policy import Policy
from mmrl.model.processing import Patches
from mmrl.rollouts.advance import Advance, Beginning, Ended, Pace, Table
from mmrl.rollouts.seating import Lengths, Queue, Seat, fill, pieces
from mmrl.types import Prompt, Sampling


@dataclass(frozen=True)
class Asked:
    """A prompt as the engine reads it."""

    group: int
    """Its place among all prompts."""
    prompt: Prompt
    encoded: Encoded
    pixels: tuple[Patches, ...]
    """What it shows."""
    forced: Sequence[Sequence[int]]
    """Tokens that each of its answers begins with; so many answers it gets."""
    first: int
    """Number of its first answer, which keys the draws."""

    @property
    def count(self) -> int:
        return len(self.forced)


@dataclass
class Answer:
    """One answer, begun or not."""

    prompt: int
    """Place of its prompt among those that are asked."""
    forced: Sequence[int]
    tokens: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    stop: str = ""
    number: int = 0
    """Its place among the answers of the prompt."""


class Sampler:
    """One call of the engine: seats for answers, rows that advance, and what becomes of them."""

    def __init__(
        self,
        policy: Policy,
        asked: Sequence[Asked],
        sampling: Sampling,
        seeds: tuple[int, int, str],
        temperature_at: Callable[[int], float] | None,
        rows_at_once: int,
        pace: Pace,
        banned: Sequence[int],
    ) -> None:
        self.policy, self.asked, self.sampling, self.pace = policy, asked, sampling, pace
        self.answers = [
            Answer(place, forced, number=number)
            for place, one in enumerate(asked)
            for number, forced in enumerate(one.forced)
        ]
        counts = [one.count for one in asked]
        self._seeds = seeds
        self._lengths = [_lengths(one) for one in asked]
        self._costs = Costs.of_model(policy.base)
        device = policy.device
        plan = fill(
            self._lengths,
            len(self.answers) / len(asked),
            sampling.max_tokens,
            rows_at_once,
            LARGEST_BLOCK.get(device.type, 64),
            self._costs,
            policy.budget,
        )
        self.plan = plan
        blocks = [blocks_of(one.tokens, plan.block) for one in self._lengths]
        self.queue = Queue(self._order(), counts, plan, blocks)
        places, most = pace.rows(plan.rows), sampling.max_tokens
        kind = torch.promote_types(policy.dtype, torch.float32)
        forced = min(most, max(len(answer.forced) for answer in self.answers))
        table = Table(places, most, forced, device, kind)
        widths = (
            Widths(plan.most, min(max(counts), places), plan.parts) if pace.buckets else None
        )
        self.blocks = PromptBlocks(plan.block, plan.room)
        heat = [
            sampling.temperature if temperature_at is None else temperature_at(t)
            for t in range(most)
        ]
        self.store = Decoding(self.blocks, widths)
        self.rows = Advance(policy, self.store, table, sampling, heat, pace, banned)
        self.seated: dict[int, Seat] = {}
        """Place -> the answer that sits there."""
        self._began: dict[int, int] = {}
        """Place -> the step at which it was taken."""
        self._ends: dict[int, Tensor] = {}
        """Prompt -> the hidden state at its end [D], while answers may still begin."""
        self._step = 0
        self.told: Callable[[int], None] = _nobody_asks
        """Is told each prompt whose last answer has ended."""

    @torch.no_grad()
    def run(self) -> list[Answer]:
        """All answers, in the order of their prompts."""
        voice = _Voice(len(self.answers))
        new = self._seat()
        while self.seated:
            if len(new) < len(self.seated):
                self.rows.step(*self._written())
            if new:
                self._start(new)
            self.rows.draw()
            self._step += 1
            new = []
            full = min(self._began.values()) + self.sampling.max_tokens <= self._step
            if (full or self._step % self.pace.look_every == 0) and self._harvest():
                new = self._seat()
                voice.tell(len(self.answers) - len(self.queue) - len(self.seated))
        return self.answers

    def _order(self) -> Sequence[int]:
        """Prompts in the order in which they are read: as they come if all are read in one row, else long ones first.

        Rows of alike prompts waste least, and what needs most memory comes before anything else is there.
        """
        count = len(self.asked)
        rows = list(pieces(range(count), self._lengths, self._costs, self.policy.budget))
        if len(rows) == 1 and self.plan.rows == len(self.answers):
            return range(count)
        return sorted(range(count), key=lambda number: -self._lengths[number].tokens)

    def _written(self) -> tuple[int, int | None]:
        """Where the fed token of the longest answer will stand in its row, and of all of them if that is one place."""
        places = [max(self._step - began - 1, 0) for began in self._began.values()]
        longest = max(places)
        return longest, longest if min(places) == longest else None

    def _harvest(self) -> bool:
        """Write down the answers that have ended and leave their places; is there any?"""
        counts, done = self.rows.look()
        cut = self._cut_by_strings(counts) if self.sampling.stop else {}
        lengths = {
            place: cut.get(place, counts[row])
            for row, place in enumerate(self.rows.rows)
            if place in self.seated and (done[row] or place in cut)
        }
        if not lengths:
            return False
        results = self.rows.results(list(lengths), list(lengths.values()))
        for place, result in zip(lengths, results, strict=True):
            self._leave(place, result)
        return True

    def _leave(self, place: int, result: Ended) -> None:
        """An answer has ended."""
        seat = self.seated.pop(place)
        del self._began[place]
        answer = self.answers[seat.answer]
        answer.tokens, answer.logp = result.tokens, result.logp
        beyond = len(answer.tokens) > len(answer.forced)
        if beyond and answer.tokens[-1] in self.policy.processing.stop_ids:
            answer.stop = "eos"
        self.policy.counters["tokens/decode"] += len(answer.tokens) - 1
        if self.queue.ended(seat.prompt):
            self.blocks.drop(seat.prompt)
            del self._ends[seat.prompt]
            self.told(seat.prompt)

    def _cut_by_strings(self, counts: Sequence[int]) -> dict[int, int]:
        """Places whose answer a stop string ends, and its length then: looked for at each token since the last look."""
        found: dict[int, int] = {}
        recent = self.rows.recent(self.pace.look_every)
        for row, place in enumerate(self.rows.rows):
            if place not in self.seated:
                continue
            answer = self.answers[self.seated[place].answer]
            new = counts[row] - len(answer.tokens)
            for token in recent[row][len(recent[row]) - new :]:
                answer.tokens.append(token)
                # Nothing inside a forced prefix ends an answer; a stop token ends it by itself.
                if len(answer.tokens) <= len(answer.forced):
                    continue
                if token in self.policy.processing.stop_ids:
                    break
                answer.stop = stop_string(self.policy, answer, self.sampling.stop)
                if answer.stop:
                    found[place] = len(answer.tokens)
                    break
        return found

    def _seat(self) -> list[int]:
        """Give free seats to answers that wait, and read their prompts; the places of the new ones."""
        seats = self.plan.rows - len(self.seated)
        taken, prompts = self.queue.take(seats, self.blocks.free, idle=not self.seated)
        if taken and self._step:
            self.policy.counters["rollout/refills"] += 1
        for piece in pieces(prompts, self._lengths, self._costs, self.policy.budget):
            self._read(piece)
        new = self._places(len(taken))
        for place, seat in zip(new, taken, strict=True):
            self.seated[place], self._began[place] = seat, self._step
        if not self.seated:
            return []
        if not (self.queue or self.store.fixed):
            self.blocks.shrink()  # prompts without answers would be looked at for nothing
        self._arrange()
        if new:
            self.rows.table.begin(new, [self._beginning(seat) for seat in taken])
        return new

    def _places(self, count: int) -> list[int]:
        """Free places: rows that are there come first, for nothing has to be copied for them."""
        there = self.rows.rows
        others = [place for place in range(self.rows.table.places) if place not in there]
        return [place for place in [*there, *others] if place not in self.seated][:count]

    def _arrange(self) -> None:
        """As many rows as those who sit need: in their order, ended ones in between only as far as shapes want them."""
        old = self.rows.rows
        needed = self.pace.rows(len(self.seated))
        if self.store.fixed and self.queue:
            needed = max(needed, len(old))  # others will come
        idle = [place for place in self._places(needed) if place not in self.seated]
        going_on = {*self.seated, *idle[: needed - len(self.seated)]}
        rows = [row for row, place in enumerate(old) if place in going_on]
        places = [old[row] for row in rows]
        more = [place for place in going_on if place not in old]
        seats = [self.seated.get(place) for place in [*places, *more]]
        group = [None if seat is None else seat.prompt for seat in seats]
        self.rows.arrange([*rows, *[None] * len(more)], [*places, *more], group)

    def _beginning(self, seat: Seat) -> Beginning:
        one = self.asked[seat.prompt]
        answer = self.answers[seat.answer]
        seed, step, branch = self._seeds
        key = (seed, step, one.prompt.id, branch, one.first + answer.number, "answer")
        return Beginning(key, answer.forced, one.encoded.next_position)

    def _start(self, places: Sequence[int]) -> None:
        """New answers begin at the end of their prompts."""
        rows = [self.rows.rows.index(place) for place in places]
        prompts = [self.seated[place].prompt for place in places]
        self.store.carry(rows, prompts)
        ends = [self._ends[prompt] for prompt in prompts]
        self.rows.start(rows, torch.stack(ends))

    def _read(self, numbers: Sequence[int]) -> None:
        """Run some prompts once, as one packed row: their keys and values, and the hidden state at their ends."""
        policy, asked = self.policy, [self.asked[number] for number in numbers]
        groups = [
            Group(one.encoded, one.pixels) for one in asked
        ]  # without answers: prompts alone
        stream = pack(groups, policy.device)
        kept: list[tuple[Tensor, Tensor]] = []
        # The layers put their keys and values here while they run; the layout is frozen for everybody else.
        object.__setattr__(stream.layout, "kept", kept)
        carried = stream.layout.recurrent.keep()
        media = [item for one in asked for item in one.pixels]
        # An update with the same weights will read the same pictures: then the tower's graph is kept for it.
        features = policy.vision.sampling_features(media)
        states = policy.language(
            stream.ids, stream.positions, stream.layout, stream.visual, features
        )
        policy.counters["tokens/prefill"] += len(stream.ids)
        policy.counters["rollout/pieces"] += 1
        self.blocks.add(numbers, stream.layout.prompts, kept, carried)
        for number, (_, end) in zip(numbers, stream.layout.prompts, strict=True):
            self._ends[number] = states[end - 1].clone()  # a view would hold the whole row


class _Voice:
    """Says how far a long call has come."""

    def __init__(self, answers: int, seconds: float = 10.0) -> None:
        self._answers, self._seconds = answers, seconds
        self._began = self._spoke = time.monotonic()

    def tell(self, ended: int) -> None:
        """So many answers have ended."""
        now = time.monotonic()
        if now - self._spoke >= self._seconds and ended < self._answers:
            self._spoke = now
            Progress.say(
                f"sampled {ended} of {self._answers} answers in {now - self._began:.0f} s"
            )


def _nobody_asks(prompt: int) -> None:
    """Prompts whose answers have ended, where it does not matter when."""


def _lengths(asked: Asked) -> Lengths:
    return Lengths(len(asked.encoded.ids), sum(len(item.values) for item in asked.pixels))


def stop_string(policy: Policy, answer: Answer, stops: Sequence[str]) -> str:
    """The first of the strings that the answer's last tokens complete; empty if there is none.

    A string may begin inside the forced prefix, but must reach beyond it: what was forced was not the policy's choice.
    """
    spell = policy.processing.spell
    # A stop string may begin some tokens back, and a token may hold part of a character: 8 more are looked at.
    start = max(len(answer.tokens) - max(map(len, stops)) - 8, 0)
    tail = spell(answer.tokens[start:])
    # A character that the prefix leaves half written shows as U+FFFD there, and is completed by the policy.
    forced = len(spell(answer.tokens[start : len(answer.forced)]).rstrip("\ufffd"))
    for text in stops:
        earliest = max(forced - len(text) + 1, 0)
        if text in tail[earliest:]:
            return text
    return ""
