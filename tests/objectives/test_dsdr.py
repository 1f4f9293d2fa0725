"""DSDR: who differs, who earns for it and how much, shares of the entropy, and groups with nothing to compare."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from mmrl.losses.advantages import group_normalized
from mmrl.objectives.dsdr import DSDR, alone_shares, diversity, pieces_of, shares
from mmrl.types import Batch, Now, Prompt, Rollout, Scores

NOW = Now(1, 0.1)
AXES = torch.eye(4, dtype=torch.float64)


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def batch_of(states, correct, reward=None, group=None, texts=None, mask=None):
    """Answers of two tokens whose hidden states are all the given one; NaN on padding."""
    count = len(correct)
    mask = torch.ones(count, 2, dtype=torch.bool) if mask is None else mask
    per_token = torch.where(mask.unsqueeze(-1), states.unsqueeze(1).expand(-1, 2, -1), math.nan)
    blank = torch.zeros(count, 2, dtype=torch.long)
    group = torch.zeros(count, dtype=torch.long) if group is None else group
    rows = [
        Rollout(Prompt("q", []), int(group[i]), blank[0], blank[0], blank[0],
                texts[i] if texts else "", "eos")
        for i in range(count)
    ]  # fmt: skip
    right = torch.tensor(correct)
    reward = right.double() if reward is None else reward
    zero = torch.zeros(count, 2, dtype=torch.float64)
    return Batch(rows, group, blank, mask, reward, zero, blank.byte(),
                 {"raw": Scores(zero, states=per_token)}, correct=right)  # fmt: skip


def test_orthogonal_answers_are_apart_and_equal_ones_are_not():
    states = torch.stack([AXES[0], AXES[1], AXES[0], 3 * AXES[0]])
    counts, group = torch.tensor([True, True, True, False]), torch.zeros(4, dtype=torch.long)
    found = diversity(states, None, counts, group)
    torch.testing.assert_close(found, tensor([0.5, 1.0, 0.5, 0.0]))
    near = torch.stack([AXES[0], AXES[0] + 0.1 * AXES[1]])
    two, one = counts[:2], group[:2]
    distance = 1 - 1 / math.sqrt(1.01)
    stretched = diversity(near, None, two, one, stretch=10.0)
    torch.testing.assert_close(stretched, tensor([10 * distance] * 2))
    assert (diversity(near, None, two, one, stretch=1e6) == 1).all()
    assert (diversity(-near * tensor([[1], [-1]]), None, two, one) == 1).all(), "opposite ones"


def test_pieces_that_nobody_else_has_count_half():
    assert alone_shares([frozenset("ab"), frozenset("bc"), frozenset()]) == [0.5, 0.5, 0.0]
    same = torch.stack([AXES[0], AXES[0]])
    counts, group = torch.tensor([True, True]), torch.zeros(2, dtype=torch.long)
    found = diversity(same, [frozenset("ab"), frozenset("b")], counts, group)
    torch.testing.assert_close(found, tensor([0.25, 0.0]))


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        (r"so $x = 2$ and \(y+1\), \[z\], $$w$$", "formulas", {"x=2", "y+1", "z", "w"}),
        ("area = 12 then", "formulas", {"area=12"}),
        (
            "left [1, 2,3.5, 4] and (5,6,7,8), not [1,2,3]",
            "boxes",
            {"[1,2,3.5,4]", "(5,6,7,8)"},
        ),
        ("no piece", "formulas", set()),
    ],
)
def test_pieces_are_read_without_their_spaces(text, kind, expected):
    assert pieces_of([text], kind) == [frozenset(expected)]
    assert pieces_of([text], "none") is None


def test_only_right_answers_gain_and_never_more_than_the_largest_bonus():
    rng = torch.Generator().manual_seed(0)
    for _ in range(10):
        states = torch.randn(8, 4, generator=rng, dtype=torch.float64)
        correct = (torch.rand(8, generator=rng) > 0.4).tolist()
        batch = batch_of(states, correct, group=torch.arange(8) % 2)
        dsdr = DSDR(weight=0.3, largest=0.25, local=0.0)
        bonus = dsdr.shape(batch.advantage, batch, NOW).logged["bonus"][:, 0]
        assert (bonus >= 0).all() and bonus.max() <= 0.3 * 0.25 + 1e-12
        assert (bonus[~torch.tensor(correct)] == 0).all()


def test_the_advantage_is_the_z_score_of_rewards_with_their_bonus():
    states = torch.stack([AXES[0], AXES[0], AXES[1], AXES[2]])
    batch = batch_of(states, [True, True, True, False])
    shaped = DSDR(pieces="none", largest=1.0, local=0.0).shape(batch.advantage, batch, NOW)
    raised = batch.reward + 0.2 * tensor([0.5, 0.5, 1.0, 0.0])
    expected = group_normalized(raised, batch.group, batch.mask)
    torch.testing.assert_close(shaped.advantage, expected[:, None].expand(4, 2))
    assert shaped.advantage[2, 0] > shaped.advantage[0, 0] > shaped.advantage[3, 0]


def test_alike_answers_and_a_single_right_one_are_grpo():
    for correct in ([True, True, True, False], [True, False, False, False]):
        batch = batch_of(AXES[0].repeat(4, 1), correct)
        shaped = DSDR().shape(batch.advantage, batch, NOW)
        assert (shaped.logged["diversity"] == 0).all()
        plain = group_normalized(batch.reward, batch.group, batch.mask)
        assert torch.equal(shaped.advantage, plain[:, None].expand(4, 2))


def test_an_all_right_group_teaches_by_diversity():
    batch = batch_of(torch.stack([AXES[0], AXES[0], AXES[1]]), [True] * 3)
    found = DSDR().shape(batch.advantage, batch, NOW).advantage[:, 0]
    assert found[2] > 0 > found[0] and float(found.sum()) == pytest.approx(0.0, abs=1e-9)


def test_shares_of_a_group_sum_to_its_size_and_rise_with_diversity():
    diverse, group = tensor([0.1, 0.4, 0.0, 0.9]), torch.tensor([3, 3, 3, 5])
    counts = torch.tensor([True, True, False, True])
    found = shares(diverse, counts, group, 0.2)
    assert float(found[:3].sum()) == pytest.approx(3.0) and float(found[3]) == 1.0
    assert found[1] > found[0] > found[2] == 0


def test_the_entropy_term_is_weighted_by_the_share_and_the_clamped_ratio():
    states = torch.stack([AXES[0], AXES[1], AXES[2]])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    batch = batch_of(states, [True, True, False], mask=mask)
    dsdr = DSDR(local=0.5, clamp=0.2)
    shaped = dsdr.shape(batch.advantage, batch, NOW)
    batch = replace(batch, kept=shaped.kept)
    entropy = torch.where(mask, 2.0, math.nan).double().requires_grad_()
    logp = tensor([[0.1, 9.0], [-9.0, math.inf], [0.0, 0.0]]).requires_grad_()
    term = dsdr.terms({"raw": Scores(logp, entropy=entropy)}, batch, NOW)["local_entropy"]
    each = -0.5 * 2.0 * 1.5  # three answers, two of them right and alike in diversity
    expected = each * tensor([[math.exp(0.1), 1.2], [0.8, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(term.detach(), expected)
    to_entropy, to_ratio = torch.autograd.grad(term.sum(), (entropy, logp), allow_unused=True)
    assert to_ratio is None  # the ratio only weighs
    assert to_entropy.isfinite().all() and (to_entropy[~mask] == 0).all()
    assert DSDR(local=0.0).terms({}, batch, NOW) == {}


def test_degenerate_answers_are_finite_and_in_no_comparison():
    mask = torch.tensor([[True, True], [False, False], [True, True], [True, False]])
    reward = tensor([1.0, 1.0, math.nan, 1.0])
    batch = batch_of(AXES, [True, True, False, True], reward, mask=mask)
    shaped = DSDR(pieces="none").shape(batch.advantage, batch, NOW)
    assert shaped.advantage.isfinite().all() and (shaped.advantage[~mask] == 0).all()
    assert shaped.advantage[2, 0] == 0
    assert shaped.logged["diversity"][:, 0].tolist() == [1.0, 0.0, 0.0, 1.0]


def test_off_and_halves_ask_and_own_what_they_use():
    off, given = DSDR(weight=0.0, local=0.0), torch.randn(1, 2)
    batch = batch_of(AXES[:1], [True])
    assert off.shape(given, batch, NOW).advantage is given
    assert off.score_requests() == off.owns() == off.traits() == ()
    alone = DSDR(weight=0.0)
    assert alone.owns() == () and alone.shape(given, batch, NOW).advantage is given
    assert [(r.states, r.entropy) for r in DSDR(local=0.0).score_requests()] == [(True, False)]
    with pytest.raises(ValueError, match=r"reads whether answers are right"):
        DSDR().shape(given, replace(batch, correct=None), NOW)
