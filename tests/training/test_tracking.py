"""Metrics, samples, settings and their differences, output folders."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.ground.faults import BadRow
from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_normalized
from mmrl.losses.schedules import Linear
from mmrl.perception.masking import PatchMask
from mmrl.training.optim import Optim
from mmrl.training.tracking import (
    Tracker,
    chat_as_line,
    describe,
    describe_prompts,
    differences,
    environment,
    peak_memory,
    read_metrics,
)
from mmrl.types import Prompt, Prompts, Role, Rollout, VisualBranch


def answer(text="red", truth="red", prompt="p0"):
    messages = [
        {"role": "system", "content": "Look."},
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "text", "text": "What?"},
                {"type": "video"},
            ],
        },
    ]
    tokens = torch.arange(2)
    question = Prompt(prompt, messages, answer=truth)
    return Rollout(
        question,
        0,
        tokens,
        tokens,
        tokens.byte(),
        text,
        "eos",
        reward=0.5,
        parts={"accuracy": None},
    )


def test_metrics_are_one_object_per_step(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.log(0, {"b/two": 2, "a/one": 1.0})
    tracker.log(
        3, {"loss/total": float("nan"), "policy/ratio_max": float("inf"), "x": 0.1 + 0.2}
    )
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[0] == '{"step": 0, "a/one": 1.0, "b/two": 2.0}'
    assert json.loads(lines[1]) == {
        "step": 3,
        "loss/total": None,
        "policy/ratio_max": None,
        "x": 0.1 + 0.2,
    }
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 3]


def test_samples_hold_question_answer_and_pay(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.sample(4, [answer(), answer(truth={"box": [1, 2]})])
    first, second = (
        json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()
    )
    assert first == {
        "step": 4,
        "prompt": "p0",
        "question": "Look. <image>What?<video>",
        "answer": "red",
        "truth": "red",
        "reward": 0.5,
        "parts": {"accuracy": None},
        "stop": "eos",
    }
    assert second["truth"] == "{'box': [1, 2]}"
    # What is no plain answer says so.
    roles = torch.tensor([int(Role.HINT), int(Role.POLICY)], dtype=torch.uint8)
    heat = torch.tensor([1.5, 0.5], dtype=torch.float64)
    odd = replace(
        answer(), origin="expert", teacher="big", roles=roles, temperature=heat, tokens=roles
    )
    tracker.sample(5, [odd])
    third = json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[-1])
    assert (third["origin"], third["teacher"], third["hint_tokens"]) == ("expert", "big", 1)
    assert third["temperature"] == [1.5, 0.5]
    assert chat_as_line([{"role": "user", "content": "plain"}]) == "plain"


@pytest.mark.parametrize(
    "torn",
    ["", '{"step": 9, "a', '{"step": 9, "answer": "\u00e9'],
    ids=["none", "cut", "in a character"],
)
def test_truncation_forgets_later_steps_and_a_torn_line(tmp_path, torn):
    tracker = Tracker(tmp_path)
    for step in range(5):
        tracker.log(step, {"a/b": step})
        tracker.sample(step, [answer(f"odd \u2028\u0085\x0b\x1c {step}"), answer("é")])
    cut = torn.encode()[:-1] if "é" in torn else torn.encode()
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (tmp_path / name).open("ab") as file:
            file.write(cut)
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2, 3, 4]
    tracker.truncate(2)
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2]
    samples = [
        json.loads(line)
        for line in (tmp_path / "samples.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    ]
    assert [row["step"] for row in samples] == [0, 0, 1, 1, 2, 2]
    assert samples[2]["answer"] == "odd \u2028\u0085\x0b\x1c 1", (
        "line separators inside an answer end no line"
    )
    tracker.log(3, {"a/b": 3.5})
    assert read_metrics(tmp_path)[-1] == {"step": 3, "a/b": 3.5}


DAMAGED = {
    "cut": '{"step": 2, "a/b": 2',
    "glued": '{"step": 2, "a/b": 2{"step": 3, "a/b": 3.0}',
    "a number": "7",
    "no step": '{"a/b": 1}',
    "a step that is none": '{"step": null}',
    "zeros of a power cut": "\0\0\0\0",
    "half a character": b'{"step": 2, "x": "\xc3',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_a_damaged_line_is_named_and_costs_only_itself(tmp_path, capsys, name, damage):
    bad = DAMAGED[damage]
    lines = [b'{"step": 1}', bad if isinstance(bad, bytes) else bad.encode(), b'{"step": 4}']
    (tmp_path / name).write_bytes(b"\n".join([*lines, b'{"step": 5}', b""]))
    Tracker(tmp_path).truncate(4)
    kept = (tmp_path / name).read_text().splitlines()
    assert [json.loads(line)["step"] for line in kept] == [1, 4]
    assert f"{name}: line 2 cannot be read" in capsys.readouterr().err


def test_a_row_is_not_glued_to_a_torn_one(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "a')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    assert capsys.readouterr().err == "", "a last line may be in the making"
    Tracker(tmp_path).log(3, {"a/b": 1.0})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3]
    assert "line 2 cannot be read" in capsys.readouterr().err


def test_metrics_that_will_be_logged_again_are_forgotten_and_their_samples_kept(tmp_path):
    for name in ("metrics.jsonl", "samples.jsonl"):
        (tmp_path / name).write_text("".join(f'{{"step": {n}}}\n' for n in (1, 2, 3)))
    Tracker(tmp_path).truncate(2, again=True)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert (tmp_path / "samples.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_truncation_before_anything_was_written(tmp_path):
    Tracker(tmp_path).truncate(3)
    assert not list(tmp_path.iterdir())


def test_settings_as_plain_json():
    branches = {"masked": VisualBranch(PatchMask(0.6))}
    settings = {
        "grpo": GRPO(kl=0.1),
        "branches": branches,
        "when": Linear(1.0, 0.0),
        "path": Path("a/b"),
        "all": (1, None),
    }
    found = json.loads(json.dumps(describe(settings)))
    assert found["grpo"]["class"] == "GRPO" and found["grpo"]["kl"] == 0.1
    assert found["branches"]["masked"]["view"] == {
        "class": "PatchMask",
        "ratio": 0.6,
        "size": 14,
        "value": 0,
        "tube": False,
    }
    assert found["path"] == "a/b" and found["all"] == [1, None] and found["when"]["end"] == 0.0
    assert describe(group_normalized) == "group_normalized" and describe(Optim) == "Optim"
    assert describe(partial(group_normalized, 3, eps=0.1)) == {
        "function": "group_normalized",
        "arguments": [3],
        "eps": 0.1,
    }


def test_differences_name_the_setting_and_both_values():
    old = describe(
        {"optim": Optim(lr=1e-6), "branches": {"masked": VisualBranch(PatchMask(0.6))}}
    )
    new = describe({"optim": Optim(lr=2e-6), "branches": {}})
    lines = differences(old, new)
    assert lines[1] == "optim.lr: was 1e-06, now 2e-06" and len(lines) == 2
    assert lines[0].startswith("branches.masked: was {") and lines[0].endswith("now None")
    assert differences(old, json.loads(json.dumps(old))) == []


def test_other_data_is_told_apart():
    @dataclass(frozen=True)
    class Rows(Prompts):
        table: list = field(default_factory=list)
        name: str = "a.jsonl"
        size: int = 3

        def __getitem__(self, index):
            raise BadRow("broken")

    first = describe_prompts(Drawn("lookup", size=5))
    assert first["class"] == "Drawn" and first["task"] == "lookup" and first["size"] == 5
    assert first["first"] == Drawn("lookup", size=5)[0].id
    assert describe_prompts(Drawn("lookup", size=5)) == first
    for other in (
        Drawn("counting", size=5),
        Drawn("lookup", size=6),
        Drawn("lookup", size=5, noise=0.1),
    ):
        assert describe_prompts(other) != first
    rows = describe_prompts(Rows())
    assert rows == {"name": "a.jsonl", "size": 3, "class": "Rows", "first": None}, (
        "rows themselves are not listed"
    )


def test_environment_and_memory():
    found = environment()
    assert found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads()
    assert {"mmrl", "transformers", "python", "command", "started"} <= found.keys()
    assert 50 < peak_memory() < 200_000, "MiB"


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    tracker = Tracker(tmp_path, "tensorboard")
    tracker.log(2, {"a/b": 0.5, "c/d": float("nan")})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("a/b")] == [(2, 0.5)]
