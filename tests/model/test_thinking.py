"""Thoughts that the chat template opens: what rewards read, what given answers are told, and the template's switch."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch

from mmrl.ground.answers import cut_off
from mmrl.model.policy import Policy
from mmrl.model.processing import Processing
from mmrl.model.thinking import behind, opened_thought
from mmrl.perception.compat.vision_reasoner import thinking_format
from mmrl.perception.compat.vlm_r1 import think_answer_format
from mmrl.rewards.easyr1 import r1v_format
from mmrl.rewards.functions import answer_format, boxed_accuracy, think_format
from mmrl.rewards.paper_formats import boxed_lines_format, open_answer_format
from mmrl.rollouts.engine import HFEngine
from mmrl.types import Now, Prompt, Rollout, Sampling

ASK = Prompt("q", [{"role": "user", "content": [{"type": "text", "text": "red"}]}], (), "4")


def opening(folder: Path, place: Path) -> Path:
    """A tiny model of another family whose template opens a thought, as Qwen3-VL-Thinking does."""
    copied = Path(copytree(folder, place))
    template = copied / "chat_template.jinja"
    turn = "<|im_start|>assistant\n"
    template.write_text(template.read_text().replace(turn, turn + "<think>\n"))
    return copied


@pytest.fixture(params=["qwen3_5", "qwen3_vl"])
def thinking(request: Any, tiny35_folder: Path, tiny3_folder: Path, tmp_path: Path) -> Path:
    if request.param == "qwen3_5":
        return tiny35_folder
    return opening(tiny3_folder, tmp_path / "thinking")


def answered(processing: Processing, sampled: str) -> Rollout:
    """A rollout that was sampled as this text."""
    tokens = torch.tensor([*processing._ids(sampled), processing.stop_ids[0]])
    return Rollout(
        prompt=ASK,
        group=0,
        prompt_ids=processing.encode(ASK).ids,
        tokens=tokens,
        roles=torch.zeros(len(tokens), dtype=torch.uint8),
        text=processing.answer_text(tokens),
        stop="eos",
    )


FORMATS = [
    (think_format, "2 + 2\n</think>\n\\boxed{4}"),
    (answer_format, "2 + 2\n</think>\n<answer>4</answer>"),
    (r1v_format, "2 + 2\n</think>\n<answer>4</answer>"),
    (boxed_lines_format, "2 + 2\n</think>\n<answer>\n\\boxed{4}\n</answer>"),
    (open_answer_format, "2 + 2\n</think> so <answer>4</answer>"),
]


@pytest.mark.parametrize(("paid", "sampled"), FORMATS)
def test_formats_are_paid_where_the_prompt_has_opened_the_thought(
    paid: Any, sampled: str, thinking: Path, tiny_folder: Path
) -> None:
    processing = Processing.load(thinking)
    assert processing.encode(ASK).text.endswith("<think>\n")
    assert paid(answered(processing, sampled)) == 1.0
    # Where nobody opened it, it is missing.
    assert paid(answered(Processing.load(tiny_folder), sampled)) == 0.0


@pytest.mark.parametrize("read", [thinking_format, think_answer_format])
def test_parsers_of_other_projects_read_the_whole_turn(read: Any, tiny35_folder: Path) -> None:
    processing = Processing.load(tiny35_folder)
    text = answered(processing, "2 + 2\n</think>\n<answer>4</answer>").text
    assert read(text) == 1.0


def test_an_answer_inside_a_thought_that_the_prompt_opened_is_not_paid(thinking: Path) -> None:
    processing = Processing.load(thinking)
    inside = answered(processing, "perhaps \\boxed{4}, or")
    assert cut_off(inside.text)
    assert boxed_accuracy(inside) == 0.0
    assert boxed_accuracy(answered(processing, "perhaps\n</think>\n\\boxed{4}")) == 1.0


def test_the_engine_says_the_whole_turn(thinking: Path) -> None:
    policy = Policy.load(thinking, device="cpu", dtype="float32", shared=True)
    (rollout,) = HFEngine(policy).generate(
        [ASK], Sampling(group_size=1, max_tokens=4), Now(0, 0, 0)
    )
    assert rollout.text == "<think>\n" + policy.processing.decode(rollout.tokens)


@pytest.mark.parametrize(
    ("opened", "answer", "left"),
    [
        ("", "<think>a</think>4", "<think>a</think>4"),
        ("", "4", "4"),
        ("<think>\n", "<think>\na\n</think>4", "a\n</think>4"),
        ("<think>\n", " <think>a</think>4", "a</think>4"),
        ("<think>\n", "a</think>4", "a</think>4"),
        ("<think>\n", "4", "\n</think>\n\n4"),
        ("<reasoning>", "<reasoning>\na</reasoning>4", "\na</reasoning>4"),
    ],
)
def test_given_answers_go_on_from_an_opened_thought(
    opened: str, answer: str, left: str
) -> None:
    assert behind(opened, answer) == left


def test_given_answers_are_encoded_behind_the_prompt(thinking: Path, tiny_folder: Path) -> None:
    for folder, text in ((thinking, "a\n</think>4"), (tiny_folder, "<think>\na\n</think>4")):
        processing = Processing.load(folder)
        ids = processing.encode_answer("<think>\na\n</think>4")
        assert processing.decode(ids) == text
        assert processing.answer_text(ids) == "<think>\na\n</think>4"


@pytest.mark.parametrize(
    ("chat", "opened"),
    [
        ("assistant\n<think>\n", "<think>\n"),
        ("assistant\n<think>\n\n</think>\n\n", ""),
        ("user\nInside <think> tags.\nassistant\n", ""),
        ("assistant\n<answer>", ""),
    ],
)
def test_only_a_thought_at_the_end_is_open(chat: str, opened: str) -> None:
    assert opened_thought(chat) == opened


def test_the_switch_of_the_template(tiny35_folder: Path, tiny_folder: Path) -> None:
    ends = {
        mode: Processing.load(tiny35_folder, thinking=mode)
        .render(ASK)
        .rpartition("assistant\n")[2]
        for mode in ("auto", "on", "off")
    }
    assert ends == {"auto": "<think>\n", "on": "<think>\n", "off": "<think>\n\n</think>\n\n"}
    assert Processing.load(tiny35_folder, thinking="off").opened == ""
    with pytest.raises(ValueError, match="no switch enable_thinking; leave it at 'auto'"):
        Processing.load(tiny_folder, thinking="off")
    with pytest.raises(ValueError, match="must be 'auto'"):
        Processing.load(tiny35_folder, thinking="yes")  # type: ignore[arg-type]


def test_a_run_goes_on_only_with_the_same_switch(tiny35_folder: Path) -> None:
    off = Policy.load(tiny35_folder, device="cpu", thinking="off")
    assert off.description["thinking"] == "off"
    # A run that leaves it alone can be continued by versions that do not know it.
    assert "thinking" not in Policy.load(tiny35_folder, device="cpu").description
