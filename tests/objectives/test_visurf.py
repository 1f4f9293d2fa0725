"""ViSurf: worked examples, the three controls of the label's reward, identities of the group of G + 1."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.grpo import GRPO, losses
from mmrl.losses.advantages import group_normalized
from mmrl.losses.reduce import Totals
from mmrl.losses.surrogates import clipped
from mmrl.objectives.visurf import (
    ViSurf,
    aligned,
    labels,
    pay_without_thinking,
    reached,
    smoothed,
    z_score_in_groups,
)
from mmrl.types import Batch, Now, Prompt, Rollout, Scores

GOLDEN = (
    Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden"))
    / "rewards"
    / "formula_examples.json"
)
NOW = Now(step=1, progress=0.0)
NAME = "visurf_smoothing_and_advantages"


def make_batch(*groups):
    """Each group: (rollout rewards, label reward or None). Labels come last in their group; odd lengths."""
    nothing, rows, group = torch.zeros(0, dtype=torch.long), [], []
    for number, (rewards, label) in enumerate(groups):
        members = [(reward, "policy") for reward in rewards] + (
            [] if label is None else [(label, "label")]
        )
        for reward, origin in members:
            prompt = Prompt(f"p{number}", ())
            rows.append(
                Rollout(
                    prompt,
                    number,
                    nothing,
                    nothing,
                    nothing,
                    "",
                    "eos",
                    origin=origin,
                    reward=reward,
                )
            )
            group.append(number * 7)
    mask = torch.arange(5) < torch.tensor(
        [1 + index % 5 for index in range(len(rows))]
    ).unsqueeze(-1)
    reward, group = (
        torch.tensor([row.reward for row in rows], dtype=torch.float64),
        torch.tensor(group),
    )
    advantage = group_normalized(reward, group, mask).unsqueeze(-1) * mask
    roles = torch.zeros_like(mask, dtype=torch.uint8)
    return Batch(
        rows, group, torch.zeros_like(mask, dtype=torch.long), mask, reward, advantage, roles
    )


def shaped(batch, visurf=ViSurf()):
    return visurf.shape(batch.advantage, batch, NOW).advantage


def test_golden_rewards_visurf():
    functions = json.loads(GOLDEN.read_text())["functions"]
    if NAME not in functions:
        pytest.skip(f"{GOLDEN} has no {NAME}, only {sorted(functions)}")
    for case in functions[NAME]:
        batch = make_batch((case["input"]["r"], case["input"]["ry"]))
        found, expected = shaped(batch)[:, 0], case["output"]
        label = labels(batch)
        used = smoothed(batch.reward, batch.group, label)[-1].item()
        assert math.isclose(used, expected["label_reward_used"], rel_tol=1e-6)
        assert bool(reached(batch.reward, batch.group, label)[-1]) == expected["smoothed"]
        advantages = torch.tensor(
            [*expected["rollout_advantage"], expected["label_advantage"]], dtype=torch.float64
        )
        torch.testing.assert_close(found, advantages, rtol=1e-6, atol=1e-9)


rewards = st.lists(st.integers(0, 7).map(float), min_size=2, max_size=6)


@settings(max_examples=80, deadline=None)
@given(rewards, st.integers(0, 7).map(float))
def test_identities_of_the_group_with_its_label(own, label):
    found = shaped(make_batch((own, label)))[:, 0]
    assert abs(found.sum().item()) < 1e-9
    if max(own) >= label:
        assert found[-1] == 0.0
        alone = z_score_in_groups(torch.tensor(own), torch.zeros(len(own), dtype=torch.long))
        torch.testing.assert_close(found[:-1], alone * math.sqrt((len(own) + 1) / len(own)))
    else:
        assert found[-1] > 0
    if len(set(own)) == 1 and label > own[0]:
        torch.testing.assert_close(found[-1].item(), math.sqrt(len(own)))
        torch.testing.assert_close(found[0].item(), -1 / math.sqrt(len(own)))


def test_equal_rewards_give_exactly_nothing():
    assert (shaped(make_batch(([0.1] * 3, 0.1))) == 0).all()
    assert (
        z_score_in_groups(torch.tensor([0.1] * 7), torch.zeros(7, dtype=torch.long)) == 0
    ).all()


def test_without_smoothing_a_reached_label_keeps_its_advantage():
    batch = make_batch(([7.0, 0.0], 6.0))
    assert shaped(batch)[-1, 0] == 0
    assert shaped(batch, ViSurf(smooth=False))[-1, 0] > 0


def test_weight_zero_is_grpo_without_labels_and_weight_scales_the_label_only():
    with_label, without = (
        make_batch(([1.0, 0.0, 1.0], 3.0)),
        make_batch(([1.0, 0.0, 1.0], None)),
    )
    off = shaped(with_label, ViSurf(weight=0.0))
    assert torch.equal(off[:3], without.advantage) and (off[3] == 0).all()
    full, half = shaped(with_label), shaped(with_label, ViSurf(weight=0.5))
    assert torch.equal(full[:3], half[:3])
    torch.testing.assert_close(half[3], full[3] / 2)


def test_a_batch_without_labels_keeps_the_estimators_advantage():
    batch = make_batch(([1.0, 0.0], None), ([0.5, 0.25], None))
    assert shaped(batch) is batch.advantage


def test_groups_do_not_mix_and_row_order_does_not_matter():
    batch = make_batch(([1.0, 0.0], 3.0), ([5.0, 2.0, 2.0], 4.0), ([0.0, 1.0], None))
    found = shaped(batch)
    first = shaped(make_batch(([1.0, 0.0], 3.0)))
    torch.testing.assert_close(found[:3], first)
    torch.testing.assert_close(found[7:, 0], torch.tensor([-1.0, 1.0], dtype=torch.float64))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    moved = Batch(
        [batch.rollouts[index] for index in order.tolist()],
        *(
            getattr(batch, name)[order]
            for name in ("group", "tokens", "mask", "reward", "advantage", "roles")
        ),
    )
    torch.testing.assert_close(shaped(moved), found[order])
    assert (found[~batch.mask] == 0).all()


def test_a_reward_that_is_not_available_is_left_out():
    batch = make_batch(([1.0, math.nan, 0.0], 3.0))
    found, without = shaped(batch)[:, 0], shaped(make_batch(([1.0, 0.0], 3.0)))[:, 0]
    assert found[1] == 0
    torch.testing.assert_close(found[[0, 2, 3]], without)


def test_the_label_is_trained_like_sft_while_rollouts_fail():
    batch = make_batch(([0.0, 0.0], 1.0))
    batch = replace(batch, advantage=shaped(batch))
    logp = torch.full(batch.mask.shape, -1.0, dtype=torch.float64, requires_grad=True)
    live, totals = {"raw": Scores(logp)}, Totals.of(batch.mask)
    batch = replace(batch, scores={"raw": Scores(logp.detach())})
    parts, _ = losses(GRPO(reduction="sequence"), clipped, batch, live, [ViSurf()], totals, NOW)
    (gradient,) = torch.autograd.grad(parts["policy"], logp)
    per_answer = gradient.sum(1)
    torch.testing.assert_close(
        per_answer[2].item(), -math.sqrt(2) / 3
    )  # 1 / (G + 1) of the label's advantage, upwards
    assert (per_answer[:2] > 0).all() and set(parts) == {"policy"}


def test_alignment_writes_labels_as_the_model_would():
    label = [{"point_2d": [3, 4], "bbox_2d": [1, 2, 5, 6], "note": "é"}]
    text = aligned(label, keys=("bbox_2d", "point_2d"))
    assert (
        text == '<answer>[{"bbox_2d": [1, 2, 5, 6], "point_2d": [3, 4], "note": "é"}]</answer>'
    )
    assert json.loads(text.removeprefix("<answer>").removesuffix("</answer>")) == label
    assert aligned("B", layout="{}.") == "B."
    for layout in ("none", "{} {}"):
        with pytest.raises(ValueError, match="exactly one"):
            aligned("B", layout=layout)


def test_the_label_earns_nothing_for_thinking():
    parts, weights = (
        {"thinking": 1.0, "accuracy": 3.0, "judge": None},
        {"thinking": 1.0, "accuracy": 2.0, "judge": 9.0},
    )
    assert pay_without_thinking(parts, weights, ["thinking"]) == 6.0
    assert pay_without_thinking(parts, weights, []) == 7.0
    assert pay_without_thinking({"judge": None}, weights, []) is None
    with pytest.raises(ValueError, match=r"thinking parts \['format'\]"):
        pay_without_thinking(parts, weights, ["format"])


def test_metrics_and_settings():
    batch = make_batch(([1.0, 0.0], 3.0), ([5.0, 0.0], 3.0))
    batch = replace(batch, advantage=shaped(batch))
    shown = ViSurf().metrics({"raw": Scores(torch.full(batch.mask.shape, -2.0))}, batch, NOW)
    assert shown["label_tokens"][:, 0].tolist() == [0, 0, 1, 0, 0, 1]
    assert shown["teaching_tokens"][:, 0].tolist() == [0, 0, 1, 0, 0, 0]
    assert shown["logp_label"][:, 0].tolist() == [0, 0, -2, 0, 0, -2]
    assert ViSurf().score_requests() == ()
    with pytest.raises(ValueError, match=r"ViSurf\.weight is -1"):
        ViSurf(weight=-1)
