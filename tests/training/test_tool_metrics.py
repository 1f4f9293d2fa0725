"""Numbers of calls: by hand, and none where nobody calls."""

from __future__ import annotations

import torch

from mmrl.ground.calls import Call
from mmrl.training.tool_metrics import tool_metrics
from mmrl.types import Prompt, Rollout


def answer(*calls, correct=None, parts=()):
    none = torch.zeros(1, dtype=torch.long)
    return Rollout(
        Prompt("p", ()), 0, none, none, none.to(torch.uint8), "", "eos",
        calls=calls, correct=correct, parts=dict(parts),
    )  # fmt: skip


def test_calls_are_counted_by_hand():
    crop = Call("crop_image", None, "answered", found={"area": 0.25})
    refused = Call("crop_image", None, "refused", found={"area": 1.0})
    answers = [
        answer(crop, refused, correct=True, parts={"curiosity": 0.2}),
        answer(crop, correct=False, parts={"curiosity": 0.1}),
        answer(correct=False, parts={"curiosity": 0.0}),
        answer(correct=None),
    ]
    assert tool_metrics(answers) == {
        "tool/calling_share": 0.5,
        "tool/answer_calls": 0.75,
        "tool/refused_share": 1 / 3,
        "tool/crop_area": 0.25,
        "tool/right_calling": 0.5,
        "tool/right_silent": 0.0,
        "tool/curiosity_wrong": 0.05,
    }
    assert tool_metrics([answer(), answer()]) == {} == tool_metrics([])
