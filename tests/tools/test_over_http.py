"""Tools behind a server: the same answers as in the process, and what goes wrong is a failure, never an observation."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from mmrl.model.policy import Policy
from mmrl.tools.calling import Calling
from mmrl.tools.over_http import RemoteTool
from mmrl.tools.serving import ToolDesk, server_of
from mmrl.tools.tool import BadAction, Observation, Trajectory
from mmrl.tools.toolbox import Toolbox, ToolUse
from mmrl.tools.wire import Garbage, Told, medium_of, observation_in, picture_of, request_of
from mmrl.types import Media, Prompt
from tests.rollouts.test_engine import PROMPTS
from tests.rollouts.test_tool_use import SAMPLING, answers, tokens
from tests.rollouts.tools_for_tests import NEXT, Counting, Drawing, Scripted

QUICK = ToolUse(time_limit=5.0, retries=1, pause=0.0)


@contextmanager
def running(server):
    threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/get_observation"
    finally:
        server.shutdown()
        server.server_close()


def serving(*tools, **more):
    return running(server_of(Toolbox(tools, QUICK), "127.0.0.1", 0, **more))


def trajectory(*key, media=()):
    return Trajectory(Prompt("q", ()), key or ("run", 1), list(media))


def called(tool, text="go e", where=None, use=QUICK):
    """What becomes of one call."""
    where = where or trajectory()
    with Calling(Toolbox((tool,), use)) as calling:
        calling.begin(3, tool, tool.parse(text), where)
        ((ticket, answer),) = calling.done(wait=True)
    assert ticket == 3 and calling.under_way == 0
    return answer


@pytest.mark.parametrize("make", [Counting, Drawing])
def test_a_server_answers_as_the_tool_in_the_process(tiny_folder, make):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    sampling = replace(SAMPLING, max_tokens=96)
    with serving(make()) as url:
        there = answers(policy, RemoteTool(url, NEXT), sampling=sampling, prompts=PROMPTS[:2])
    here = answers(policy, make(), sampling=sampling, prompts=PROMPTS[:2])
    assert tokens(there) == tokens(here)
    assert [[c.found for c in r.calls] for r in there] == [
        [c.found for c in r.calls] for r in here
    ]
    media = ([m.frames for r in found for m in r.media] for found in (there, here))
    assert all(torch.equal(a, b) for a, b in zip(*media, strict=True))


def test_pictures_travel_without_loss_and_in_their_order():
    media = [Media(torch.randint(0, 256, (1, 3, 7, n), dtype=torch.uint8)) for n in (5, 9)]
    for medium in media:
        assert torch.equal(medium_of(picture_of(medium)).frames, medium.frames)
    seen = []

    def looks(tool):
        seen.extend(tool.last.media)
        return Observation("two", (tool.last.media[1], tool.last.media[0]), note="well")

    class Looking(Scripted):
        def begin(self, trajectory):
            self.last = trajectory

    with serving(Looking(looks)) as url:
        answer = called(RemoteTool(url, NEXT), where=trajectory(media=media))
    assert [torch.equal(a.frames, b.frames) for a, b in zip(seen, media, strict=False)] == [
        True
    ] * 2
    found = answer.observation
    assert found.text == "two\n<image>\n<image>" and len(found.media) == 2
    assert torch.equal(found.media[0].frames, media[1].frames)


def test_a_turn_is_done_once_however_often_it_is_asked_for():
    tool = Counting()
    desk = ToolDesk(Toolbox((tool,), QUICK), kept=2)

    def ask(name, turn, text="ab e"):
        return observation_in(desk(request_of([Told(name, text, False, {"turn": turn})])))

    assert [ask("x", 0).text, ask("x", 0).text, ask("x", 1).text] == ["so 4", "so 4", "so 8"]
    assert ask("y", 0).text == "so 4", "each has its own state"
    # Without turns, as others ask, each request is a new one.
    plain = request_of([Told("z", "ab e", False, {})])
    assert [observation_in(desk(plain)).text for _ in range(2)] == ["so 4", "so 8"]
    with pytest.raises(RuntimeError, match="'x' is not known any more"):
        ask("x", 2)
    over = json.loads(desk(request_of([Told("y", "", True, {})], last=True)))
    assert over == {"observations": [""], "dones": [True], "valids": [True]}
    assert ask("y", 0).text == "so 4", "it was forgotten"


def test_what_a_tool_refuses_is_an_observation_and_what_fails_is_none():
    with serving(Scripted(BadAction("no such picture"))) as url:
        answer = called(RemoteTool(url, NEXT))
        assert answer.outcome == "refused" and answer.why == "no such picture"
    with serving(Scripted(OSError("no disk"))) as url:
        answer = called(RemoteTool(url, NEXT))
        assert (
            answer.outcome == "failed" and "HTTP 503" in answer.why and "no disk" in answer.why
        )
    with serving(Scripted(parse="nothing")) as url:
        answer = called(RemoteTool(url, NEXT))
        assert (
            answer.outcome == "refused" and "The tools are: scripted" in answer.observation.text
        )


GOOD = {"observations": ["hello"], "dones": [False], "valids": [True]}
BROKEN = {
    "no json": b"<html>",
    "no object": b"[1]",
    "deep": b"[" * 100_000,
    "nothing": b"{}",
    "two answers": json.dumps({**GOOD, "observations": ["a", "b"]}).encode(),
    "a number": json.dumps({**GOOD, "observations": [3]}).encode(),
    "no word of done": json.dumps({**GOOD, "dones": ["no"]}).encode(),
    "a bad picture": json.dumps({**GOOD, "observations": [{"obs": "", "image": "data:,AAAA"}]}).encode(),
    "an odd picture": json.dumps({**GOOD, "observations": [{"obs": "", "image": [7]}]}).encode(),
    "an odd text": json.dumps({**GOOD, "observations": [{"obs": 1}]}).encode(),
}  # fmt: skip


@contextmanager
def misbehaving(says):
    """A server that writes these bytes in the place of a reply, or what it is given as (status, body)."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(time.monotonic())
            said = says(len(asked)) if callable(says) else says
            if isinstance(said, bytes):
                self.wfile.write(said)
                return
            status, body = said
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    with running(server) as url:
        yield url, asked


def test_whatever_a_server_does_wrong_is_a_failure():
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answer = called(RemoteTool(f"http://127.0.0.1:{port}/", NEXT))
    assert answer.outcome == "failed" and answer.observation == Observation()
    wrong = [(status, b"\x1b[31mtorn") for status in (400, 404, 413, 429, 500, 502, 503, 204)]
    wrong += [(200, body) for body in BROKEN.values()]
    wrong += [b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\n{", b"", b"nonsense\r\n\r\n"]
    turn = iter(wrong)
    with misbehaving(lambda number: next(turn)) as (url, asked):
        tool = RemoteTool(url, NEXT)
        for said in wrong:
            answer = called(tool, use=replace(QUICK, retries=0))
            assert answer.outcome == "failed", said
            assert answer.observation == Observation() and "\x1b" not in answer.why
        assert len(asked) == len(wrong)
    with misbehaving(lambda n: (500, b"") if n == 1 else (200, json.dumps(GOOD).encode())) as (
        url,
        asked,
    ):
        answer = called(RemoteTool(url, NEXT))
        assert answer.outcome == "answered" and answer.observation.text == "hello"
        assert len(asked) == 2
    with misbehaving(lambda number: time.sleep(1.0) or b"") as (url, asked):
        answer = called(RemoteTool(url, NEXT), use=replace(QUICK, time_limit=0.1))
        assert answer.outcome == "timeout" and len(asked) == 2


def test_ends_are_told_many_at_a_time():
    over = []

    class Ending(Counting):
        def end(self, trajectory):
            over.append(trajectory.key)

    with serving(Ending()) as url:
        tool = RemoteTool(url, NEXT)
        each = [trajectory("run", n) for n in range(5)]
        for one in each:
            called(tool, where=one)
        for one in each:
            tool.end(one)
        until = time.monotonic() + 20
        while len(over) < 5 and time.monotonic() < until:
            time.sleep(0.01)
    assert sorted(over) == [("run", n) for n in range(5)]


def test_what_a_server_is_asked_wrong_is_said_with_400():
    desk = ToolDesk(Toolbox((Counting(),), QUICK))
    for body in (
        b"",
        b"[]",
        json.dumps({"trajectory_ids": ["a"], "actions": []}).encode(),
        json.dumps({"trajectory_ids": [1], "actions": ["x"]}).encode(),
        request_of([Told("a", "x e", False, {"key": [1.5]})]),
        request_of([Told("a", "x e", False, {"images": ["zz"]})]),
    ):
        with pytest.raises(Garbage):
            desk(body)
    with pytest.raises(ValueError, match=r"RemoteTool\.url is 'ftp://x'"):
        RemoteTool("ftp://x", NEXT)
