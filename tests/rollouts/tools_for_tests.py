"""Tools for tests of the loop. The tiny policy's random words end soon at the letters that stop its turns."""

from __future__ import annotations

import threading
import time

import torch

from mmrl.ground.seeds import derive_seed
from mmrl.tools.tool import Action, BadAction, Observation, Tool
from mmrl.types import Media

NEXT = ("e", "a", " ")


class Counting(Tool):
    """Counts the letters of a turn and remembers how many it saw; refuses short turns."""

    name, usage, stop, quick = "counting", "Write words.", NEXT, True

    def __init__(self, least=1):
        self.least = least

    def parse(self, text):
        if len(text) < self.least:
            raise BadAction(f"{text!r} is too short")
        return Action(self.name, {"text": text})

    def act(self, action, trajectory):
        seen = trajectory.state.setdefault(self.name, [])
        seen.append(len(action.arguments["text"]))
        return Observation(f"so {sum(seen)}", found={"letters": seen[-1]})


class Slow(Counting):
    """In a thread, slower for some answers than for others; notes which thread it ran in."""

    name, quick = "slow", False

    def __init__(self, seconds=lambda trajectory: 0.0, asynchronous=False):
        super().__init__()
        self.seconds, self.order, self.threads = seconds, [], set()

    def act(self, action, trajectory):
        time.sleep(self.seconds(trajectory))
        self.order.append(trajectory.key)
        self.threads.add(threading.current_thread().name)
        return super().act(action, trajectory)


class Scripted(Tool):
    """Does at its n-th call of an answer what the script says: gives an observation, or raises."""

    name, stop = "scripted", NEXT

    def __init__(self, *script, quick=True, parse=None):
        self.script, self.quick, self.parses, self.tried, self.over = script, quick, parse, 0, 0

    def begin(self, trajectory):
        if self.parses == "begin":
            raise OSError("no room")

    def parse(self, text):
        if isinstance(self.parses, Exception):
            raise self.parses
        return Action(self.name) if self.parses != "nothing" else None

    def act(self, action, trajectory):
        self.tried += 1
        told = self.script[min(trajectory.turn, len(self.script) - 1)]
        if callable(told):
            told = told(self)
        if isinstance(told, Exception):
            raise told
        return told

    def end(self, trajectory):
        self.over += 1


class Broken(Counting):
    """Raises for every n-th answer, told apart by its prompt and number."""

    name = "broken"

    def __init__(self, every=1, error=RuntimeError("out of order")):
        super().__init__()
        self.every, self.error, self.tried = every, error, 0

    def act(self, action, trajectory):
        self.tried += 1
        if derive_seed(*trajectory.key) % self.every == 0:
            raise self.error
        return super().act(action, trajectory)


class Drawing(Tool):
    """Shows a picture that is drawn by the answer's own draws, and the last picture upside down."""

    name, stop, quick = "drawing", NEXT, True

    def parse(self, text):
        return Action(self.name)

    def act(self, action, trajectory):
        rng = trajectory.rng()
        new = torch.randint(0, 256, (1, 3, 32, 48), generator=rng, dtype=torch.uint8)
        return Observation("look <image> here", (Media(new),))
