"""Prompts for workers, in a file of their own: workers import what they are sent, and a test's imports cost seconds."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from mmrl.data.drawn.drawn import Drawn
from mmrl.ground.faults import BadRow
from mmrl.types import Prompts


@dataclass(frozen=True)
class Spoiled(Prompts):
    """Drawn questions; some rows are bad, some end the worker that reads them, some never come back there."""

    size: int | None = None
    bad: tuple[int, ...] = ()
    fatal: tuple[int, ...] = ()
    endless: tuple[int, ...] = ()
    trainer: int = 0

    def __getitem__(self, index):
        if os.getpid() != self.trainer:
            if index in self.fatal:
                os._exit(3)
            if index in self.endless:
                time.sleep(1000)
        if index in self.bad:
            raise BadRow(f"row {index} is broken")
        return Drawn("lookup")[index]

    def drain(self):
        return {"data/drains": 1}
