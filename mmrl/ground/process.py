"""One child process that can be killed, and that never outlives its parent, however the parent dies.

A `Child` is a fresh interpreter, never a fork of the parent, whose threads would not survive one. Before it loads
anything it splits in two: a *keeper*, which does nothing but watch, and the *worker*, which runs the function that was
named. The worker is in a process group of its own, together with whatever it starts. The keeper ends that group when
the worker ends or the parent is gone, also after `kill -9`, while a forked sibling of the parent still holds the
socket, and while the worker is stuck in C code that never lets go of the interpreter.

What the two say to each other over the socket is their own affair; only the first 8 bytes are taken, by the worker's
process id. Imports nothing but the standard library: the keeper stays small, and the worker loads what it needs.

Limits: POSIX only. A process that left the worker's group is not ended.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

START_LIMIT = 120.0
"""Seconds in which a child must be up, and have loaded what it needs: a cold disk is slow, a hang is longer."""
LOOK = 0.2
"""Seconds between two looks at whether a silent child still lives."""
KEEPER_INTERVAL = 0.5
"""Seconds between two looks of the keeper at its parent."""
HEADER = struct.Struct(">Q")
"""A process id, or the length of a message."""
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from mmrl.ground.process import boot; boot(**json.loads(sys.argv[2]))"
)


class NotStarted(RuntimeError):
    """The interpreter of a child did not come up; the message says how it ended."""


class Child:
    """A worker in a process of its own, started by the constructor.

    `target` is "module:function"; the function is called in the worker with its end of the socket, a descriptor, and
    the arguments, which must be JSON. `output` is a descriptor for all that the child prints; it stays the caller's.
    Without one, it prints to our stderr. Raises NotStarted.
    """

    def __init__(
        self,
        target: str,
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
        output: int | None = None,
    ) -> None:
        self.channel, theirs = socket.socketpair()
        """Our end of the socket, blocking."""
        call = {
            "descriptor": theirs.fileno(),
            "parent": os.getpid(),
            "target": target,
            "arguments": arguments,
        }
        # -P: the current folder is no place to import from unless our own path says so.
        # Our path travels along, so that the child imports the same code wherever we were started.
        command = [sys.executable, "-P", "-c", _BOOT]
        command += [json.dumps(sys.path), json.dumps(call)]
        with theirs:
            self._keeper = subprocess.Popen(
                command,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                # What a worker prints must not mix with our own output, so never to our stdout.
                stdout=2 if output is None else output,
                stderr=output,
                start_new_session=True,  # Ctrl-C in the terminal is for us to handle
                env={**(environment or {}), **os.environ},
            )
        self.pid = self._greeting()
        """The worker's process id, and the id of its process group; 0 if it did not come up."""
        # Also where nobody calls `end`: when this object goes, and at the end of the interpreter.
        self._ending = weakref.finalize(self, _kill, self._keeper, self.pid, os.getpid())
        if not self.pid:
            raise NotStarted(how_it_ended(self.end(LOOK)))

    @property
    def alive(self) -> bool:
        """Has it not ended by itself?"""
        return self._keeper.poll() is None

    def end(self, wait: float = 0.0) -> int | None:
        """Kill the worker and its group. May be called again, and by a forked copy, which lets it live.

        Returns the exit code with which it ended by itself within `wait` seconds (negative: the signal), else None.
        """
        self.channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(wait)
        code = self._keeper.returncode
        self._ending()
        # The keeper passes on the worker's signal the way a shell does.
        return 128 - code if code is not None and code >= 128 else code

    def _greeting(self) -> int:
        """The worker's process id, its first words; 0 if it ends before."""
        try:
            self.channel.settimeout(START_LIMIT)
            greeting = self.channel.recv(HEADER.size, socket.MSG_WAITALL)
            self.channel.settimeout(None)
            return HEADER.unpack(greeting)[0]
        except (OSError, struct.error):
            return 0


def how_it_ended(code: int | None) -> str:
    """What `Child.end` returned, in words."""
    if code is None:
        return "killed"
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def _kill(keeper: subprocess.Popen[bytes], group: int, owner: int) -> None:
    """End a child and whatever it started. Called once: afterwards the numbers may belong to somebody else."""
    if os.getpid() != owner:  # a forked copy of the parent must leave the parent's child alone
        return
    if group:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    try:
        keeper.wait(1.0)  # it ends after its worker, so that nothing is left to be reaped
    except subprocess.TimeoutExpired:
        keeper.kill()
        keeper.wait()


def boot(descriptor: int, parent: int, target: str, arguments: Sequence[Any]) -> NoReturn:
    """The life of a child: split into keeper and worker. Never returns."""
    worker = os.fork()
    # On both sides, for neither knows who comes first; 0 means oneself.
    os.setpgid(worker, worker)
    if worker:
        os.close(descriptor)  # else the parent would never see the end of a worker's stream
        _keep(worker, parent)
    os.set_inheritable(descriptor, False)
    os.write(descriptor, HEADER.pack(os.getpid()))
    module, _, function = target.partition(":")
    getattr(importlib.import_module(module), function)(descriptor, *arguments)
    os._exit(0)


def _keep(worker: int, parent: int) -> NoReturn:
    """Wait for the worker's end and pass on its exit code; end its group when it ends or the parent is gone."""
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        ended, status = os.waitpid(worker, os.WNOHANG)
        # An orphan gets another parent. This holds however the parent died, and whoever else has its descriptors.
        if ended or os.getppid() != parent:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker, signal.SIGKILL)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
        if hasattr(signal, "sigtimedwait"):
            signal.sigtimedwait({signal.SIGCHLD}, KEEPER_INTERVAL)
        else:
            time.sleep(KEEPER_INTERVAL / 5)
