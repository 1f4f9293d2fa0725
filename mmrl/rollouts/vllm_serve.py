"""A server around one vLLM, for trainers in other environments or on other devices.

    python -m mmrl.rollouts.vllm_serve MODEL --port 8100          (in the environment that has vLLM)
    python -m mmrl.recipes.papo 7b --load.engine http://127.0.0.1:8100

It does what `vllm_local.LocalVLLM` does, one call at a time, and takes weights and adapters over the same connection:
messages are safetensors with JSON (`vllm_wire.py`), nothing in them is code. There is no password: it listens on this
machine alone unless --host says otherwise, and then belongs into a private network.

POST  /about            what it is, and the version of its weights
      /answer           questions, for a version of the weights: 409 if it has others. Each reply is a line, sent when
                        its question's answers have ended while others go on; a trainer that goes away ends them
      /weights/begin    names that will come, and who sends them: 423 while another sender is at it
      /weights/part     some of them; /weights/finish all have come, else 400
      /adapter          an adapter's config and tensors
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
from torch import Tensor

from mmrl.ground.printable import logger, tell
from mmrl.model.handing import ADAPTER_FILES
from mmrl.rollouts.vllm_wire import (
    GONE,
    About,
    Question,
    Reply,
    line_of,
    packed,
    questions_from,
    reply_to,
    unpacked,
)

log = logger(__name__)

LARGEST = 1 << 34
"""Bytes of a request that are read at most."""
FAREWELL = 1.0
"""Seconds in which a trainer is still told why the server ends."""
LEASE = 60.0
"""Seconds without a part after which a set of weights is taken for given up by its sender."""
STALLED = 60.0
"""Seconds that a trainer may leave a line unread before it is taken for gone."""


class Served(Protocol):
    """What is behind the server: `vllm_local.LocalVLLM`."""

    def about(self) -> About: ...
    def answer_in_turn(
        self,
        questions: Sequence[Question],
        version: str,
        tell: Callable[[int, Reply], None],
    ) -> list[Reply]: ...
    def begin(self) -> None: ...
    def take(self, weights: Iterable[tuple[str, Tensor]]) -> None: ...
    def finish(self, version: str, encoder: bool) -> None: ...
    def abandon(self) -> None: ...
    def adapt(self, folder: Path, version: str) -> None: ...
    def mourn(self, tell: Callable[[], None]) -> None: ...


class Refused(Exception):
    """What the server will not do: a status and the reason."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class Gone(Exception):
    """Nobody reads what is said. Raised through the vLLM, which so stops to draw."""


class Desk:
    """Answers messages with the vLLM behind it, one at a time."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self._lock = threading.Lock()
        self._missing: set[str] = set()
        self._coming = ""
        """Version of the weights that are on their way."""
        self._sender, self._heard = "", 0.0
        """Who sends them, and when the last of them came."""
        self._folders: list[tempfile.TemporaryDirectory[str]] = []

    def __call__(
        self, path: str, message: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """What is said to a message. Raises Refused."""
        calls = {
            "/about": self._about,
            "/weights/begin": self._begin,
            "/weights/part": self._part,
            "/weights/finish": self._finish,
            "/adapter": self._adapter,
        }
        if path not in calls:
            raise Refused(404, f"there is no {path}; there are /answer, {', '.join(calls)}")
        with self._lock:
            try:
                return calls[path](message, tensors)
            except KeyError as error:
                raise Refused(400, f"the message lacks {error}") from error

    def answer(
        self,
        message: Mapping[str, Any],
        frames: Mapping[str, Tensor],
        say: Callable[[dict[str, Any]], None],
    ) -> None:
        """Say each reply as it comes, and then how many there were. Raises Refused."""
        try:
            wanted, questions = message["version"], questions_from(message, frames)
        except KeyError as error:
            raise Refused(400, f"the message lacks {error}") from error
        with self._lock:
            held = self.served.about().version
            if held != wanted:
                raise Refused(409, f"asked for weights {wanted!r}, here are {held or 'none'!r}")
            replies = self.served.answer_in_turn(
                questions, wanted, lambda place, reply: say(reply_to(place, reply))
            )
        say({"end": len(replies)})

    def _about(self, message: Mapping[str, Any], _: Mapping[str, Tensor]) -> dict[str, Any]:
        return {"about": vars(self.served.about())}

    def _begin(self, message: Mapping[str, Any], _: Mapping[str, Tensor]) -> dict[str, Any]:
        sender, version = message["sender"], message["version"]
        if self.served.about().version == version:
            # Between the sender's look and this call another process has brought them.
            raise Refused(423, f"the weights {version!r} are here")
        if self._coming:
            silent = time.monotonic() - self._heard
            if sender != self._sender and silent < LEASE:
                raise Refused(423, f"another process brings the weights {self._coming!r}")
            self.served.abandon()
            self._coming = ""
        self.served.begin()
        self._coming, self._missing = version, set(message["names"])
        self._sender, self._heard = sender, time.monotonic()
        return {}

    def _part(
        self, message: Mapping[str, Any], weights: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        self._expect(message["version"])
        if unknown := sorted(set(weights) - self._missing):
            raise Refused(400, f"weights that are not expected (any more): {unknown[:3]}")
        try:
            self.served.take(weights.items())
        except BaseException:
            self.served.abandon()
            self._coming = ""
            raise
        self._missing -= set(weights)
        self._heard = time.monotonic()
        return {}

    def _finish(self, message: Mapping[str, Any], _: Mapping[str, Tensor]) -> dict[str, Any]:
        version = message["version"]
        self._expect(version)
        if self._missing:
            # A layer of which a part is missing would be made of uninitialised memory.
            raise Refused(
                400,
                f"{len(self._missing)} weights have not come, {sorted(self._missing)[:3]} among them",
            )
        self.served.finish(version, bool(message["encoder"]))
        self._coming = ""
        return {}

    def _adapter(
        self, message: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        place = tempfile.TemporaryDirectory(prefix="mmrl-adapter-")
        config, weights = (Path(place.name) / name for name in ADAPTER_FILES)
        config.write_text(message["config"], encoding="utf-8")
        safetensors.torch.save_file(dict(tensors), str(weights))
        self.served.adapt(Path(place.name), message["version"])
        # The engine may read it again until another one has come.
        self._folders = [*self._folders[-1:], place]
        return {}

    def _expect(self, version: str) -> None:
        if not self._coming:
            raise Refused(503, "no set of weights is on its way; begin anew")
        if version != self._coming:
            raise Refused(409, f"weights {self._coming!r} are on their way, not {version!r}")


def server_of(desk: Desk, host: str, port: int) -> ThreadingHTTPServer:
    """A server that listens already; `serve_forever` answers."""

    class Handler(BaseHTTPRequestHandler):
        """One message per request, and one in return, or lines."""

        _lines = False
        """Has a first line been said?"""

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            if length > LARGEST:
                self._say(413, f"{length} bytes, at most {LARGEST}".encode())
                return
            body = self.rfile.read(length)
            try:
                self._serve(*unpacked(body))
            except Gone as error:
                log.warning("%s: the trainer went away (%s)", self.path, error)
            except Refused as error:
                self._fail(error.status, str(error))
            except ValueError as error:
                self._fail(400, str(error))
            except Exception as error:  # told to the trainer, which tries again or stops
                log.exception("%s failed", self.path)
                self._fail(500, f"{type(error).__name__}: {error}")

        def _serve(self, message: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
            if self.path == "/answer":
                desk.answer(message, tensors, self._line)
            else:
                self._say(200, packed(desk(self.path, message, tensors)))

        def _fail(self, status: int, why: str) -> None:
            if not self._lines:
                self._say(status, why.encode())
                return
            with suppress(Gone):
                self._line({"status": status, "why": why})

        def _line(self, message: dict[str, Any]) -> None:
            """Say a line; the end of the connection is the end of the lines. Raises Gone."""
            try:
                if not self._lines:
                    self._lines = True
                    self.connection.settimeout(STALLED)
                    self.send_response(200)
                    self.end_headers()
                self.wfile.write(line_of(message))
            except OSError as error:
                raise Gone(f"{type(error).__name__}: {error}") from error

        def _say(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing per request."""

    return ThreadingHTTPServer((host, port), Handler)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve a model until the process is ended."""
    parser = argparse.ArgumentParser(
        prog="python -m mmrl.rollouts.vllm_serve", description="A server around one vLLM."
    )
    parser.add_argument("model", help="a model's folder or hub name, the one that is trained")
    parser.add_argument(
        "--host", default="127.0.0.1", help="where it listens (this machine alone)"
    )
    parser.add_argument("--port", type=int, default=8100, help="0: any that is free")
    parser.add_argument(
        "--logprobs", choices=("raw", "processed"), default="raw", help="raw: for temperature 1"
    )
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--length", type=int, default=None, help="most tokens of prompt and answer together"
    )
    parser.add_argument(
        "--media", type=int, default=16, help="most pictures, and most clips, of a prompt"
    )
    parser.add_argument(
        "--memory", type=float, default=0.9, help="share of the device's memory"
    )
    parser.add_argument("--rank", type=int, default=0, help="largest rank of adapters; 0: none")
    parser.add_argument(
        "--tower", action="store_true", help="adapters may adapt the vision tower"
    )
    parser.add_argument(
        "--invariant", action="store_true", help="kernels that do not depend on the batch"
    )
    parser.add_argument(
        "--tensor-parallel",
        type=int,
        default=1,
        metavar="N",
        help="devices of this machine that share the weights",
    )
    given = parser.parse_args(argv)
    if given.tensor_parallel < 1:
        parser.error(
            f"--tensor-parallel is {given.tensor_parallel}; it must be at least 1: whole weights on one device."
        )
    from mmrl.rollouts.vllm_local import LocalVLLM, UnfitVLLM

    try:
        served = _started(LocalVLLM, given)
    except UnfitVLLM as error:
        parser.error(str(error))
    serve(served, given.host, given.port)


def serve(served: Served, host: str, port: int) -> None:
    """Serve a vLLM until the process is ended. Raises SystemExit, with what to do, when a process of the vLLM ends."""
    with server_of(Desk(served), host, port) as server:
        over = threading.Event()

        def end() -> None:
            over.set()
            threading.Thread(target=server.shutdown, daemon=True).start()

        served.mourn(end)
        where = "http://{}:{}".format(*server.server_address[:2])
        tell(f"vLLM serves {served.about().model} at {where}")
        server.serve_forever()
        if over.is_set():
            time.sleep(FAREWELL)  # whoever waits for an answer is told as well
            raise SystemExit(GONE)


def _started(make: Callable[..., Any], given: argparse.Namespace) -> Any:
    """The vLLM that the arguments name."""
    return make(
        given.model,
        mode=given.logprobs,
        dtype=given.dtype,
        length=given.length,
        media=given.media,
        memory=given.memory,
        rank=given.rank,
        tower=given.tower,
        invariant=given.invariant,
        tensor_parallel=given.tensor_parallel,
    )


if __name__ == "__main__":
    main()
