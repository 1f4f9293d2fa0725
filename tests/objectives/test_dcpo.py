"""DCPO: golden bounds, advantages and losses, the pooled statistics of visits, and the memory that holds them."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch

from mmrl.losses.reduce import Totals, sequence_mean, token_mean
from mmrl.losses.surrogates import Bounded, clipped
from mmrl.objectives.dcpo import DCPO, Past, Visits, dynamic_bounds, merged, smoothed
from mmrl.training.checkpoint import plain
from mmrl.types import Batch, Now, Prompt, Rollout

NOW = Now(1, 0.1)
FILE = (
    Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden"))
    / "rlvr"
    / "dcpo.json"
)
GOLDEN = json.loads(FILE.read_text()) if FILE.exists() else {"cases": []}
# The code's "only token mean" of a micro-batch with several answers is the token mean.
REDUCED = {"only-token-mean": token_mean, "token-mean": token_mean, "seq-mean-token-mean": sequence_mean}  # fmt: skip


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def close(found, expected):
    torch.testing.assert_close(
        found, tensor(expected), rtol=GOLDEN["rtol"], atol=GOLDEN["atol"], check_dtype=False
    )


def cases(kind):
    return [
        pytest.param(case, id=case["name"])
        for case in GOLDEN["cases"]
        if kind in case["inputs"]
    ]


@pytest.mark.parametrize("case", cases("seen_times"))
def test_golden_rlvr_dcpo_advantages(case):
    given, told = case["inputs"], case["outputs"]
    reward, mask = tensor(given["rewards"]), tensor(given["response_mask"])
    own = torch.zeros_like(reward)
    names = list(dict.fromkeys(given["group"]))
    for place, name in enumerate(names):
        rows = torch.tensor([label == name for label in given["group"]])
        past = Past(given["seen_times"], given["old_mean"][place], given["old_std"][place])
        own[rows], after = smoothed(reward[rows], past if past.visits else Past())
        close(torch.tensor(after.mean), told["new_cum_mean"][place])
        close(torch.tensor(after.std), told["new_cum_std"][place])
    close(own.unsqueeze(-1) * mask, told["advantages"])


@pytest.mark.parametrize("case", cases("old_prob"))
def test_golden_rlvr_dcpo_bounds(case):
    given, told = case["inputs"], case["outputs"]
    # In the code the cap is at least 10, whatever it is told.
    cap = max(given["ratio_cap"], 10.0)
    numbers = {"eps_low": given["eps_low"], "eps_high": given["eps_high"], "cap": cap}
    low, high = dynamic_bounds(tensor(given["old_prob"]).log(), **numbers)
    close(low, told["low"])
    close(high, told["high"])


@pytest.mark.parametrize("case", cases("agg"))
def test_golden_rlvr_dcpo_loss(case):
    given, told = case["inputs"], case["outputs"]
    dcpo = DCPO(given["eps_low"], given["eps_high"], cap=max(given["clip_c"], 10.0))
    mask = tensor(given["response_mask"]).bool()
    logp = tensor(given["log_prob"]).requires_grad_()
    map_ = Bounded(clipped, dcpo.bounds)(
        logp, tensor(given["old_log_prob"]), tensor(given["advantages"]), mask,
        dual_clip=given["clip_c"],
    )  # fmt: skip
    loss = REDUCED[given["agg"]](map_, mask, Totals.of(mask))
    close(loss, told["loss"])
    close(torch.autograd.grad(loss, logp)[0], told["grad_log_prob"])


def test_bounds_at_the_table_of_the_page_and_at_both_ends():
    low, high = DCPO().bounds(tensor([0.9, 0.01, 1e-30, 0.0]).log(), tensor([0.0] * 4))
    close_to = torch.testing.assert_close
    close_to(low, tensor([0.769, 0.5, 0.5, 0.5]), atol=1e-3, rtol=0)
    close_to(high, tensor([1.187, 5.0, 10.0, 10.0]), atol=1e-3, rtol=0)
    q = torch.linspace(0.001, 1.0, 200, dtype=torch.float64)
    low, high = DCPO().bounds(q.log(), q)
    assert (
        (low.diff() >= 0).all()
        and (high.diff() <= 0).all()
        and (low <= 1).all()
        and (high >= 1).all()
    )
    assert (low[q <= 4 * 0.16] == 0.5).all()
    nothing, _ = DCPO(eps_low=0.0).bounds(tensor([0.0]).log(), q)
    assert (nothing == 1).all()


def test_the_first_visit_is_the_plain_z_score():
    reward = tensor([0.0, 1.0, 1.0, 0.25])
    found, after = smoothed(reward, Past())
    torch.testing.assert_close(found, (reward - reward.mean()) / reward.std())
    assert after == Past(1, float(reward.mean()), float(reward.std()))


def test_visits_are_pooled_by_the_formula():
    past = Past()
    means, deviations = [0.25, 0.5, 0.75], [0.5, 0.1, 0.0]
    for mean, std in zip(means, deviations, strict=True):
        past = merged(past, mean, std)
    pooled = sum(means) / 3
    spread = sum(s * s for s in deviations) / 3 + sum((m - pooled) ** 2 for m in means) / 3
    assert past.visits == 3 and past.mean == pytest.approx(pooled)
    assert past.std == pytest.approx(math.sqrt(spread))


def test_an_all_equal_group_teaches_by_what_is_remembered_and_never_more_than_either_part():
    past, reward = Past(3, 0.25, 0.4), tensor([1.0, 1.0])
    found, after = smoothed(reward, past)
    expected = (1 - after.mean) / after.std / 4
    torch.testing.assert_close(found, tensor([expected] * 2))
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        reward = torch.rand(5, generator=rng, dtype=torch.float64)
        found, after = smoothed(reward, past)
        new = (reward - reward.mean()) / reward.std()
        total = (reward - after.mean) / after.std
        assert (found.abs() <= torch.maximum(new.abs(), total.abs()) + 1e-12).all()


@pytest.mark.parametrize(
    "reward", [[0.5], [0.1] * 3, [float("nan")] * 2, [float("nan"), 1.0, 0.0]]
)
def test_degenerate_groups_are_finite(reward):
    for past in (Past(), Past(2, 0.3, 0.0), Past(2, 0.3, 0.2)):
        found, after = smoothed(tensor(reward), past)
        assert found.isfinite().all() and math.isfinite(after.std)
        unknown = tensor(reward).isnan()
        assert (found[unknown] == 0).all()
        assert after.visits == past.visits + (not unknown.all())


def batch_of(names, rewards):
    count = len(names)
    blank = torch.zeros(count, 2, dtype=torch.long)
    groups = {name: number for number, name in enumerate(dict.fromkeys(names))}
    rows = [
        Rollout(Prompt(n, []), groups[n], blank[0], blank[0], blank[0], "", "eos")
        for n in names
    ]
    mask = torch.ones(count, 2, dtype=torch.bool)
    return Batch(rows, torch.tensor([r.group for r in rows]), blank, mask, tensor(rewards),
                 torch.zeros(count, 2, dtype=torch.float64), blank.byte())  # fmt: skip


def test_the_memory_is_of_prompts_counted_once_a_visit_and_rides_in_a_checkpoint():
    dcpo, memory = DCPO(), DCPO().start_memory()
    one, two = batch_of("aabb", [0, 1, 1, 1]), batch_of("bbaa", [0, 1, 0, 0])
    dcpo.shape(one.advantage, one, NOW, memory)
    assert {name: past.visits for name, past in memory.past.items()} == {"a": 1, "b": 1}
    saved = plain(memory.state())
    here = dcpo.shape(two.advantage, two, NOW, memory)
    again = Visits()
    again.load(saved)
    assert torch.equal(dcpo.shape(two.advantage, two, NOW, again).advantage, here.advantage)
    assert memory.past == again.past and memory.past["a"].visits == 2
    assert (here.logged["visits"] == 2).all()
    fresh = dcpo.shape(two.advantage, two, NOW, dcpo.start_memory())
    assert not torch.equal(fresh.advantage, here.advantage)
    with pytest.raises(ValueError, match="got no memory"):
        dcpo.shape(two.advantage, two, NOW)


def test_without_smoothing_the_advantage_is_left_alone():
    batch = batch_of("aa", [0, 1])
    given = torch.randn(2, 2)
    assert DCPO(smooth=False).shape(given, batch, NOW).advantage is given
    assert DCPO(smooth=False).owns() == () and DCPO().owns() == ("estimator",)
