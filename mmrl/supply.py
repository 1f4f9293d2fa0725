"""Which prompts come next: shuffled epochs, bad rows skipped and counted, position exactly resumable."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mmrl.seeds import generator
from mmrl.types import BadRow, Prompt, Prompts


class Supply:
    """Hands out prompts in a seeded order; the order depends on nothing but (seed, epoch).

    `check` may raise `BadRow` for a prompt that loads but cannot be used, for example one that is too long. With
    `on_bad="skip"` a bad row is counted, written to `log` and replaced by the next row; with "stop" it ends the run.
    An endless collection is read in its own order.
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
    ) -> None:
        if prompts.size == 0:
            raise ValueError("The dataset is empty: there is no prompt to train on.")
        self.prompts = prompts
        self.per_step = per_step
        self.seed = seed
        self.position = 0
        """Rows handed out or skipped so far."""
        self.counters: Counter[str] = Counter()
        self._check = check
        self._on_bad = on_bad
        self.log = log
        self._order: tuple[int, list[int]] = (-1, [])

    def take(self, count: int | None = None) -> list[Prompt]:
        """The next prompts, `per_step` of them by default. Raises `BadRow` if a whole epoch holds nothing usable."""
        wanted = self.per_step if count is None else count
        found: list[Prompt] = []
        bad_in_a_row = 0
        while len(found) < wanted:
            index = self._index(self.position)
            self.position += 1
            try:
                prompt = self.prompts[index]
                if self._check is not None:
                    self._check(prompt)
            except BadRow as problem:
                if self._on_bad == "stop":
                    raise
                self._report(index, problem)
                bad_in_a_row += 1
                if bad_in_a_row >= (self.prompts.size or 1000):
                    raise BadRow(
                        f"{bad_in_a_row} rows in a row cannot be used, the whole dataset; the last one: {problem}"
                    ) from problem
                continue
            bad_in_a_row = 0
            found.append(prompt)
        return found

    @property
    def epoch(self) -> float:
        """Passes over the data so far; 0 for an endless collection."""
        return self.position / self.prompts.size if self.prompts.size else 0.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {"position": self.position}

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.position = int(state["position"])

    def _index(self, position: int) -> int:
        size = self.prompts.size
        if size is None:
            return position
        epoch, offset = divmod(position, size)
        if self._order[0] != epoch:
            order = torch.randperm(size, generator=generator(self.seed, "epoch", epoch))
            self._order = (epoch, order.tolist())
        return self._order[1][offset]

    def _report(self, index: int, problem: BadRow) -> None:
        self.counters["data/skipped"] += 1
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(json.dumps({"row": index, "reason": str(problem)}) + "\n")
