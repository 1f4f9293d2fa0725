"""A vLLM that is made up, and a loopback server around it that misbehaves on demand."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import torch

from mmrl.rollouts.vllm_serve import Desk, Gone, server_of
from mmrl.rollouts.vllm_wire import About, Reply, Said, packed

FACTOR = 16
"""Pixels of one visual token along each side, of the tiny model."""


class MadeUp:
    """A vLLM that draws nonsense, but keeps its books like the real one. `faults`: what it does wrong next."""

    alone = False

    def __init__(self, policy, rank=0):
        self.policy, self.rank, self.faults = policy, rank, []
        self.held, self.got, self.asked, self.done = "", {}, [], []
        self.asked_of = []
        """Which weights each call asked, by number."""

    def about(self):
        return About("0.32.0", "made up", self.held, "raw", 512, self.rank)

    def answer(self, questions, version):
        fault = self.faults.pop(0) if self.faults else ""
        self.asked.append(list(questions))
        self.asked_of.append(self._number())
        replies = [self._reply(one, fault) for one in questions]
        return replies[:-1] if fault == "drop a reply" else replies

    def answer_in_turn(self, questions, version, tell):
        replies = self.answer(questions, version)
        for place, reply in enumerate(replies):
            tell(place, reply)
        return replies

    def _reply(self, one, fault):
        # By the weights as well: other ones draw other answers.
        seed = one.params.get("seed", 0) + 7_919 * self._number()
        rng = torch.Generator().manual_seed(seed)
        banned = set(one.params["banned"])
        allowed = [n for n in range(5, 200) if n not in banned]
        answers = []
        for _ in range(one.params["n"]):
            drawn = torch.randint(len(allowed), (one.params["max_tokens"],), generator=rng)
            tokens = [allowed[n] for n in drawn.tolist()]
            if fault == "draw a marker":
                tokens[-1] = min(banned)
            logp = [float("nan") if fault == "nan" else -1.0] * len(tokens)
            version = "older" if fault == "old weights" else self.held
            answers.append(Said(tokens, logp, "length", None, version))
        seen = self._expanded(one)
        if fault == "other ids":
            seen[2] += 1
        return Reply(seen, answers[:-1] if fault == "drop an answer" else answers)

    def _number(self):
        return int(self.held.rpartition(".")[2] or 0)

    def _expanded(self, one):
        pads = set(self.policy.family.placeholder_ids(self.policy.base.config).values())
        left, seen = iter(one.media), []
        for token in one.ids:
            count = 1
            if token in pads:
                frames = next(left).frames
                count = frames.shape[2] * frames.shape[3] // FACTOR**2
            seen += [token] * count
        return seen

    def begin(self):
        self.held, self.got = "", {}
        self.done.append("begin")

    def take(self, weights):
        if self.faults and self.faults[0] == "refuse weights":
            self.faults.pop(0)
            raise RuntimeError("no room")
        self.got |= {name: weight.clone() for name, weight in weights}

    def finish(self, version, encoder):
        self.held = version
        self.done.append(f"finish {'and forget pictures' if encoder else ''}".strip())

    def abandon(self):
        self.done.append("abandon")

    def adapt(self, folder, version):
        self.held, self.got = version, {p.name: p.read_bytes() for p in folder.iterdir()}

    def mourn(self, tell):
        self.mourned = tell

    def load(self, weights, version, encoder):
        self.begin()
        self.take(weights)
        self.finish(version, encoder)

    def sleep(self):
        self.done.append("sleep")


@contextmanager
def loopback(made_up):
    """A server around it; `faults[path]` are what happens to the next requests there."""
    server = server_of(Desk(made_up), "127.0.0.1", 0)
    faults = {}
    plain = server.RequestHandlerClass

    class Handler(plain):
        left = None
        """Lines that are still said before the connection breaks."""

        def do_POST(self):
            fault = faults[self.path].pop(0) if faults.get(self.path) else ""
            if fault.startswith(("cut ", "killed ")):
                word, lines = fault.split()
                self.left, self.killed, fault = int(lines), word == "killed", ""
            if fault:
                self.rfile.read(int(self.headers["Content-Length"]))
            if fault == "500":
                self._say(500, b"\x1b[31mout of memory")
            elif fault == "garbage":
                self._say(200, b"<html>a proxy</html>")
            elif fault == "half":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"{")
                self.close_connection = True
            elif fault == "closed":
                self.close_connection = True
            elif fault == "slow":
                time.sleep(0.6)
            elif fault == "other protocol":
                self._say(200, packed({"about": {**vars(made_up.about()), "protocol": 99}}))
            elif fault == "restarted":
                made_up.held = ""
                self._say(500, b"starting")
            else:
                super().do_POST()

        def _line(self, message):
            if self.left == 0:
                made_up.held = "" if self.killed else made_up.held
                raise Gone("cut")
            if self.left is not None:
                self.left -= 1
            super()._line(message)

    server.RequestHandlerClass = Handler
    thread = threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", faults
    finally:
        server.shutdown()
        server.server_close()
