"""A server for the tools of a `Toolbox`: VerlTool's protocol (`wire.py`), for our client or for another one.

    server = server_of(toolbox, "127.0.0.1", 8500)
    server.serve_forever()

A trajectory is known by its id from its first request to `finish`; of those that never end the oldest are forgotten.
A turn that is asked for again, because its reply was lost, is not done again. A tool that fails is told with HTTP 503,
and what cannot be read with 400, so that neither looks like an observation.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mmrl.ground.printable import logger
from mmrl.tools.calling import Calling
from mmrl.tools.tool import Call, Observation, Trajectory
from mmrl.tools.toolbox import Toolbox
from mmrl.tools.wire import Garbage, Told, medium_of, reply_of, told_by
from mmrl.types import Prompt

log = logger(__name__)

LARGEST = 1 << 28
"""Bytes of a request that are read at most."""
KEPT = 1 << 16
"""Trajectories that are kept at most."""


class Failed(RuntimeError):
    """A tool failed, or the trajectory is not known any more."""


@dataclass(eq=False)
class _Known:
    """A trajectory that is going on."""

    trajectory: Trajectory
    lock: threading.Lock = field(default_factory=threading.Lock)
    told: tuple[object, Observation] | None = None
    """The last turn and what was said."""


class ToolDesk:
    """Does what requests ask for."""

    def __init__(self, toolbox: Toolbox, kept: int = KEPT) -> None:
        self.toolbox, self.kept = toolbox, kept
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, body: bytes) -> bytes:
        """The reply to a request. Raises Garbage, Failed, and ValueError for a reply that cannot be written."""
        return reply_of([self._one(told) for told in told_by(body)])

    def _one(self, told: Told) -> Observation:
        if told.finish:
            self._finish(told.trajectory)
            return Observation(done=True)
        known = self._of(told)
        # One turn after the other; who asks again while it is being done waits for it.
        with known.lock:
            turn = told.extra.get("turn")
            if known.told is None or turn is None or known.told[0] != turn:
                known.told = turn, self._done(known.trajectory, told.action)
            return known.told[1]

    def _of(self, told: Told) -> _Known:
        """The trajectory that is told of, opened if this is its first turn."""
        with self._lock:
            known = self._known.get(told.trajectory)
            if known is None:
                if told.extra.get("turn"):
                    raise Failed(f"the trajectory {told.trajectory!r} is not known any more")
                known = self._known[told.trajectory] = self._opened(told)
            self._known.move_to_end(told.trajectory)
            while len(self._known) > self.kept:
                self._known.popitem(last=False)
            return known

    def _opened(self, told: Told) -> _Known:
        key = told.extra.get("key", [told.trajectory])
        plain = isinstance(key, list) and all(isinstance(one, int | str) for one in key)
        images = told.extra.get("images") or []
        if not plain or not isinstance(images, list):
            raise Garbage("extra_fields whose key or images are of another kind")
        # Frames of a clip come as a list, and a clip of them would have no times.
        media = [medium_of(one[0] if isinstance(one, list) and one else one) for one in images]
        trajectory = Trajectory(Prompt(told.trajectory, ()), tuple(key), media)
        for tool in self.toolbox.tools:
            tool.begin(trajectory)
        return _Known(trajectory)

    def _done(self, trajectory: Trajectory, text: str) -> Observation:
        """Read an action and do it."""
        tool, action, why = self.toolbox.read(text)
        if tool is None or action is None:
            name = "" if tool is None else tool.name
            trajectory.calls.append(Call(name, None, "refused", why))
            return Observation(why, valid=False, note=why)
        with Calling(self.toolbox) as calling:
            calling.begin(0, tool, action, trajectory)
            ((_, answer),) = calling.done(wait=True)
        if answer.outcome in ("failed", "timeout"):
            raise Failed(answer.why)
        trajectory.calls.append(Call(tool.name, action, answer.outcome, answer.why))
        for medium in answer.observation.media:
            trajectory.add(medium)
        return answer.observation

    def _finish(self, name: str) -> None:
        with self._lock:
            known = self._known.pop(name, None)
        for tool in self.toolbox.tools if known is not None else ():
            assert known is not None, "looked at above"
            tool.end(known.trajectory)


def server_of(
    toolbox: Toolbox, host: str, port: int, *, kept: int = KEPT
) -> ThreadingHTTPServer:
    """A server that is not running yet; port 0: any free one (`server_address`)."""
    desk = ToolDesk(toolbox, kept)

    class Handler(BaseHTTPRequestHandler):
        """One request per connection."""

        def do_POST(self) -> None:
            """Any path."""
            try:
                size = int(self.headers.get("Content-Length") or 0)
                if not 0 <= size <= LARGEST:
                    self._say(413, f"at most {LARGEST} bytes are read".encode())
                    return
                self._say(200, desk(self.rfile.read(size)))
            except Garbage as error:
                self._say(400, str(error).encode())
            except Exception as error:  # whatever a tool does, the server goes on
                log.warning("a tool failed: %s", error)
                self._say(503, str(error).encode())

        def _say(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is written for each request."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    return server
