"""A vLLM behind a URL: the client of `vllm_serve.py`, by the standard library's HTTP.

A request that fails on its way, or that a server answers with 5xx, is sent again with growing pauses until `patience`
seconds have passed without a success: all of them may be repeated (draws are seeded, and a set of weights begins anew).
What a server refuses (4xx) is not. A server that was killed and started again has no weights of the run; it says so
(409), and the engine brings them again (`vllm_engine.LostWeights`).
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import safetensors.torch
from torch import Tensor

from mmrl.ground.printable import logger, printable
from mmrl.model.handing import ADAPTER_FILES
from mmrl.rollouts.vllm_engine import LostWeights
from mmrl.rollouts.vllm_wire import (
    PROTOCOL,
    About,
    Question,
    Reply,
    packed,
    questions_to,
    replies_from,
    unpacked,
)

log = logger(__name__)

PART = 1 << 29
"""Bytes of weights that travel in one request, unless a single tensor has more."""
LARGEST = 1 << 33
"""Bytes of a reply that are read at most."""
CONNECT, PAUSES = 10.0, (0.5, 1.0, 2.0, 5.0)
"""Seconds that a connection may take to come about, and between tries; the last one repeats."""
T = TypeVar("T")


class ServerGone(OSError):
    """The server did not answer for as long as anybody waits."""


class _TryAgain(OSError):
    """Something that may go away."""


class RemoteVLLM:
    """The engine of a server. `patience`: seconds without a success; `slow`: seconds that one request may take.

    Raises ServerGone, and ValueError for a server of another protocol.
    """

    alone = True

    def __init__(self, url: str, *, patience: float = 120.0, slow: float = 3600.0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(
                f"--load.engine is {url!r}; it must be http://HOST:PORT, as `python -m mmrl.rollouts.vllm_serve` says."
            )
        self.url, self.patience, self.slow = url.rstrip("/"), patience, slow
        self._host, self._port = parts.hostname, parts.port or 80
        self.about()

    def about(self) -> About:
        """What it is, and which weights it holds."""
        message, _ = self._insist("/about", lambda: packed({}))
        found = message.get("about", {})
        if found.get("protocol") != PROTOCOL:
            raise ValueError(
                f"{self.url} speaks protocol {found.get('protocol')!r}, this mmrl {PROTOCOL}; run the same version of "
                "mmrl on both sides."
            )
        return About(**found)

    def answer(self, questions: Sequence[Question], version: str) -> list[Reply]:
        """Replies in the order of the questions. Raises LostWeights if it holds others."""
        message, frames = questions_to(questions)
        body = packed({**message, "version": version}, frames)
        told, _ = self._insist("/answer", lambda: body)
        return replies_from(told)

    def load(self, weights: Iterable[tuple[str, Tensor]], version: str, encoder: bool) -> None:
        """Send all weights, in parts. A set that breaks off begins anew."""
        whole = list(weights)
        names = [name for name, _ in whole]

        def send() -> None:
            self._once("/weights/begin", packed({"version": version, "names": names}))
            for part in _parts(whole):
                self._once("/weights/part", packed({"version": version}, dict(part)))
            self._once("/weights/finish", packed({"version": version, "encoder": encoder}))

        self._patiently(send, f"took weights {version}")

    def adapt(self, folder: Path, version: str) -> None:
        """Send an adapter's files."""
        config, weights = (folder / name for name in ADAPTER_FILES)
        tensors = safetensors.torch.load_file(str(weights))
        message = {"version": version, "config": config.read_text(encoding="utf-8")}
        body = packed(message, tensors)
        self._insist("/adapter", lambda: body)

    def sleep(self) -> None:
        """A server has a device of its own."""

    def _insist(
        self, path: str, body: Callable[[], bytes]
    ) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
        return self._patiently(lambda: self._once(path, body()), path)

    def _patiently(self, call: Callable[[], T], what: str) -> T:
        """Call until it succeeds, or patience ends."""
        end = time.monotonic() + self.patience
        for number in range(1 << 30):
            try:
                return call()
            except _TryAgain as error:
                pause = PAUSES[min(number, len(PAUSES) - 1)]
                if time.monotonic() + pause > end:
                    raise ServerGone(
                        f"The engine at {self.url} has not answered {what} for {self.patience:.0f} s (last: {error}). "
                        "Start it again (python -m mmrl.rollouts.vllm_serve) and run the same command to go on."
                    ) from error
                log.warning("%s: %s; trying again in %.1f s", self.url, error, pause)
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _once(self, path: str, body: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
        status, found = self._post(path, body)
        if status == 409:
            raise LostWeights(printable(found[:300].decode(errors="replace")))
        if status >= 500:
            raise _TryAgain(f"{path} failed with {status}: {_shown(found)}")
        if status != 200:
            raise ValueError(
                f"The engine at {self.url} refuses {path} ({status}): {_shown(found)}"
            )
        try:
            return unpacked(found)
        except ValueError as error:
            raise _TryAgain(f"{path} was answered with {error}") from error

    def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=CONNECT)
        try:
            connection.connect()
            connection.sock.settimeout(self.slow)
            connection.request("POST", path, body)
            reply = connection.getresponse()
            return reply.status, reply.read(LARGEST)
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgain(f"{path} broke off ({type(error).__name__}: {error})") from error
        finally:
            connection.close()


def _parts(weights: Sequence[tuple[str, Tensor]]) -> Iterator[list[tuple[str, Tensor]]]:
    """Cut into lists of about `PART` bytes."""
    part: list[tuple[str, Tensor]] = []
    size = 0
    for name, weight in weights:
        if part and size + weight.nbytes > PART:
            yield part
            part, size = [], 0
        part.append((name, weight))
        size += weight.nbytes
    if part:
        yield part


def _shown(body: bytes) -> str:
    return printable(" ".join(body[:600].decode(errors="replace").split())) or "(nothing)"
