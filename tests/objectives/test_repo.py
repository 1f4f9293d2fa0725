"""RePo: a multiplier that rises while its constraint is broken, and the two sides of a divergence."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mmrl.objectives.repo import HIGHEST, LOWEST, RePo
from mmrl.types import Batch, Now, Scores, Shaped

NOW = Now(1, 0.1)
MOST = RePo("masked", "at most", target=0.1, beta=0.5, rate=0.3, kl="k2")
LEAST = replace(MOST, side="at least")


def batch(raw, other):
    raw, other = (torch.tensor(x, dtype=torch.float64) for x in (raw, other))
    mask = torch.ones_like(raw, dtype=torch.bool)
    mask[-1, -1] = False
    zeros = torch.zeros_like(raw)
    found = Batch(
        [], torch.zeros(len(raw)).long(), zeros.long(), mask, zeros[:, 0], zeros, zeros.byte()
    )
    return replace(found, scores={"raw": Scores(raw), "masked": Scores(other)})


# Half of a squared log-ratio of 1 is a divergence of ½ per token; what is not trained says anything.
APART = batch([[-1.0, -1.0], [-1.0, -9.0]], [[-2.0, 0.0], [-2.0, math.inf]])
EQUAL = batch([[-1.0, -1.0]], [[-1.0, -1.0]])


def test_the_multiplier_grows_while_the_constraint_is_broken_and_falls_while_it_holds():
    for objective, sign in ((MOST, 1), (LEAST, -1)):
        memory = objective.start_memory()
        for step in range(1, 4):
            shaped = objective.shape(APART.advantage, APART, NOW, memory)
            assert memory.log_beta == pytest.approx(math.log(0.5) + sign * step * 0.3 * 0.4)
            assert shaped.logged["masked_violation"] == pytest.approx(sign * 0.4)
            assert torch.equal(shaped.advantage, APART.advantage)
    rests = replace(MOST, target=0.5)
    memory = rests.start_memory()
    rests.shape(APART.advantage, APART, NOW, memory)
    assert memory.beta == pytest.approx(0.5), "at its target it rests"
    with_nothing = replace(APART, mask=torch.zeros_like(APART.mask))
    MOST.shape(APART.advantage, with_nothing, NOW, memory)
    assert memory.beta == pytest.approx(0.5)


def test_the_multiplier_has_bounds_and_is_part_of_a_checkpoint():
    memory = MOST.start_memory()
    memory.ascend(1e9)
    assert memory.log_beta == HIGHEST
    memory.ascend(-1e9)
    assert memory.log_beta == LOWEST
    memory.ascend(math.nan)
    memory.ascend(1.25)
    fresh = MOST.start_memory()
    fresh.load(memory.state())
    assert fresh.log_beta == memory.log_beta == LOWEST + 1.25


def loss_of(objective, raw, other, beta=0.5):
    seen = batch(raw.tolist(), other.tolist())
    seen = replace(seen, kept={"beta": torch.full_like(raw, beta)})
    (term,) = objective.terms({"raw": Scores(raw), "masked": Scores(other)}, seen, NOW).values()
    return torch.where(seen.mask, term, 0.0).sum()


@pytest.mark.parametrize("objective", [MOST, LEAST])
def test_the_loss_is_the_violation_times_the_multiplier_in_closed_form(objective):
    raw = torch.tensor([[-1.0, -1.5], [-0.7, -3.0]], dtype=torch.float64, requires_grad=True)
    other = torch.tensor([[-2.0, -1.1], [-0.9, 5.0]], dtype=torch.float64, requires_grad=True)
    sign = 1 if objective.side == "at most" else -1
    loss = loss_of(objective, raw, other)
    gap = (raw - other).detach()
    gap[-1, -1] = 0.0
    # Three tokens are trained, and the target counts for each.
    assert loss.item() == pytest.approx(sign * 0.5 * (0.5 * gap.square().sum().item() - 0.3))
    loss.backward()
    assert torch.allclose(raw.grad, sign * 0.5 * gap)
    assert torch.allclose(other.grad, -sign * 0.5 * gap)


@pytest.mark.parametrize("balance", [0.0, 0.25, 1.0])
def test_a_balanced_divergence_keeps_its_value_and_shares_its_gradient(balance):
    for kind in ("k1", "k2", "k3", "abs"):
        raw = torch.tensor([[-1.0, -1.5]], dtype=torch.float64, requires_grad=True)
        other = torch.tensor([[-2.0, -1.1]], dtype=torch.float64, requires_grad=True)
        plain, shared = (replace(MOST, kl=kind, balance=b) for b in (None, balance))
        whole = torch.autograd.grad(loss_of(plain, raw, other), (raw, other))
        loss = loss_of(shared, raw, other)
        assert loss.item() == pytest.approx(loss_of(plain, raw, other).item())
        parts = torch.autograd.grad(loss, (raw, other))
        assert torch.allclose(parts[0], (1 - balance) * whole[0])
        assert torch.allclose(parts[1], balance * whole[1])


def test_off_it_asks_for_nothing_and_equal_views_are_0_apart():
    off = replace(MOST, beta=0.0)
    assert off.start_memory() is None and off.score_requests() == ()
    assert off.shape(EQUAL.advantage, EQUAL, NOW).advantage is EQUAL.advantage
    assert off.terms({}, EQUAL, NOW) == {} == off.metrics({}, EQUAL, NOW)
    found = MOST.shape(EQUAL.advantage, EQUAL, NOW, MOST.start_memory())
    assert isinstance(found, Shaped) and found.logged["masked_violation"] == pytest.approx(-0.1)


def test_what_makes_no_sense_is_refused():
    for change, why in (({"branch": "raw"}, "another view"), ({"target": -0.1}, "0 to 1,000"),
                        ({"beta": 1e-9}, "0 .off."), ({"balance": 1.5}, r"in \[0, 1\]"),
                        ({"side": "above"}, "'at most' or 'at least'"),
                        ({"kl": "exact", "balance": 0.5}, "cannot be told apart")):  # fmt: skip
        with pytest.raises(ValueError, match=why):
            replace(MOST, **change)
