"""PEARL: worked examples, the gate, scaling of both branches, identities."""

import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.losses.advantages import group_normalized
from mmrl.objectives.pearl import (
    MARKER,
    PEARL,
    gate_open,
    judged,
    keeps,
    reasoning_factor,
    z_score,
)
from mmrl.perception import checklist
from mmrl.types import Batch, Now, Prompt, Rollout

GOLDEN = (
    Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden"))
    / "rewards"
    / "formula_examples.json"
)
NOW = Now(step=1, progress=0.0)
NAME = "pearl_gate_and_advantages"


def close(computed, stored):
    if stored is None or isinstance(stored, bool):
        return computed is stored
    return torch.allclose(
        torch.as_tensor(computed, dtype=torch.float64),
        torch.tensor(stored).double(),
        1e-6,
        1e-9,
    )


def test_golden_rewards_pearl():
    functions = json.loads(GOLDEN.read_text())["functions"]
    if NAME not in functions:
        pytest.skip(f"{GOLDEN} has no {NAME}, only {sorted(functions)}")
    for case in functions[NAME]:
        found = judged(torch.tensor(case["input"]["Rp"]), torch.tensor(case["input"]["Rr"]))
        computed = {
            "per_rollout_perception": found.perception,
            "mean_perception": found.perception_mean,
            "gate_open": found.gate_open,
            "perception_advantage": found.perception_advantage,
            "reasoning_advantage": found.reasoning_advantage,
            "keep_in_batch": found.keep,
        }
        for key in case["output"].keys() & computed.keys():
            assert close(computed[key], case["output"][key]), (case["id"], key, computed[key])
        if unknown := sorted(case["output"].keys() - computed.keys()):
            warnings.warn(f"skipped in {case['id']}: {unknown}", stacklevel=1)
        assert case["output"].keys() & computed.keys()


def rollout(prompt, reward, parts=None):
    nothing = torch.zeros(0, dtype=torch.long)
    return Rollout(
        prompt, 0, nothing, nothing, nothing, "", "eos", reward=reward, parts=parts or {}
    )


def make_batch():
    """Reasoning and checklist answers of x (R_p mean 0.25), y (0) and w (0.9); z has no checklist."""
    asked = {name: Prompt(f"{name}#checklist", (), extra={MARKER: name}) for name in "xyw"}
    plain = {name: Prompt(name, ()) for name in "xyzw"}
    rows = [rollout(plain[name], reward) for name in "xyzw" for reward in (1.0, 0.0)]
    rows += [rollout(asked["x"], 9.0, {"perception": value}) for value in (0.5, 0.0)]
    rows += [rollout(asked["y"], 0.0) for _ in range(2)]
    rows += [rollout(asked["w"], value) for value in (0.8, 1.0)]
    group = torch.arange(7).repeat_interleave(2)
    mask = torch.arange(4) < torch.tensor([4, 2, 3, 3, 1, 4, 2, 2, 4, 4, 1, 2, 3, 3]).unsqueeze(
        -1
    )
    reward = torch.tensor([row.reward for row in rows], dtype=torch.float64)
    advantage = group_normalized(reward, group, mask).unsqueeze(-1) * mask
    empty = torch.zeros_like(mask, dtype=torch.uint8)
    return Batch(
        rows, group, torch.zeros_like(mask, dtype=torch.long), mask, reward, advantage, empty
    )


def test_both_branches_are_scaled():
    batch = make_batch()
    shaped = PEARL().shape(batch.advantage, batch, NOW).advantage
    factor = torch.tensor([0.25, 0.0, 1.0, 0.5, 0.1, 0.1, 0.1]).double().repeat_interleave(2)
    torch.testing.assert_close(shaped, batch.advantage * factor.unsqueeze(-1))
    assert (shaped[~batch.mask] == 0).all()


def test_off_is_grpo_bit_for_bit_on_the_reasoning_branch():
    batch = make_batch()
    off = PEARL(lambda_p=0.0, cap=None, threshold=None)
    shaped = off.shape(batch.advantage, batch, NOW).advantage
    assert torch.equal(shaped[:8], batch.advantage[:8]) and (shaped[8:] == 0).all()
    assert not off.reads_checklists and PEARL().reads_checklists
    assert off.score_requests() == () and off.terms({}, batch, NOW) == {}
    assert torch.equal(
        PEARL(lambda_p=1.0, cap=None, threshold=None)
        .shape(batch.advantage, batch, NOW)
        .advantage,
        batch.advantage,
    )


def test_prompts_without_checklist_are_plain_grpo():
    batch = make_batch()
    rows = slice(4, 6)
    assert torch.equal(
        PEARL().shape(batch.advantage, batch, NOW).advantage[rows], batch.advantage[rows]
    )


def test_row_order_does_not_matter():
    batch = make_batch()
    order = torch.randperm(14, generator=torch.Generator().manual_seed(0))
    moved = Batch(
        [batch.rollouts[index] for index in order.tolist()],
        *(
            getattr(batch, name)[order]
            for name in ("group", "tokens", "mask", "reward", "advantage", "roles")
        ),
    )
    shaped = PEARL().shape(batch.advantage, batch, NOW).advantage
    assert torch.equal(PEARL().shape(moved.advantage, moved, NOW).advantage, shaped[order])


def test_metrics_show_the_factors_also_for_a_part_of_the_batch():
    batch = make_batch()
    shown = PEARL().shape(batch.advantage, batch, NOW)[torch.arange(4)].logged
    assert shown["reasoning_factor"][:, 0].tolist() == [0.25, 0.25, 0.0, 0.0]
    assert (shown["checklist_tokens"] == 0).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=5),
    st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=5),
    st.floats(0.1, 10),
)
def test_properties_of_one_prompt(marks, rewards, scale):
    found = judged(torch.tensor(marks), torch.tensor(rewards))
    turned = judged(torch.tensor(marks).flip(-1), torch.tensor(rewards) * scale)
    assert torch.equal(
        found.perception_advantage, turned.perception_advantage
    )  # order of sub-questions
    if found.perception_mean == 0:
        assert not found.gate_open and found.reasoning_advantage is None and not found.keep
        assert (found.perception_advantage == 0).all()
    else:
        plain = z_score(torch.tensor(rewards).double())
        assert torch.allclose(
            found.reasoning_advantage, plain * min(found.perception_mean, 0.5)
        )
        assert torch.allclose(
            turned.reasoning_advantage, found.reasoning_advantage, atol=1e-6
        )  # scale of rewards
        assert found.reasoning_advantage.abs().max() <= 0.5 * plain.abs().max() + 1e-12


def test_all_right_perception_with_mixed_reasoning():
    found = judged(torch.ones(2, 2), torch.tensor([1.0, 0.0]))
    assert found.keep and found.reasoning_advantage is not None
    assert found.reasoning_advantage.tolist() == [0.5, -0.5]


def test_soft_filter_looks_at_both_branches():
    assert keeps(1.0, 0.5) and keeps(0.5, 1.0) and keeps(0.5, 0.0)
    assert not keeps(1.0, 1.0) and not keeps(1.0, 0.0) and not keeps(0.0, None)
    assert (
        gate_open(0.1)
        and not gate_open(0.0)
        and gate_open(0.0, None)
        and not gate_open(0.3, 0.3)
    )
    assert (
        reasoning_factor(0.9) == 0.5
        and reasoning_factor(0.3) == 0.3
        and reasoning_factor(0.9, None) == 0.9 / 0.9
    )


def test_the_checklist_module_uses_the_same_marker():
    assert checklist.MARKER == MARKER


@pytest.mark.parametrize(
    ("name", "value"), [("lambda_p", -0.1), ("cap", 0.0), ("cap", 1.5), ("threshold", 1.0)]
)
def test_bad_settings_name_the_field(name, value):
    with pytest.raises(ValueError, match=rf"PEARL\.{name} is {value}"):
        PEARL(**{name: value})
