"""Who is sampled when: how many answers advance together, which prompts are read in one row, who waits for a seat.

No tensors here. `Fill` is decided once per call from lengths, costs and the budget; `Queue` then hands out seats: the
answers of a prompt that has been read come first, and a prompt is read when enough seats are free for it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from mmrl.model.budget import Budget, Costs
from mmrl.model.decoding import blocks_of


@dataclass(frozen=True)
class Lengths:
    """One prompt in numbers."""

    tokens: int
    """Of the prompt, visual ones included."""
    patches: int = 0
    """That the vision tower reads for it."""


@dataclass(frozen=True)
class Fill:
    """How a number of prompts is sampled on a device."""

    rows: int
    """Answers that advance together."""
    block: int
    """Tokens of a block of keys and values."""
    room: int
    """Blocks of all prompts that are there at a time."""
    most: int
    """Prompts that are there at a time."""
    parts: int
    """Blocks of the longest prompt."""

    @property
    def together(self) -> bool:
        """Has every prompt one block?"""
        return self.parts <= 1


def fill(
    prompts: Sequence[Lengths], group: float, tokens: int, rows: int, block: int,
    costs: Costs, budget: Budget,
) -> Fill:  # fmt: skip
    """The largest number of rows up to `rows` whose keys, values and logits stay within the budget; at least one.

    `group` answers of at most `tokens` tokens per prompt, on average; `block`: most tokens of a block. If there is no
    room even for one row, it is tried all the same: nothing smaller exists.
    """
    block = _block([one.tokens for one in prompts], block)
    sizes = sorted((blocks_of(one.tokens, block) for one in prompts), reverse=True)

    def fits(count: int) -> bool:
        prompts_there = _together(count, group, len(sizes))
        keys = (sum(sizes[:prompts_there]) * block + count * tokens) * costs.token
        # Linear attention has no keys there; what it carries does not grow with the answers.
        carried = (prompts_there + count) * costs.carried
        return keys + carried <= budget.keys_values and count * costs.row <= budget.logits

    least, most = 1, max(1, min(rows, round(group * len(prompts))))
    while least < most:  # the largest that fits lies in least .. most
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    prompts_there = _together(least, group, len(sizes))
    return Fill(least, block, sum(sizes[:prompts_there]), prompts_there, sizes[0])


def _block(lengths: Sequence[int], most: int) -> int:
    """Tokens of a block: all of the longest prompt where that pads no more than blocks of `most` tokens would.

    Prompts of one block each go through one softmax, which takes a small model half the time of several blocks.
    """
    longest = max(lengths)
    small = min(most, longest)
    whole = longest * len(lengths)
    return longest if whole <= sum(blocks_of(n, small) * small for n in lengths) else small


def _together(rows: int, group: float, prompts: int) -> int:
    """Prompts that may be there at a time: twice as many as whole groups fill the rows, for some end late."""
    return min(prompts, rows, 2 * math.ceil(rows / group))


def pieces(
    numbers: Sequence[int], prompts: Sequence[Lengths], costs: Costs, budget: Budget
) -> Iterator[list[int]]:
    """Cut prompts into packed rows that the budget allows; a prompt that is larger by itself stands alone."""
    piece: list[int] = []
    used = 0
    for number in numbers:
        one = prompts[number]
        size = one.tokens * costs.prefill + one.patches * costs.patch
        if piece and used + size > budget.prefill:
            yield piece
            piece, used = [], 0
        piece.append(number)
        used += size
    if piece:
        yield piece


@dataclass(frozen=True)
class Seat:
    """One answer that shall be sampled."""

    answer: int
    """Its place among all answers."""
    prompt: int


class Queue:
    """Answers that wait for a row. `order`: prompts as they are read; `counts`: answers of each prompt."""

    def __init__(
        self, order: Sequence[int], counts: Sequence[int], plan: Fill, blocks: Sequence[int]
    ) -> None:
        first = [0, *accumulate(counts)]  # place of each prompt's first answer among all
        self._waiting = deque(
            Seat(answer, prompt)
            for prompt in order
            for answer in range(first[prompt], first[prompt + 1])
        )
        self._left = {prompt: counts[prompt] for prompt in order}
        self._there: set[int] = set()
        self._plan = plan
        self._blocks = blocks
        # One seat at a time would mean a row of one prompt at a time, while all others wait for it.
        self._enough = min(plan.rows, max(*counts, plan.rows // 4))

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, seats: int, free: int, *, idle: bool) -> tuple[list[Seat], list[int]]:
        """Answers for so many seats, and the prompts that must be read for them into so many free blocks.

        `idle`: nobody else is advancing, so there is nothing to wait for.
        """
        taken: list[Seat] = []
        new: list[int] = []
        may_read = idle or seats >= self._enough
        while self._waiting and len(taken) < seats:
            prompt = self._waiting[0].prompt
            if prompt not in self._there:
                full = len(self._there) == self._plan.most or self._blocks[prompt] > free
                if full or not may_read:
                    break
                free -= self._blocks[prompt]
                self._there.add(prompt)
                new.append(prompt)
            taken.append(self._waiting.popleft())
        return taken, new

    def ended(self, prompt: int) -> bool:
        """One more answer of this prompt has ended; was it the last?"""
        self._left[prompt] -= 1
        if self._left[prompt]:
            return False
        self._there.discard(prompt)
        return True
