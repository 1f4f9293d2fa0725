"""The judge against a real server process on loopback that does everything wrong, and the local judge."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrl.ground.posting import Reply, redact
from mmrl.rewards.judge import (
    Budget,
    BudgetSpent,
    Judge,
    JudgeUnavailable,
    LocalJudge,
    RequestRefused,
)
from mmrl.rewards.judge_ledger import request_key
from mmrl.rewards.pay import Rewards, RewardStopped
from mmrl.types import Prompt, Rollout

KEY = "sk-very-secret-0123456789"

SERVER = r"""
import json, os, sys, threading, time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

seen, active, peak, lock = Counter(), 0, 0, threading.Lock()

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, status, body, headers=(), length=None):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        global active, peak
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = request["messages"][-1]["content"]
        with lock:
            seen[text] += 1
            count = seen[text]
            active += 1
            peak = max(peak, active)
        try:
            self.act(text, count, request)
        finally:
            with lock:
                active -= 1

    def act(self, text, count, request):
        kind, _, argument = text.partition(" ")
        good = {"choices": [{"message": {"role": "assistant", "content": "echo " + text}}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 20}}
        if kind == "stats":
            good["choices"][0]["message"]["content"] = json.dumps({"seen": seen, "peak": peak})
        if kind == "auth":
            good["choices"][0]["message"]["content"] = self.headers.get("Authorization", "none")
        if kind == "no_usage":
            del good["usage"]
        if kind == "usage":  # usage <what the server reports, as JSON>
            good["usage"] = json.loads(argument)
        if kind == "says":  # says <a text, as JSON>
            good["choices"][0]["message"]["content"] = json.loads(argument)
        if kind == "after" and count == 1:  # after <a value of Retry-After>
            return self.reply(429, b"later", [("Retry-After", argument)])
        if kind == "quotes":  # quotes <status> <a body with KEY in it>
            code, quoted = argument.split(" ", 1)
            key = self.headers["Authorization"].split()[1]
            return self.reply(int(code), quoted.replace("KEY", key).encode())
        if kind == "slow":
            time.sleep(float(argument.split()[0]))
        if kind == "hang":
            time.sleep(600)
        if kind == "status":  # status <code> <how often>
            code, often = argument.split()[:2]
            if count <= int(often):
                headers = [("Retry-After", "0.6")] if "later" in argument else []
                return self.reply(int(code), b"sorry, key " + self.headers.get("Authorization", "").encode(), headers)
        if kind in ("garbage", "empty", "null", "array", "deep") and count <= int(argument or 1000):
            bodies = {"garbage": b"\xff\xfe<html>", "empty": b"", "null": b'{"choices":[{"message":{"content":null}}]}',
                      "array": b"[1,2]", "deep": b"[" * 100000}
            return self.reply(200, bodies[kind])
        if kind == "half" and count <= int(argument or 1000):
            self.close_connection = True
            return self.reply(200, json.dumps(good).encode()[:40], length=4000)
        if kind == "cut" and count <= int(argument or 1000):
            self.close_connection = True
            return self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-")
        if kind == "nohttp":
            self.close_connection = True
            return self.wfile.write(b"220 mail server ready\r\n\r\n")
        if kind == "huge":
            return self.reply(200, b"", length=1 << 40)
        if kind == "die":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")
            self.wfile.flush()
            os._exit(1)
        body = json.dumps(good).encode()
        if kind == "chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(body), 7):
                piece = body[start:start + 7]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            return self.wfile.write(b"0\r\n\r\n")
        if kind == "until_close":
            self.close_connection = True
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n" + body)
            return
        self.reply(200, body)

class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    def handle_error(self, *args):
        pass

server = Server(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


def start_server() -> tuple[subprocess.Popen[bytes], str]:
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, f"http://127.0.0.1:{int(process.stdout.readline())}/v1"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    process, url = start_server()
    yield url
    process.kill()
    process.wait()


def judge(url: str, **arguments: Any) -> Judge:
    return Judge(
        url,
        "test-model",
        **({"backoff": 0.02, "request_timeout": 2.0, "deadline": 10.0} | arguments),
    )


def ask(one: Judge, *texts: str) -> list[Any]:
    async def run() -> list[Any]:
        questions = (one([{"role": "user", "content": text}]) for text in texts)
        return await asyncio.gather(*questions, return_exceptions=True)

    return asyncio.run(run())


def stats(url: str) -> dict[str, Any]:
    return json.loads(ask(judge(url), f"stats {time.monotonic_ns()}")[0])


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.parametrize(
    "text", ["hello", "chunked", "until_close", "slow 0.3", "no_usage", "ünïcode \ud83d\ude00"]
)
def test_good_replies(address: str, text: str) -> None:
    text = text.encode("utf-16", "surrogatepass").decode("utf-16")
    assert ask(judge(address), text) == ["echo " + text]


@pytest.mark.parametrize(
    "text",
    [
        "status 429 2",
        "status 500 2",
        "status 503 1",
        "garbage 2",
        "empty 1",
        "null 1",
        "half 2",
        "cut 2",
    ],
)
def test_passing_trouble_is_retried(address: str, text: str) -> None:
    one = judge(address)
    assert ask(one, text) == ["echo " + text]
    assert one.metrics()["judge/retries"] == int(text.split()[-1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("garbage", "no chat completion"),
        ("array", "no chat completion"),
        ("deep", "no chat completion"),
        ("half", "no complete reply"),
        ("cut", "no complete reply"),
        ("nohttp", "no HTTP status line"),
        ("huge", "at most"),
        ("status 500 99", "HTTP 500"),
        ("hang", "no reply in time"),
    ],
)
def test_lasting_trouble_is_an_outage_after_all_attempts(
    address: str, text: str, message: str
) -> None:
    one = judge(address, attempts=2, request_timeout=0.5)
    (error,) = ask(one, text)
    assert (
        isinstance(error, JudgeUnavailable)
        and message in str(error)
        and "2 attempts" in str(error)
    )
    assert one.metrics()["judge/unavailable"] == 1


def test_statuses_that_no_retry_mends(address: str) -> None:
    one = judge(address, key=KEY)
    denied, refused = ask(one, "status 401 99", "status 400 99")
    assert isinstance(denied, JudgeUnavailable) and "HTTP 401" in str(denied)
    assert isinstance(refused, RequestRefused) and not isinstance(refused, JudgeUnavailable)
    assert one.metrics()["judge/requests"] == 2


def test_retry_after_is_obeyed_by_all_requests(address: str) -> None:
    one = judge(address, concurrency=1)
    began = time.perf_counter()
    assert ask(one, "status 429 1 later", "hello 1", "hello 2") == [
        "echo status 429 1 later",
        "echo hello 1",
        "echo hello 2",
    ]
    assert time.perf_counter() - began >= 0.6
    impatient = judge(address, deadline=0.4)
    began = time.perf_counter()
    (error,) = ask(impatient, "status 429 1 later again")
    assert isinstance(error, JudgeUnavailable) and time.perf_counter() - began < 0.5
    dated = Reply(429, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, b"")
    assert (
        dated.retry_after() == 0.0
        and Reply(429, {"retry-after": "soon"}, b"").retry_after() == 0.0
    )


def test_deadline_bounds_everything(address: str) -> None:
    one = judge(address, deadline=0.6, request_timeout=60.0, concurrency=1, attempts=100)
    began = time.perf_counter()
    errors = ask(one, "hang 1", "hang 2", "hang 3")
    assert time.perf_counter() - began < 1.5
    assert all(isinstance(error, JudgeUnavailable) for error in errors)


def test_nobody_listens_and_a_server_that_dies() -> None:
    (error,) = ask(judge(f"http://127.0.0.1:{free_port()}/v1", attempts=2), "hello")
    assert isinstance(error, JudgeUnavailable) and "Connect" in str(error)
    process, url = start_server()
    try:
        one = judge(url, attempts=3)
        assert ask(one, "hello") == ["echo hello"]
        errors = ask(one, "slow 0.4 a", "die", "slow 0.5 b")
        assert all(isinstance(error, JudgeUnavailable) for error in errors)
        assert ask(one, "hello") == ["echo hello"]  # from the cache
    finally:
        process.kill()
        process.wait()


def test_concurrency_is_bounded() -> None:
    process, url = start_server()
    try:
        ask(judge(url, concurrency=3), *(f"slow 0.05 {index}" for index in range(20)))
        # The server counts a request until its reply is closed, so one more may overlap for a moment.
        assert 3 <= stats(url)["peak"] <= 4
    finally:
        process.kill()
        process.wait()


def test_equal_questions_are_sent_once_and_kept(address: str, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "judge.sqlite"
    one = judge(address, cache=file)
    assert ask(one, *["slow 0.1 same"] * 5) == ["echo slow 0.1 same"] * 5
    one.close()
    assert stats(address)["seen"]["slow 0.1 same"] == 1
    again = judge(f"http://127.0.0.1:{free_port()}/v1", cache=file, attempts=1)
    assert ask(again, "slow 0.1 same") == ["echo slow 0.1 same"]
    assert again.metrics()["judge/cached"] == 1
    for other in (
        judge(address, cache=file, version="2"),
        judge(address, cache=file, sampling={"temperature": 1.0}),
    ):
        ask(other, "slow 0.1 same")
        assert other.metrics()["judge/requests"] == 1


def test_failures_are_not_kept(address: str, tmp_path: Path) -> None:
    one = judge(address, cache=tmp_path / "judge.sqlite", attempts=1)
    assert isinstance(ask(one, "garbage 1 unkept")[0], ValueError | JudgeUnavailable)
    assert one.spent.tokens_in == 0


def test_request_key_depends_on_content_only() -> None:
    assert request_key({"a": 1, "b": [2]}) == request_key({"b": [2], "a": 1})
    assert request_key({"a": 1}) != request_key({"a": "1"})
    assert request_key({"a": "\ud800"}) != request_key({"a": "\ud801"})


def test_budget_counts_through_the_file_and_is_never_passed(
    address: str, tmp_path: Path
) -> None:
    file = tmp_path / "judge.sqlite"
    budget = Budget(tokens=1000, money=1.0, price_in=100.0, price_out=1000.0)
    sampling = {"max_tokens": 20}
    one = judge(address, cache=file, budget=budget, sampling=sampling)
    ask(one, "first")
    assert (one.spent.tokens_in, one.spent.tokens_out) == (100, 20)
    assert one.spent.money == pytest.approx((100 * 100 + 20 * 1000) / 1e6)
    one.close()
    two = judge(address, cache=file, budget=budget, sampling=sampling)
    answers = ask(two, *(f"more {index} " + "long " * 300 for index in range(4)))
    assert (
        sum(isinstance(answer, BudgetSpent) for answer in answers) == 3
    )  # 500 and more tokens are reserved for each
    assert two.spent.tokens_in + two.spent.tokens_out <= 1000
    assert "Raise the budget" in str(
        next(answer for answer in answers if isinstance(answer, BudgetSpent))
    )
    poor = judge(address, budget=Budget(money=0.001, price_in=1000.0, price_out=1000.0))
    assert isinstance(ask(poor, "hello")[0], BudgetSpent)
    assert poor.metrics() == {
        "judge/unavailable": 1,
        "judge/tokens_in": 0,
        "judge/tokens_out": 0,
        "judge/money": 0,
    }


def test_missing_usage_is_booked_by_estimate(address: str) -> None:
    one = judge(address, sampling={"max_tokens": 7})
    ask(one, "no_usage")
    assert one.spent.tokens_in > 0 and one.spent.tokens_out == 7


@pytest.mark.parametrize(
    "reported",
    [
        '{"prompt_tokens": 10000000000000000000000, "completion_tokens": 1}',
        '{"prompt_tokens": 9223372036854775807, "completion_tokens": 9223372036854775807}',
        '{"prompt_tokens": 100000001, "completion_tokens": 1}',
        '{"prompt_tokens": 1, "completion_tokens": 1e300}',
        '{"prompt_tokens": 1, "completion_tokens": Infinity}',
        '{"prompt_tokens": NaN, "completion_tokens": 1}',
        '{"prompt_tokens": true, "completion_tokens": 1}',
        '{"prompt_tokens": -1, "completion_tokens": 1}',
        '{"prompt_tokens": "7", "completion_tokens": 1}',
        '{"prompt_tokens": null}',
        "[]",
        "17",
    ],
)
def test_a_usage_report_that_cannot_be_true_is_booked_by_estimate(
    address: str, tmp_path: Path, reported: str
) -> None:
    one = judge(
        address,
        sampling={"max_tokens": 7},
        cache=tmp_path / "judge.sqlite",
        budget=Budget(money=1.0, price_in=1.0, price_out=1.0),
    )
    (text,) = ask(one, f"usage {reported}")
    assert isinstance(text, str), text
    assert 0 < one.spent.tokens_in < 100 and one.spent.tokens_out == 7
    assert one.spent.money == pytest.approx((one.spent.tokens_in + 7) / 1e6)


def test_the_largest_usage_that_can_be_true_is_booked(address: str) -> None:
    one = judge(address)
    ask(one, 'usage {"prompt_tokens": 100000000, "completion_tokens": 0}')
    assert one.spent.tokens_in == 10**8


@pytest.mark.parametrize(
    ("wish", "least", "most"),
    [
        ("0", 0, 0),
        ("2.5", 2.5, 2.5),
        ("86400", 120, 120),
        ("999999999", 120, 120),
        ("9" * 5000, 120, 120),
        ("-5", 0, 0),
        ("1e9", 0, 0),
        ("inf", 0, 0),
        ("nan", 0, 0),
        ("²", 0, 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 120, 120),
        ("Fri, 31 Dec 99999 23:59:59 GMT", 0, 0),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("", 0, 0),
    ],
)
def test_a_server_may_ask_to_wait_for_a_while_only(
    wish: str, least: float, most: float
) -> None:
    assert least <= Reply(429, {"retry-after": wish}, b"").retry_after() <= most


def test_a_server_that_asks_for_a_day_does_not_silence_the_run(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmrl.ground import posting

    monkeypatch.setattr(posting, "LONGEST_WAIT", 0.3)
    began = time.perf_counter()
    assert ask(judge(address), "after 86400") == ["echo after 86400"]
    assert 0.3 <= time.perf_counter() - began < 5.0


PIECES = {
    "whole": "denied for KEY",
    "behind a long text": "y" * 295 + "KEY",
    "cut by the limit": "y" * (300 - 9) + "KEY and more",
    "many times": "KEY" * 400,
    "its ends": "Incorrect API key provided: sk-v****6789.",
    "its ends, dotted": "Incorrect API key provided: sk-very...456789",
    "its end": "key ending in 6789 is wrong",
    "its start": "no key starts with sk-very",
    "in capitals": "denied: SK-VERY-SECRET-0123456789",
    "with a line end": "denied: sk-very-secret-\n0123456789",
    "in JSON": '{"error": {"message": "bad key", "key": "KEY"}}',
    "in an address": "POST http://proxy/v1?api_key=KEY&x=1 failed",
    "another's": "retry with Authorization: Bearer abcdefghijk-6789",
}


def leaks(told: str) -> list[str]:
    """Pieces of the key, of four characters, that a text shows."""
    low = told.lower()
    return [KEY[at : at + 4] for at in range(len(KEY) - 3) if KEY[at : at + 4] in low]


@pytest.mark.parametrize("body", PIECES.values(), ids=PIECES.keys())
@pytest.mark.parametrize("status", [403, 400, 500, 200])
def test_no_piece_of_the_key_is_shown(address: str, status: int, body: str) -> None:
    one = judge(address, key=KEY, attempts=1)
    (error,) = ask(one, f"quotes {status} {body}")
    assert isinstance(error, (JudgeUnavailable, RequestRefused))
    assert not leaks(str(error))
    # Where the key lies behind what is shown, there was nothing to hide.
    assert "***" in str(error) or "y" * 200 in str(error)


@pytest.mark.parametrize(
    "url",
    [
        "http://host/v1?api_key=hunter2222",
        "http://host/v1?a=1&auth_token=hunter2222&b=2",
        "https://me:hunter/2222@host/v1",
        "https://me:hunter2222@host/v1",
        "https://host/hunter2222@there",
    ],
)
def test_credentials_in_an_address_are_not_shown(url: str) -> None:
    try:
        told = repr(Judge(url, "m"))
    except ValueError as error:
        told = str(error)
    assert "hunter" not in told and "2222" not in told and "***" in told


def test_what_a_server_says_is_shown_on_one_harmless_line(address: str) -> None:
    hostile = "a\x1b]52;c;cm0=\x07 b\r\nc\u202e" + "z" * 10_000
    for status in (403, 200):
        (error,) = ask(judge(address, attempts=1, key="k" * 9), f"quotes {status} {hostile}")
        assert str(error).isprintable() and len(str(error)) < 600
        assert "a\\u001b]52" in str(error)


@pytest.mark.parametrize("said", ["half \\ud83d", "\\ude00\\ud83d", "\\u0000"])
def test_any_text_of_a_judge_can_be_kept(address: str, tmp_path: Path, said: str) -> None:
    one = judge(address, cache=tmp_path / "judge.sqlite")
    first, second = ask(one, f'says "{said}"'), ask(one, f'says "{said}"')
    assert first == second and isinstance(first[0], str)
    first[0].encode()
    assert one.metrics()["judge/cached"] == 1


def test_the_key_is_sent_and_shown_nowhere(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    one = judge(address, key=KEY)
    assert ask(one, "auth") == [f"Bearer {KEY}"]
    (error,) = ask(judge(address, key=KEY, attempts=1), "status 403 99")
    assert "sorry, key Bearer ***" in str(error)
    for shown in (repr(one), str(error), caplog.text):
        assert KEY not in shown and "secret" not in shown
    assert (
        redact("https://me:pass@host/v1 Bearer abc.def sk-abcdefghij", None)
        == "https://***host/v1 *** ***"
    )
    with pytest.raises(TypeError, match="make the reward function async"):
        pickle.dumps(one)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "localhost:8000"}, "give http"),
        ({"url": "http://me:pass@host/v1"}, "credentials as `key`"),
        ({"key": KEY + "\n"}, "strip what was read"),
        ({"attempts": 0}, "must be positive"),
        ({"cache": Path("/proc/nowhere/judge.sqlite")}, "name a writable file"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Judge(**({"url": "http://localhost:1/v1", "model": "m"} | arguments))
    assert KEY not in str(caught.value) and "pass" not in str(caught.value).replace(
        "pass it", ""
    )
    with pytest.raises(ValueError, match="without prices"):
        Budget(money=1.0)


def rollout(text: str, group: int) -> Rollout:
    prompt = Prompt(f"p{group}", [{"role": "user", "content": "?"}], answer="4")
    return Rollout(
        prompt,
        group,
        torch.arange(2),
        torch.arange(2),
        torch.zeros(2, dtype=torch.uint8),
        text,
        "eos",
    )


class Judged:
    """A reward that asks a judge: 1 if it echoes."""

    def __init__(self, one: Any) -> None:
        self.judge = one

    async def __call__(self, answer: Rollout) -> float:
        return float(
            (await self.judge([{"role": "user", "content": answer.text}])).startswith("echo")
        )

    def metrics(self) -> dict[str, float]:
        return self.judge.metrics()


def length(answer: Rollout) -> float:
    return float(len(answer.text))


def test_an_outage_in_training_stops_or_drops_the_part(address: str) -> None:
    given = [
        rollout("fine", 0),
        rollout("status 503 99 x", 0),
        rollout("fine", 1),
        rollout("fine", 1),
    ]
    with (
        Rewards(judged=Judged(judge(address, attempts=2)), length=length) as rewards,
        pytest.raises(RewardStopped, match=r"'judged' failed \(unavailable\).*HTTP 503"),
    ):
        rewards(given)
    with Rewards(
        on_unavailable="drop",
        judged=Judged(judge(address, attempts=2)),
        length=length,
        workers=1,
    ) as rewards:
        paid = rewards(given)
        counts = rewards.metrics()
    assert [one.parts["judged"] for one in paid] == [None, None, 1.0, 1.0]
    assert (
        counts["reward_failures/judged_unavailable"]
        == 1
        == counts["reward_failures/judged_dropped_groups"]
    )
    assert counts["judge/unavailable"] == 1 and counts["judge/tokens_in"] == 100


def test_local_judge_answers_in_batches_and_never_invents() -> None:
    sizes: list[int] = []

    def answer(conversations: Any) -> list[str]:
        if not sizes:
            time.sleep(0.5)  # meanwhile the other questions arrive, however busy the machine is
        sizes.append(len(conversations))
        return ["echo " + messages[-1]["content"] for messages in conversations]

    local = LocalJudge(answer, batch_size=8)
    with Rewards(judged=Judged(local)) as rewards:
        paid = rewards([rollout(str(index), 0) for index in range(20)])
        assert rewards.metrics()["judge/local_requests"] == 20
    assert [one.reward for one in paid] == [1.0] * 20 and max(sizes) == 8 and sum(sizes) == 20
    for broken in (lambda conversations: [], lambda conversations: 1 / 0):
        rule = LocalJudge(broken, label="rule")  # type: ignore[arg-type]
        with (
            Rewards(judged=Judged(rule)) as rewards,
            pytest.raises(RewardStopped, match="rule judge failed"),
        ):
            rewards([rollout("a", 0)])
        assert rule.metrics() == {"judge/rule_requests": 1.0, "judge/rule_unavailable": 1.0}
