"""Does the reasoning support the answer: the judge is asked, counted and never paid, and never stops a run."""

from __future__ import annotations

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import torch

from mmrl.data.pretext.prompts import pretext_reward
from mmrl.data.pretext.rac import JudgeRAC, RuleRAC
from mmrl.rewards.judge import Judge, JudgeUnavailable, RequestRefused
from mmrl.rewards.pay import Rewards
from mmrl.types import Prompt, Rollout

SURFACE = {"tags": "answer", "thinking": "think"}


def rollout(text: str) -> Rollout:
    truth = {"answer": 90, "step": 90, "near": 0.0}
    prompt = Prompt(
        "p",
        [{"role": "user", "content": "?"}],
        extra={"surface": SURFACE, "task": "rotation", "truth": truth},
    )
    return Rollout(
        prompt,
        0,
        torch.arange(2),
        torch.arange(2),
        torch.zeros(2, dtype=torch.uint8),
        text,
        "eos",
    )


def asked(part, *texts: str) -> dict[str, float]:
    async def all_of_them() -> list[float]:
        return [await part(rollout(text)) for text in texts]

    assert asyncio.run(all_of_them()) == [0.0] * len(texts)
    return part.metrics()


class Told:
    """A judge that agrees with turns by 90 degrees, and fails where the reasoning says so."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def __call__(self, messages) -> str:
        text = messages[-1]["content"]
        self.seen.append(text)
        if "down" in text:
            raise JudgeUnavailable("nobody listens")
        if "refused" in text:
            raise RequestRefused("too long")
        return "Perhaps." if "vague" in text else "Yes." if "by 90" in text else "no"


def test_verdicts_are_counted_by_kind(caplog):
    judge = Told()
    answer = "</think><answer>90</answer>"
    texts = [
        f"<think>{said}{answer}" for said in ("by 90", "by 180", "vague", "down", "refused", "")
    ]
    found = asked(JudgeRAC(judge), *texts, "<think>by 90</think> no answer")
    assert found == {
        "rac/judge": pytest.approx(1 / 3), "rac/judged": 3, "rac/silent": 1, "rac/empty": 1, "rac/unavailable": 2,
    }  # fmt: skip
    assert len(judge.seen) == 5 and all(
        "90" in text and "truth" not in text for text in judge.seen
    )
    assert caplog.text.count("RAC is not measured") == 1 and "nobody listens" in caplog.text
    part = JudgeRAC(judge)
    asked(part, texts[0])
    assert part.metrics() == {
        "rac/judged": 0,
        "rac/silent": 0,
        "rac/empty": 0,
        "rac/unavailable": 0,
    }


def test_the_rule_stands_in_under_its_own_name():
    part = RuleRAC()
    for said in ("Turned by 90.", "Turned by 180.", "I cannot tell."):
        assert part(rollout(f"<think>{said}</think><answer>90</answer>")) == 0.0
    assert part.metrics() == {
        "rac/rule_standin": 0.5, "rac/judged": 2, "rac/silent": 1, "rac/empty": 0, "rac/unavailable": 0,
    }  # fmt: skip


class Server(BaseHTTPRequestHandler):
    questions: ClassVar[list[str]] = []

    def log_message(self, *args) -> None:
        pass

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.questions.append(request["messages"][-1]["content"])
        reply = "yes" if "by 90" in self.questions[-1] else "no"
        body = json.dumps(
            {"choices": [{"message": {"role": "assistant", "content": reply}}]}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_rewards_ask_a_server_and_outlive_it():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    given = [
        rollout(f"<think>{said}</think><answer>90</answer>")
        for said in ("by 90", "by 180", "", "")
    ]
    with Rewards(
        puzzle=pretext_reward, rac=(0.0, JudgeRAC(Judge(url, "j", attempts=1, backoff=0.01)))
    ) as rewards:
        assert [one.reward for one in rewards(given)] == [1.0] * 4
        found = rewards.metrics()
        assert found["rac/judge"] == 0.5 and found["rac/judged"] == 2 == found["rac/empty"]
        server.shutdown()
        server.server_close()
        others = [
            rollout(f"<think>{said}</think><answer>90</answer>")
            for said in ("by 270", "by 0", "", "")
        ]
        assert [one.reward for one in rewards(others)] == [1.0] * 4, (
            "a diagnostic never stops a run"
        )
        assert rewards.metrics()["rac/unavailable"] == 2
    assert len(Server.questions) == 2 and all(
        "Final answer (between the lines):\n-----\n90\n-----" in text
        for text in Server.questions
    )
