"""A vLLM behind a URL: the client of `vllm_serve.py`, by the standard library's HTTP.

A request that fails on its way, or that a server answers with 5xx, is sent again with growing pauses until `patience`
seconds have passed without a success: all of them may be repeated (draws are seeded, and a set of weights begins anew).
What a server refuses (4xx) is not. A server that was killed and started again has no weights of the run; it says so
(409), and the engine brings them again (`vllm_engine.LostWeights`).

Replies come one by one while the server goes on. When they break off all questions are asked again; of the replies that
were there already the first ones count.
"""

from __future__ import annotations

import http.client
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import safetensors.torch
from torch import Tensor

from mmrl.ground.printable import logger, printable
from mmrl.model.handing import ADAPTER_FILES
from mmrl.rollouts.vllm_engine import LostWeights, TellReply
from mmrl.rollouts.vllm_wire import (
    PROTOCOL,
    About,
    Question,
    Reply,
    from_line,
    packed,
    questions_to,
    reply_from,
    unpacked,
)

log = logger(__name__)

PART = 1 << 29
"""Bytes of weights that travel in one request, unless a single tensor has more."""
LARGEST = 1 << 33
"""Bytes of a message, or of a line of one, that are read at most."""
CONNECT, PAUSES = 10.0, (0.5, 1.0, 2.0, 5.0)
"""Seconds that a connection may take to come about, and between tries; the last one repeats."""
T = TypeVar("T")


class ServerGone(OSError):
    """The server did not answer for as long as anybody waits."""


class _TryAgain(OSError):
    """Something that may go away."""

    helped = False
    """Did the server say something new before?"""


class RemoteVLLM:
    """The engine of a server. `patience`: seconds of failures without a success; `slow`: seconds that it may be silent;
    `shared`: other processes ask it as well, and bring the same weights to it.

    Raises ServerGone, and ValueError for a server of another protocol.
    """

    def __init__(
        self,
        url: str,
        *,
        patience: float = 120.0,
        slow: float = 3600.0,
        shared: bool = False,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(
                f"--load.engine is {url!r}; it must be http://HOST:PORT, as `python -m mmrl.rollouts.vllm_serve` says."
            )
        self.url, self.patience, self.slow = url.rstrip("/"), patience, slow
        self._host, self._port = parts.hostname, parts.port or 80
        self._sender = secrets.token_hex(4)
        # Others bring the next weights while this process still waits for answers of the last ones.
        self.alone = not shared
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
        return self.answer_in_turn(questions, version, lambda number, reply: None)

    def answer_in_turn(
        self, questions: Sequence[Question], version: str, tell: TellReply
    ) -> list[Reply]:
        """As `answer`; `tell` is given each question's number and reply once, as soon as it is here."""
        message, frames = questions_to(questions)
        body = packed({**message, "version": version}, frames)
        replies: dict[int, Reply] = {}

        def ask() -> None:
            before = len(replies)
            try:
                with closing(self._replies(body)) as coming:
                    for place, reply in coming:
                        if place not in replies:
                            replies[place] = reply
                            tell(place, reply)
            except _TryAgain as error:
                error.helped = len(replies) > before
                raise

        # All of them each time: batched otherwise, an engine may round otherwise.
        self._patiently(ask, "/answer")
        return [replies[place] for place in sorted(replies)]

    def load(self, weights: Iterable[tuple[str, Tensor]], version: str, encoder: bool) -> None:
        """Send all weights, in parts. A set that breaks off begins anew."""
        whole = list(weights)
        names = [name for name, _ in whole]

        def send() -> None:
            if self.about().version == version:
                return  # another process has brought them meanwhile
            begin = {"version": version, "names": names, "sender": self._sender}
            self._once("/weights/begin", packed(begin))
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
        """Call until it succeeds, or patience ends: it begins with a failure, and anew when a call has helped."""
        failures, end = 0, 0.0
        while True:
            try:
                return call()
            except _TryAgain as error:
                if error.helped or not failures:
                    failures, end = 0, time.monotonic() + self.patience
                pause = PAUSES[min(failures, len(PAUSES) - 1)]
                failures += 1
                if time.monotonic() + pause > end:
                    raise ServerGone(
                        f"The engine at {self.url} has not answered {what} for {self.patience:.0f} s (last: {error}). "
                        "Start it again (python -m mmrl.rollouts.vllm_serve) and run the same command to go on."
                    ) from error
                log.warning("%s: %s; trying again in %.1f s", self.url, error, pause)
                time.sleep(pause)

    def _once(self, path: str, body: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
        with self._reply(path, body) as reply:
            found = reply.read(LARGEST)
        self._refuse(path, reply.status, found)
        try:
            return unpacked(found)
        except ValueError as error:
            raise _TryAgain(f"{path} was answered with {error}") from error

    def _replies(self, body: bytes) -> Generator[tuple[int, Reply], None, None]:
        """Questions' numbers and replies as they come. Raises _TryAgain unless all have come."""
        path, came = "/answer", 0
        with self._reply(path, body) as reply:
            if reply.status != 200:
                self._refuse(path, reply.status, reply.read(LARGEST))
            while True:
                message = _line(reply)
                if "status" in message:
                    self._refuse(path, message["status"], str(message["why"]).encode())
                if "end" in message:
                    break
                yield reply_from(message)
                came += 1
        if came != message["end"]:
            raise _TryAgain(f"of {message['end']} replies to {path} {came} came")

    def _refuse(self, path: str, status: int, found: bytes) -> None:
        """Raise what a status stands for, unless it is 200."""
        if status == 409:
            raise LostWeights(printable(found[:300].decode(errors="replace")))
        if status == 423:
            busy = _TryAgain(_shown(found))
            busy.helped = True  # the server is well, and busy for us
            raise busy
        if status >= 500:
            raise _TryAgain(f"{path} failed with {status}: {_shown(found)}")
        if status != 200:
            raise ValueError(
                f"The engine at {self.url} refuses {path} ({status}): {_shown(found)}"
            )

    @contextmanager
    def _reply(self, path: str, body: bytes) -> Iterator[http.client.HTTPResponse]:
        """A reply whose body is still to be read, inside the context."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=CONNECT)
        try:
            connection.connect()
            connection.sock.settimeout(self.slow)
            connection.request("POST", path, body)
            yield connection.getresponse()
        except _TryAgain:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgain(f"{path} broke off ({type(error).__name__}: {error})") from error
        finally:
            connection.close()


def _line(reply: http.client.HTTPResponse) -> dict[str, Any]:
    line = reply.readline(LARGEST)
    if not line:
        raise _TryAgain("/answer broke off (no end was said)")
    try:
        return from_line(line)
    except ValueError as error:
        raise _TryAgain(f"/answer was answered with {error}") from error


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
