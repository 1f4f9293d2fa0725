"""Rows that cannot be used and were found before the first step: counted, and listed like those of the steps.

Two kinds: rows that a collection refused when it was opened (its method `left_out`, if it has one), and held-out rows
that could not be read or encoded. Either gets a line in `skipped.jsonl`, with the position -1, before all positions of
the training.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmrl.ground.faults import BadRow
from mmrl.ground.progress import Progress
from mmrl.types import Prompts


class LeftOut:
    """The bad rows of both sides of the data."""

    def __init__(self, train: Prompts, heldout: Prompts | None = None) -> None:
        # Both sides may be parts of one collection, whose bad rows are then told once.
        self._opened = {"training": list(_refused(train))}
        known = set(self._opened["training"])
        self._opened["held-out"] = [row for row in _refused(heldout) if row not in known]
        self._heldout: list[tuple[int, str]] = []

    def add(self, index: int, problem: BadRow) -> None:
        """A held-out row that cannot be used."""
        self._heldout.append((index, str(problem)))

    def reasons(self) -> list[str]:
        """What is wrong with each of them."""
        return [row["reason"] for row in self._rows()]

    def metrics(self) -> dict[str, float]:
        """How many of each kind; nothing for none."""
        opened = sum(map(len, self._opened.values()))
        counts = {"data/left_out": opened, "data/heldout_skipped": len(self._heldout)}
        return {name: float(count) for name, count in counts.items() if count}

    def write(self, file: Path) -> None:
        """List them in a fresh file, and say so."""
        rows = list(self._rows())
        if not rows:
            return
        text = "".join(json.dumps(row) + "\n" for row in rows)
        file.write_text(text, encoding="utf-8")
        Progress.say(f"{len(rows)} rows cannot be used and are listed in {file}.")

    def _rows(self) -> Iterator[dict[str, Any]]:
        for side, reasons in self._opened.items():
            for reason in reasons:
                yield {"position": -1, "side": side, "row": None, "reason": reason}
        for index, reason in self._heldout:
            yield {"position": -1, "side": "held-out", "row": index, "reason": reason}


def _refused(prompts: Prompts | None) -> Iterator[str]:
    yield from map(str, getattr(prompts, "left_out", tuple)())
