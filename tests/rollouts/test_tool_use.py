"""The tool loop: ids, roles, draws, pictures, limits, failures; what is trained and what is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmrl.model.branches import Views
from mmrl.model.packing import collate
from mmrl.model.policy import Policy
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.rollouts.engine import HFEngine
from mmrl.rollouts.tool_use import ToolEngine
from mmrl.tools.toolbox import Toolbox, ToolUse
from mmrl.types import Now, Role, Sampling
from tests.rollouts.test_engine import PROMPTS
from tests.rollouts.tools_for_tests import NEXT, Counting, Drawing

NOW, SAMPLING = Now(2, 0.1, seed=5), Sampling(2, 1.0, max_tokens=64)
USE = ToolUse(max_turns=2)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def policy(request, tiny_folder, tiny3_folder):
    folder = tiny_folder if request.param == "qwen2_5_vl" else tiny3_folder
    return Policy.load(folder, device="cpu", dtype="float32")


def answers(policy, *tools, use=USE, sampling=SAMPLING, prompts=PROMPTS, engine=None, now=NOW):
    engine = ToolEngine(engine or HFEngine(policy), policy, Toolbox(tools, use))
    return engine.generate(prompts, sampling, now)


def rescored(policy, rollouts):
    """Log-probs of stored answers as training computes them."""
    policy.vision.clear()
    views = Views(policy, rollouts, {}, NOW)
    groups = views.groups("raw", range(len(rollouts)))
    width = max(len(r.tokens) for r in rollouts)
    outputs = {"raw": ScoreOutputs()}
    return score_packed(policy, {"raw": groups}, outputs, (len(rollouts), width))["raw"].logp


def assert_rescored(policy, rollouts, close=2e-4):
    logp = rescored(policy, rollouts)
    for row, rollout in enumerate(rollouts):
        own = rollout.roles == int(Role.POLICY)
        length = len(rollout.tokens)
        assert (rollout.logp - logp[row, :length])[own].abs().max() < close
        assert (rollout.logp[~own] == 0).all()


def test_answers_go_on_with_what_the_tool_says(policy):
    found = answers(policy, Counting())
    assert [r.group for r in found] == [0, 0, 1, 1, 2, 2]
    assert any(len(r.calls) == 2 for r in found)
    spell = policy.processing.spell
    for rollout in found:
        own = rollout.roles == int(Role.POLICY)
        assert len(rollout.tokens) == len(rollout.roles) == len(rollout.logp)
        assert set(rollout.roles.tolist()) <= {int(Role.POLICY), int(Role.OBSERVATION)}
        assert rollout.text == policy.processing.answer_text(rollout.tokens[own])
        whole = spell(rollout.tokens.tolist())
        total = 0
        for call in rollout.calls[: len(rollout.calls) - (rollout.stop == "length")]:
            assert call.valid and call.action.arguments["text"].endswith(NEXT)
            total += call.found["letters"]
            turn = (
                f"<|im_end|>\n<|im_start|>user\nso {total}<|im_end|>\n<|im_start|>assistant\n"
            )
            assert turn in whole and call.said == f"so {total}"
    assert_rescored(policy, found)
    batch = collate([replace(r, reward=0.0) for r in found])
    assert int(batch.mask.sum()) == sum(int((r.roles == 0).sum()) for r in found)


def test_pictures_in_answers(policy):
    policy.counters.clear()
    policy.vision.clear()
    found = answers(policy, Drawing(), sampling=replace(SAMPLING, max_tokens=96))
    assert sum(len(r.media) for r in found) >= 6
    pads = policy.processing.config.image_token_id
    for rollout in found:
        assert len(rollout.media) == sum(call.shown for call in rollout.calls)
        shown = (rollout.tokens == pads).sum()
        assert shown == 2 * 3 * len(rollout.media)
    assert_rescored(policy, found)
    # Prompts and observations were read once, and each token fed once at most.
    read = sum(len(policy.encode(p).ids) for p in PROMPTS)
    read += sum(int((r.roles != 0).sum()) for r in found)
    assert policy.counters["tokens/prefill"] == read
    drawn = sum(int((r.roles == 0).sum()) for r in found)
    assert policy.counters["tokens/decode"] <= drawn
