"""Run a program that nobody has read: without network, files of ours, or more than its share of the machine.

    outcome = run_python("print(6 * 7)")
    outcome.text                    # "42\n"

    with WarmPython(("numpy",)) as python:      # many programs that read the same packages
        python.run("import numpy; print(numpy.eye(2))")

Where Linux allows it, the program runs in namespaces of its own: no network, a process tree that ends as one, and a
file system of the interpreter and the system's programs, read only, with an empty scratch folder in memory; it runs as
nobody, and limits on time, memory, processes, files and output hold for it and all that it starts. Elsewhere only the
limits hold, the environment is emptied, and `isolation().missing` says what is not kept from it; whoever takes such
programs from a model asks for it (`isolation`), and says so.

Not kept from it anywhere: the processor (a program may be as loud as its time allows), the clock, what the interpreter
and its packages contain, and faults of the kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import site
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal

from mmrl.ground.printable import logger
from mmrl.ground.require import require
from mmrl.ground.sandbox_inside import FRAME, REFUSED, SCRATCH
from mmrl.ground.scratch import temporary_folder

INSIDE = Path(__file__).with_name("sandbox_inside.py")
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/fonts")
"""What programs need of a system: nothing in it is anybody's own."""
UP = 20.0
"""Seconds that the sandbox itself may take to start, besides those of the program."""
MEGABYTE = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: float = 10.0
    """Of the clock; as many of the processor, in each of its processes."""
    memory_mb: int = 2048
    """Address space of each process, in MiB."""
    processes: int = 32
    """Processes and threads at one time."""
    output_kb: int = 64
    """Kept of each of stdout and stderr, in KiB; what writes ten times as much is ended."""
    files_mb: int = 64
    """Of all files that it writes, in MiB, and of those that are handed back."""

    def __post_init__(self) -> None:
        require(
            self,
            seconds=(0 < self.seconds <= 86_400, "more than 0, at most a day"),
            memory_mb=(64 <= self.memory_mb <= 1 << 20, "64 to 1,048,576 MiB"),
            processes=(1 <= self.processes <= 4096, "1 to 4,096"),
            output_kb=(1 <= self.output_kb <= 1 << 16, "1 to 65,536 KiB"),
            files_mb=(1 <= self.files_mb <= 1 << 16, "1 to 65,536 MiB"),
        )


Ended = Literal["exit", "signal", "time", "output", "failed"]
"""By itself, with a code; killed, by a limit or its own fault; out of time; too loud; the sandbox did not come up."""


@dataclass(frozen=True)
class Outcome:
    """What a program did."""

    ended: Ended
    code: int | None
    """Its exit code, or minus the signal that ended it; None if it did not get that far."""
    text: str
    """Its stdout, cut at the limit; what is not UTF-8 shows as U+FFFD."""
    errors: str
    """Its stderr."""
    seconds: float
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Those of the wanted files that it left: plain ones, inside the limit."""

    @property
    def ok(self) -> bool:
        """Did it end by itself, and well?"""
        return self.ended == "exit" and self.code == 0


@dataclass(frozen=True)
class Isolation:
    """What a sandbox keeps from a program on this machine."""

    shut: bool
    """In namespaces of its own?"""
    missing: str = ""
    """What is not kept from it, and why; "" if nothing."""


def run_python(
    source: str,
    *,
    files: Mapping[str, bytes] = {},
    wanted: Sequence[str] = (),
    limits: Limits = Limits(),
) -> Outcome:
    """Run a Python program with this interpreter and its packages, in a folder with the given files.

    `wanted`: names of files to hand back.
    """
    given = {**files, "main.py": source.encode("utf-8", "replace")}
    # -s, -P: neither the user's own packages nor files of the folder pass for modules of the library.
    command = [sys.executable, "-s", "-P", "main.py"]
    return run(command, files=given, wanted=wanted, limits=limits)


def run(
    command: Sequence[str],
    *,
    files: Mapping[str, bytes] = {},
    wanted: Sequence[str] = (),
    limits: Limits = Limits(),
    visible: Sequence[str] = (),
) -> Outcome:
    """Run a command, given by its full path, in a folder with the given files.

    `visible`: further paths that it may read. Raises ValueError for a file name that leads out of the folder.
    """
    refuse_names(files, wanted)
    shut = isolation().shut
    with temporary_folder("sandbox") as root:
        spec = specification(command, files, wanted, limits, visible, root, shut)
        return perform(spec, limits)


def refuse_names(files: Iterable[str], wanted: Iterable[str]) -> None:
    """Raise ValueError for a name of a file that leads out of the folder."""
    for name in (*files, *wanted):
        if not name or name.startswith("/") or {"..", "."} & set(name.split("/")):
            raise ValueError(
                f"{name!r} is no name of a file in the sandbox; give a path without '.', '..' or a leading '/'."
            )


@lru_cache
def isolation() -> Isolation:
    """What this machine allows, found out by trying."""
    if sys.platform != "linux":
        return Isolation(False, _missing(f"{sys.platform} has no namespaces"))
    limits = Limits(seconds=UP, files_mb=1)
    with temporary_folder("sandbox") as root:
        outcome = perform(
            specification(["/bin/sh", "-c", ":"], {}, (), limits, (), root, True), limits
        )
    if outcome.ok:
        return Isolation(True)
    why = outcome.errors.strip().splitlines()[-1:] or ["the system refuses namespaces"]
    return Isolation(False, _missing(why[0]))


def say_what_is_missing(what: str) -> None:
    """Warn, once for each `what` ("drawings", "circuits"), if this machine keeps not everything from programs."""
    missing = isolation().missing
    if missing and what not in _said:
        _said.add(what)
        _LOG.warning("%s run programs that a model writes, and %s", what, missing)


_said: set[str] = set()
_LOG = logger(__name__)


def _missing(why: str) -> str:
    return (
        f"there are no namespaces here ({why}), so programs can reach the network, read what this user can read, write "
        "where this user can write, and leave processes of their own session behind; only limits on time, memory, "
        "output and the size of files hold. Run in a container without secrets and without network, or where user "
        "namespaces are allowed."
    )


def specification(
    command: Sequence[str],
    files: Mapping[str, bytes],
    wanted: Sequence[str],
    limits: Limits,
    visible: Sequence[str],
    root: Path,
    shut: bool,
) -> dict[str, object]:
    """What the inner half is told."""
    home = SCRATCH if shut else str(root)
    environment = {
        "PATH": os.defpath,
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        # One program is one thread of arithmetic; a pool of them would eat its processes.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
        "PYTHONDONTWRITEBYTECODE": "1",
        # The same program does the same again, so that what it did can be kept.
        "PYTHONHASHSEED": "0",
    }
    return {
        "command": list(command),
        "environment": environment,
        # As text of one byte per character, for JSON has no bytes.
        "files": {name: content.decode("latin-1") for name, content in files.items()},
        "wanted": list(wanted),
        "visible": [*SYSTEM, *_interpreter(), *visible],
        "root": str(root),
        "shut": shut,
        "forked": False,
        "parent": os.getpid(),
        "limits": {
            "cpu": max(1, round(limits.seconds + 0.5)),
            "memory": limits.memory_mb * MEGABYTE,
            "processes": limits.processes,
            "files": limits.files_mb * MEGABYTE,
        },
    }


@lru_cache
def _interpreter() -> tuple[str, ...]:
    """Where this interpreter and its packages lie, without folders that lie in others."""
    found = {sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages()}
    found.add(sysconfig.get_paths()["purelib"])
    # A .pth file may have led to packages elsewhere; those of the user's home are not read inside.
    places = [
        path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")
    ]
    found |= set(places) - {site.getusersitepackages()}
    # The interpreter of a virtual environment is a link, perhaps to another link.
    links = [Path(sys.executable)]
    while links[-1].is_symlink():
        links.append(links[-1].parent / os.readlink(links[-1]))
    found |= {str(link.parent.parent) for link in links}
    kept = [path for path in map(os.path.abspath, found) if path not in ("/", "/usr")]
    return tuple(sorted(path for path in kept if not any(_within(path, x) for x in kept)))


def _within(path: str, other: str) -> bool:
    return path != other and path.startswith(other.rstrip("/") + "/")


Begin = Callable[[Mapping[str, int]], Callable[[], int]]
"""Start an outer process with these handles: spec, text, errors, report; returns what ends it and gives its code."""


def perform(spec: dict[str, object], limits: Limits, begin: Begin | None = None) -> Outcome:
    """Do what the specification says in an outer process, of its own or as `begin` starts it."""
    began = time.monotonic()
    # The specification may hold files, and an argument may not be long.
    told, told_to = os.pipe()
    pipes = {name: os.pipe() for name in ("text", "errors", "report")}
    theirs = {"spec": told, **{name: ends[1] for name, ends in pipes.items()}}
    spec["report"] = theirs["report"]
    with contextlib.ExitStack() as ours:
        streams = {
            name: ours.enter_context(open(ends[0], "rb")) for name, ends in pipes.items()
        }
        write = ours.enter_context(open(told_to, "wb", buffering=0))
        try:
            end = (begin or _begin)(theirs)
        finally:
            for handle in theirs.values():
                os.close(handle)
        try:
            with contextlib.suppress(BrokenPipeError):
                write.write(json.dumps(spec).encode())
            write.close()
            most = limits.output_kb * 1024
            room = {"text": 10 * most, "errors": 10 * most, "report": _report_room(limits)}
            heard, ended = _heard(streams, room, began + limits.seconds + UP, limits.seconds)
        finally:
            status = end()
    seconds = time.monotonic() - began
    text, errors = (
        bytes(heard[name][:most]).decode("utf-8", "replace") for name in ("text", "errors")
    )
    if ended is not None:
        return Outcome(ended, None, text, errors, seconds)
    told_back = bytes(heard["report"])
    if status == REFUSED or len(told_back) < FRAME.size:
        return Outcome("failed", None, text, errors, seconds)
    code, _ = FRAME.unpack(told_back[: FRAME.size])
    found = json.loads(told_back[FRAME.size :])
    files = {name: content.encode("latin-1") for name, content in found.items()}
    return Outcome("signal" if code < 0 else "exit", code, text, errors, seconds, files)


def _begin(handles: Mapping[str, int]) -> Callable[[], int]:
    """An outer process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(INSIDE), str(handles["spec"])],
        pass_fds=(handles["report"], handles["spec"]),
        stdin=subprocess.DEVNULL,
        stdout=handles["text"],
        stderr=handles["errors"],
        start_new_session=True,
        env={"PATH": os.defpath},
    )
    return lambda: _end(process)


def _report_room(limits: Limits) -> int:
    """Bytes of the longest report: a byte of a file may take six as JSON."""
    return 6 * limits.files_mb * MEGABYTE + MEGABYTE


def _heard(
    streams: Mapping[str, BinaryIO], room: Mapping[str, int], last: float, seconds: float
) -> tuple[dict[str, bytearray], Ended | None]:
    """What comes out of each stream until all are closed; why we stopped listening before, if we did."""
    heard = {name: bytearray() for name in streams}
    with selectors.DefaultSelector() as selector:
        for name, stream in streams.items():
            selector.register(stream, selectors.EVENT_READ, name)
        until = time.monotonic() + seconds
        while selector.get_map():
            left = min(until, last) - time.monotonic()
            if left <= 0:
                return heard, "time"
            for key, _ in selector.select(left):
                piece = os.read(key.fd, 1 << 16)
                if not piece:
                    selector.unregister(key.fileobj)
                    # Once the report is there the command is over; what else holds the streams is not waited for.
                    if key.data == "report" and heard["report"]:
                        until = min(until, time.monotonic() + 0.5)
                    continue
                heard[key.data] += piece
                if len(heard[key.data]) > room[key.data]:
                    return heard, "output"
    return heard, None


def _end(process: subprocess.Popen[bytes]) -> int:
    """Kill the sandbox and whatever is in it; its exit code."""
    # The inner processes end with their parents; the group reaches them where there are no namespaces.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()
