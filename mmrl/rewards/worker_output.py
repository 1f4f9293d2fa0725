"""What rewards print, on the way to the trainer's terminal: bounded, and without power over it.

A worker's stdout and stderr are one pipe, which a thread of the trainer reads to the end, so that a reward that prints
without end costs time only, of which its own limit leaves it little. What is shown is cut per call and per worker.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import threading

from mmrl.ground.printable import tell

CALL_LIMIT = 4 << 10
"""Bytes that one call may print."""
WORKER_LIMIT = 1 << 20
"""Bytes that one worker may print during a run, restarts included."""
LINE = 4 << 10
"""Characters after which a line is shown though its end has not come."""


class WorkerOutput:
    """The bounded output of one worker and of those that replace it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_call, self._of_worker = CALL_LIMIT, WORKER_LIMIT
        self._said: set[str] = set()

    def open(self) -> int:
        """Where the next process writes: a descriptor, which the caller closes once the process has it."""
        ours, theirs = os.pipe()
        reader = threading.Thread(
            target=self._relay, args=(ours,), name="mmrl-reward-output", daemon=True
        )
        reader.start()
        return theirs

    def next_call(self) -> None:
        """Another call begins, and may print."""
        with self._lock:
            self._of_call = CALL_LIMIT

    def _relay(self, descriptor: int) -> None:
        """Show what arrives, line by line, until the process and all that it has started are gone."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        line = ""
        with contextlib.closing(os.fdopen(descriptor, "rb", buffering=0)) as pipe:
            while chunk := pipe.read(1 << 16):
                line += decoder.decode(self._allowed(chunk))
                *whole, line = line.split("\n")
                for one in whole:
                    tell(one)
                if len(line) > LINE:
                    tell(line)
                    line = ""
        if line:
            tell(line)

    def _allowed(self, chunk: bytes) -> bytes:
        """As much of a chunk as may be shown; says once of each limit that it was reached."""
        with self._lock:
            kept = chunk[: min(self._of_call, self._of_worker)]
            self._of_call -= len(kept)
            self._of_worker -= len(kept)
            if len(kept) == len(chunk):
                return kept
            limit = "run" if not self._of_worker else "call"
            if limit in self._said:
                return kept
            self._said.add(limit)
        most = WORKER_LIMIT if limit == "run" else CALL_LIMIT
        note = f"\n[a reward prints more than {most} bytes in one {limit}; the rest is not shown]\n"
        return kept + note.encode()
