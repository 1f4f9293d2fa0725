"""Decoding in a process that can be killed. Imports no torch, in either process.

A `DecodeWorker` owns one child. A request that overruns its time limit, or a decoder that crashes, costs the child and
raises `BadMedia`; the next request starts a new child. Pixels travel through one anonymous shared mapping that the
parent sizes and the child fills, so a clip exists once.

The child and its life are those of `mmrl.ground.process`. POSIX only (anonymous files are passed over a Unix socket);
elsewhere decode in-process with `isolate=False`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import tempfile
import threading
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import numpy as np

from mmrl.data.video.containers import decoder_faults
from mmrl.data.video.probe import ClipInfo, probe
from mmrl.data.video.readers import Backend, load_backend, read_into
from mmrl.ground.faults import BadMedia
from mmrl.ground.process import LOOK, START_LIMIT, Child, NotStarted

MEMORY = 4 << 30
"""Bytes of its own that a child may use. Two dozen frames of 8K, which a decoder may have to keep, are 1.5 GiB."""


class DecodeWorker:
    """One killable decoder. Safe to share between threads (requests queue) and to inherit by fork or pickle."""

    def __init__(
        self,
        backend: Backend | None = None,
        threads: int = 1,
        timeout: float = 60.0,
        recycle_after: int = 512,
    ) -> None:
        if timeout <= 0 or recycle_after < 1:
            raise ValueError(
                f"timeout is {timeout}, recycle_after is {recycle_after}; allowed are seconds above 0 and at least 1."
            )
        self.backend, self.threads = backend, threads
        self.timeout, self.recycle_after = timeout, recycle_after
        self.starts = 0
        """Children started so far."""
        self._forget()

    def probe(self, path: str) -> ClipInfo:
        """What the file holds. Raises BadMedia."""
        with self._guard():
            return self._ask(path, ("probe", path))

    def read(
        self,
        info: ClipInfo,
        indices: Sequence[int],
        size: tuple[int, int] | None = None,
        backend: Backend | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [F, 3, h, w] on a mapping of its own and float64 [F] seconds. `size` is (h, w). Raises BadMedia.

        `backend` reads this clip in the place of the worker's own.
        """
        height, width = size or (info.height, info.width)
        shape = (len(indices), 3, height, width)
        file = _anonymous_file(int(np.prod(shape)))
        try:
            with self._guard():
                request = ("read", info, list(indices), shape, backend)
                seconds = self._ask(info.path, request, file)
            frames = _mapped(file, int(np.prod(shape))).reshape(shape)
        finally:
            os.close(file)
        return frames, seconds

    def describe(self) -> tuple[Backend, str]:
        """The child's back-end and its version. Raises ImportError if it cannot be loaded."""
        with self._guard():
            self._start()
            assert self._loaded is not None
            return self._loaded

    def close(self) -> None:
        """End the child."""
        with self._guard():
            self._kill()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("backend", "threads", "timeout", "recycle_after", "starts")
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._pipe: Connection | None = None
        self._loaded: tuple[Backend, str] | None = None
        self._served = 0
        self._owner = os.getpid()

    def _guard(self) -> threading.Lock:
        """The lock; a forked copy first drops its parent's child, pipe and lock (which may be held for ever)."""
        if self._owner != os.getpid():
            self._forget()
        return self._lock

    def _kill(self, wait: float = 0.0) -> int | None:
        """End the child; the code with which it ended by itself within `wait` seconds, if it did."""
        if self._pipe is not None:
            self._pipe.close()
        child, self._child, self._pipe = self._child, None, None
        return None if child is None else child.end(wait)

    def _start(self) -> None:
        """Make sure that a child is listening."""
        # Recycled, because decoders leak.
        if self._child is not None and (
            not self._child.alive or self._served >= self.recycle_after
        ):
            self._kill()
        if self._child is not None:
            return
        try:
            target = "mmrl.data.video.decode_worker:answer_requests"
            self._child = Child(target, self.backend, self.threads)
        except NotStarted as error:
            raise ImportError(f"The decode worker did not start ({error}).") from None
        self._pipe = Connection(self._child.channel.detach())
        self._served, self.starts = 0, self.starts + 1
        if not self._pipe.poll(START_LIMIT):
            self._kill()
            raise TimeoutError(f"The decode worker did not start within {START_LIMIT:.0f} s.")
        kind, answer = self._receive()
        if kind != "done":
            self._kill()
            raise ImportError(
                answer or "The decode worker ended while it imported its decoder."
            )
        self._loaded = answer

    def _receive(self) -> tuple[str, Any]:
        assert self._pipe is not None
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            return "crash", None

    def _ask(self, path: str, request: tuple[Any, ...], file: int | None = None) -> Any:
        kind, answer = self._try(request, file)
        if kind == "crash":
            # Once more before the file is blamed: the child may have died of something else, such as lack of memory.
            kind, answer = self._try(request, file)
        if kind == "done":
            return answer
        if kind == "late":
            raise BadMedia(
                path, "timeout", f"not decoded within {self.timeout:g} s; the worker was killed"
            )
        if kind == "crash":
            raise BadMedia(
                path, "decoder crashed", f"the worker ended twice, with code {answer}"
            )
        raise BadMedia(*answer)

    def _try(self, request: tuple[Any, ...], file: int | None) -> tuple[str, Any]:
        self._start()
        assert self._pipe is not None and self._child is not None
        self._served += 1
        try:
            self._pipe.send(request)
            if file is not None:
                send_handle(self._pipe, file, self._child.pid)
            timely = self._pipe.poll(self.timeout)
        except OSError:
            timely = True  # the child died while it was being asked; receiving says so
        kind, answer = self._receive() if timely else ("late", None)
        if kind == "late":
            self._kill()
        elif kind == "crash":
            code = self._kill(LOOK)
            answer = -signal.SIGKILL if code is None else code
        return kind, answer


def answer_requests(descriptor: int, backend: Backend | None, threads: int) -> None:
    """The child's life: answer requests until the pipe closes."""
    pipe = Connection(descriptor)
    _limit_memory()
    try:
        loaded = load_backend(backend)
    except (ImportError, ValueError) as error:
        pipe.send(("error", str(error)))
        return
    pipe.send(("done", loaded))
    while True:
        try:
            kind, *arguments = pipe.recv()
        except (EOFError, OSError):
            return
        file = recv_handle(pipe) if kind == "read" else None
        try:
            pipe.send(_answer(file, loaded[0], threads, *arguments))
        finally:
            if file is not None:
                os.close(file)


def _limit_memory() -> None:
    """Let a file that makes its decoder ask for more than `MEMORY` fail by itself and not by the machine."""
    if not hasattr(resource, "RLIMIT_DATA"):
        return
    # The frames are not counted: they are on a shared mapping.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _answer(
    file: int | None, backend: Backend, threads: int, asked: Any, *more: Any
) -> tuple[str, Any]:
    """("done", value) or ("bad", arguments of a BadMedia); `asked` is a path to probe or the ClipInfo to read."""
    try:
        if file is None:
            return "done", probe(asked)
        with decoder_faults(asked.path):
            return "done", _fill(file, backend, threads, asked, *more)
    except BadMedia as error:
        return "bad", (error.where, error.reason, error.detail)


def _fill(
    file: int,
    backend: Backend,
    threads: int,
    info: ClipInfo,
    indices: list[int],
    shape: tuple[int, int, int, int],
    instead: Backend | None,
) -> np.ndarray:
    """Decode into the parent's mapping; the seconds of the frames."""
    mapping = mmap.mmap(file, int(np.prod(shape)))
    frames = np.frombuffer(mapping, dtype=np.uint8).reshape(shape)
    return read_into(frames, info, indices, instead or backend, threads)


def _mapped(file: int, size: int) -> np.ndarray:
    """uint8 [size] on the file's shared pages, unmapped with the last view of it.

    Python's own mmap keeps a descriptor open for as long as the array lives: a thousand clips in memory would use up
    the usual limit of open files.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, file, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, f"{size} bytes of frames cannot be mapped: {os.strerror(number)}")
    pages = (ctypes.c_uint8 * size).from_address(address)
    weakref.finalize(pages, libc.munmap, address, size).atexit = False
    return np.ctypeslib.as_array(pages)


def _anonymous_file(size: int) -> int:
    """A descriptor of `size` zero bytes that has no name, so that nothing is left behind by a killed process."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("clip", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as handle:
            file = os.dup(handle.fileno())
    os.ftruncate(file, max(size, 1))
    return file
