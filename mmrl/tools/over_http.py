"""A tool behind a server: the client, which speaks VerlTool's protocol (`wire.py`).

What goes wrong on the way is a failure of the tool and never an observation: a refused connection, silence, half a
reply, any status but 200, and a reply that is no reply. `Calling` then asks again, and in the end the answer is lost.
Our server (`serving.py`) does a turn once however often it is asked for; others may do it twice.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Mapping
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from mmrl.ground.posting import post, shown
from mmrl.ground.printable import logger
from mmrl.ground.seeds import digest
from mmrl.tools.tool import Action, Observation, Tool, Trajectory
from mmrl.tools.wire import Told, observation_in, picture_of, request_of

log = logger(__name__)

HEADERS = {"Content-Type": "application/json"}
PARTING = 5.0
"""Seconds that a server may take to hear that answers are over."""
AT_ONCE = 1024
"""Answers in one such message."""


class RemoteFailure(OSError):
    """The server did not do what it was asked for."""


class RemoteTool(Tool):
    """The tools of a server. It decides which of them an action is for, so it stands last in a `Toolbox`."""

    def __init__(
        self,
        url: str,
        stop: tuple[str, ...],
        *,
        usage: str = "",
        name: str = "remote",
        silence: float = 3600.0,
    ) -> None:
        """`url`: where requests go, as http://HOST:PORT/get_observation; `stop`, `usage`: those of its tools;
        `silence`: seconds that one request may take, if `ToolUse.time_limit` is not shorter."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"RemoteTool.url is {shown(url, None)!r}; give http(s)://host[:port]/path of the tool server."
            )
        self.url, self.stop, self.usage, self.name = url, stop, usage, name
        self.silence = silence
        # Two runs with one seed may share a server.
        self._run = secrets.token_hex(4)
        self._over: SimpleQueue[str] = SimpleQueue()
        self._parting: threading.Thread | None = None

    def parse(self, text: str) -> Action | None:
        """Whatever ends with a stop string: the server reads it."""
        ended = any(stop in text for stop in self.stop)
        return Action(self.name, {"text": text}) if ended else None

    async def act(self, action: Action, trajectory: Trajectory) -> Observation:
        """Ask the server. Raises OSError, and ValueError for a reply that is none."""
        name = self._name(trajectory)
        told = Told(name, str(action.arguments["text"]), False, self._extra(trajectory))
        reply = await post(self.url, HEADERS, request_of([told]), self.silence)
        if reply.status != 200:
            why = shown(reply.body, None)
            raise RemoteFailure(f"the server said HTTP {reply.status}: {why}")
        return observation_in(reply.body)

    def end(self, trajectory: Trajectory) -> None:
        """Tell the server, which need not hear of it, and nobody waits."""
        self._over.put(self._name(trajectory))
        if self._parting is None or not self._parting.is_alive():
            self._parting = threading.Thread(
                target=self._part, name="mmrl-tools-parting", daemon=True
            )
            self._parting.start()

    def _name(self, trajectory: Trajectory) -> str:
        return f"{self._run}-{digest(*trajectory.key).hex()}"

    def _extra(self, trajectory: Trajectory) -> Mapping[str, Any]:
        own = [call for call in trajectory.calls if call.tool == self.name]
        extra: dict[str, Any] = {"turn": len(own), "key": list(trajectory.key)}
        if not own:
            extra["images"] = [picture_of(medium) for medium in trajectory.media]
        return extra

    def _part(self) -> None:
        """Say which answers are over, many at a time, until nobody tells of one for a while."""
        while True:
            over: list[str] = []
            try:
                over.append(self._over.get(timeout=PARTING))
                # So that those which end together are told together.
                time.sleep(0.02)
                while len(over) < AT_ONCE:
                    over.append(self._over.get_nowait())
            except Empty:
                if not over:
                    return
            body = request_of([Told(name, "", True, {}) for name in over], last=True)
            try:
                asyncio.run(post(self.url, HEADERS, body, PARTING))
            except OSError as error:
                log.debug("the tool server did not hear of %d ends: %s", len(over), error)
