"""Many Python programs that read the same packages: each in a sandbox of its own, forked off one warm interpreter.

    with WarmPython(("matplotlib.pyplot",)) as python:
        outcome = python.run(source, wanted=["figure.png"])

Reading packages is most of what a short program costs. Here a process that runs nothing of a program's reads them
once; a program runs in a fork of it, locked up as by `sandbox.run_python`, with all its promises. What a program
changes, it changes in its own fork. Programs of several threads run at the same time.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from mmrl.ground import sandbox
from mmrl.ground.sandbox import INSIDE, Limits, Outcome
from mmrl.ground.sandbox_inside import NUMBER
from mmrl.ground.scratch import scratch_folder, temporary_folder

START = 120.0
"""Seconds that the packages may take to be read."""


class NotWarm(RuntimeError):
    """The interpreter that reads the packages did not come up; the message has its last words."""


class WarmPython:
    """An interpreter with packages read, which runs programs in sandboxes. Starts with the first program.

    `counts` holds how the programs ended: "exit", "signal", "time", "output", "failed", and "runs".
    """

    def __init__(self, preload: Sequence[str] = (), limits: Limits = Limits()) -> None:
        self.preload, self.limits = tuple(preload), limits
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    # It travels to workers, where it starts anew.
    def __getstate__(self) -> tuple[tuple[str, ...], Limits]:
        return self.preload, self.limits

    def __setstate__(self, state: tuple[tuple[str, ...], Limits]) -> None:
        WarmPython.__init__(self, *state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        source: str,
        *,
        files: Mapping[str, bytes] = {},
        wanted: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> Outcome:
        """As `sandbox.run_python`; `limits` in place of its own.

        Raises NotWarm, and ValueError for a file name that leads out of the folder.
        """
        sandbox.refuse_names(files, wanted)
        given = {**files, "main.py": source.encode("utf-8", "replace")}
        bounds, shut = limits or self.limits, sandbox.isolation().shut
        with temporary_folder("sandbox") as root:
            spec = sandbox.specification(["main.py"], given, wanted, bounds, (), root, shut)
            outcome = sandbox.perform({**spec, "forked": True}, bounds, self._begin)
        self.counts[outcome.ended] += 1
        self.counts["runs"] += 1
        return outcome

    def close(self) -> None:
        """End the interpreter and all that runs in it. A later program starts it again."""
        with self._lock:
            self._stop()

    def _begin(self, handles: Mapping[str, int]) -> Callable[[], int]:
        """Start an outer process as a fork of the interpreter."""
        order = ("spec", "text", "errors", "report")
        given = [handles[name] for name in order]
        with self._lock:
            if self._server is None or self._server.poll() is not None:
                self._start()
            outer = self._ask(b"r", given)
        return lambda: self._end(outer)

    def _end(self, outer: int) -> int:
        with self._lock:
            if self._channel is None:  # closed meanwhile, and everything in it is gone
                return -signal.SIGKILL
            return self._ask(b"e" + NUMBER.pack(outer))

    def _ask(self, request: bytes, handles: Sequence[int] = ()) -> int:
        """Raises NotWarm if the interpreter is gone."""
        assert self._channel is not None
        try:
            socket.send_fds(self._channel, [request], handles)
            answer = self._channel.recv(NUMBER.size)
        except OSError as error:
            answer, why = b"", str(error)
        else:
            why = "it ended"
        if len(answer) < NUMBER.size:
            self._stop()
            raise NotWarm(f"The interpreter for programs is gone: {why}.")
        return NUMBER.unpack(answer)[0]

    def _start(self) -> None:
        """Start the interpreter, and wait until it has read the packages. Raises NotWarm."""
        self._stop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        folder = scratch_folder()
        with tempfile.TemporaryFile(dir=folder) as words, theirs:
            self._server = subprocess.Popen(
                [
                    sys.executable,
                    "-s",
                    "-P",
                    str(INSIDE),
                    "serve",
                    str(theirs.fileno()),
                    *self.preload,
                ],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                start_new_session=True,
                env=_environment(folder),
            )
            theirs.close()
            self._channel = ours
            ours.settimeout(START)
            try:
                ready = ours.recv(NUMBER.size)
            except OSError:
                ready = b""
            if len(ready) < NUMBER.size:
                self._stop()
                words.seek(0)
                last = words.read().decode(errors="replace").strip().splitlines()[-1:]
                raise NotWarm(
                    f"The interpreter for programs did not start with {', '.join(self.preload)}: "
                    f"{last[0] if last else f'not ready after {START:g} s'}."
                )

    def _stop(self) -> None:
        """Outer processes end with the interpreter that forked them."""
        if self._channel is not None:
            self._channel.close()
        if self._server is not None:
            self._server.kill()
            self._server.wait()
        self._server = self._channel = None


def _environment(folder: Path) -> dict[str, str]:
    """No secret of ours: forks can read it."""
    return {
        "PATH": os.defpath,
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
        "MPLCONFIGDIR": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
    }
