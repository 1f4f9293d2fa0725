"""Advantage estimators: golden values, group algebra, and finite values on degenerate input."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.losses import advantages as A

GOLDEN = (
    Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "objectives"
)
# verl pays a group of one its reward; its vectorised RLOO gives it nothing.
PAID = {"alone": "reward"}
KNOWN = {
    "verl_grpo": partial(A.group_normalized, **PAID),
    "verl_grpo_vectorized": partial(A.group_normalized, **PAID),
    "verl_dr_grpo": partial(A.group_centered, **PAID),
    "verl_rloo": partial(A.rloo, **PAID),
    "verl_rloo_vectorized": A.rloo,
    "verl_opo": partial(A.opo, **PAID),
    "verl_reinforce_pp_baseline": partial(A.reinforce_plus_plus_baseline, **PAID),
    "easyr1_grpo": A.group_normalized,
    "easyr1_rloo": A.rloo,
    "easyr1_grpo_passk": A.passk,
    "papo_grpo": A.group_normalized,
    "papo_dapo": A.group_normalized,
}
TRL = {
    "group": partial(A.group_normalized, eps=1e-4),
    "none": A.group_centered,
    "batch": A.batch_normalized,
    "rloo": A.rloo,
}


def golden_keys(name):
    if not (GOLDEN / name).exists():
        return []
    return [key.split("__", 1) for key in np.load(GOLDEN / name).files if "__in_" not in key]


def computed(vectors, case, key):
    """Our value for a golden key, [B, T], or None if there is no such estimator."""
    reward = torch.tensor(vectors[f"{case}__in_token_level_rewards"])
    mask = torch.tensor(vectors[f"{case}__in_response_mask"])
    name, _, gamma = key.partition("_gamma")
    if name in ("verl_reinforce_pp", "easyr1_reinforce_pp"):
        estimator = partial(A.reinforce_plus_plus, gamma=float(gamma))
    elif name == "verl_reinforce_pp_returns":
        return A.reward_to_go(reward, mask, gamma=float(gamma))
    elif key == "verl_remax":
        estimator = partial(
            A.remax, baseline=torch.tensor(vectors[f"{case}__in_remax_baseline"])
        )
    elif key in KNOWN:
        estimator = KNOWN[key]
    else:
        return None
    advantage = estimator(reward, torch.tensor(vectors[f"{case}__in_index"]), mask)
    return advantage if advantage.ndim == 2 else advantage.unsqueeze(-1) * mask


@pytest.mark.parametrize(("case", "key"), golden_keys("advantages.npz"))
def test_golden_objectives_advantages(case, key):
    vectors = np.load(GOLDEN / "advantages.npz")
    got = computed(vectors, case, key)
    if got is None or key.endswith("__raises"):
        pytest.skip(f"{case}__{key}: no such estimator here")
    expected = vectors[f"{case}__{key}"]
    if key.startswith("easyr1_reinforce_pp"):
        # EasyR1 leaves values on padding after whitening; ours must not.
        padding = vectors[f"{case}__in_response_mask"] == 0
        assert (got.numpy()[padding] == 0).all()
        expected = np.where(padding, 0, expected)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(("case", "key"), golden_keys("advantages_trl.npz"))
def test_golden_objectives_advantages_trl(case, key):
    vectors = np.load(GOLDEN / "advantages_trl.npz")
    if key not in TRL:
        pytest.skip(f"{case}__{key}: no such estimator here")
    reward = torch.tensor(vectors[f"{case}__in_rewards"])
    group = torch.arange(len(reward)) // int(vectors[f"{case}__in_group_size"])
    got = TRL[key](reward, group, torch.ones(len(reward), 1))
    np.testing.assert_allclose(got.numpy(), vectors[f"{case}__{key}"], rtol=1e-4, atol=2e-6)


@pytest.mark.skipif(
    not (GOLDEN / "advantages.npz").exists(), reason="no advantages.npz in the golden folder"
)
def test_golden_objectives_advantages_has_known_cases():
    vectors = np.load(GOLDEN / "advantages.npz")
    assert any(
        computed(vectors, case, key) is not None for case, key in golden_keys("advantages.npz")
    )


REWARD = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.3, 0.3, 0.3, 2.0])
GROUP = torch.tensor([5, 5, 5, 5, 9, 9, 9, 2])  # ragged; the last group has one member
MASK = torch.tensor(
    [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0], [0, 0, 0], [1, 1, 1], [1, 0, 0]]
)
ALL = {
    "group_normalized": A.group_normalized,
    "group_centered": A.group_centered,
    "batch_normalized": A.batch_normalized,
    "rloo": A.rloo,
    "reinforce_plus_plus": partial(A.reinforce_plus_plus, gamma=0.9),
    "reinforce_plus_plus_baseline": A.reinforce_plus_plus_baseline,
    "opo": A.opo,
    "passk": A.passk,
    "gpg": A.gpg,
}
GROUPED = sorted(set(ALL) - {"reinforce_plus_plus"})


def spread(advantage):
    return advantage if advantage.ndim == 2 else advantage.unsqueeze(-1) * MASK


def test_hand_values():
    torch.testing.assert_close(
        A.group_centered(REWARD, GROUP, MASK)[:4], torch.tensor([0.5, -0.5, -0.5, 0.5])
    )
    std = (1 / 3) ** 0.5  # unbiased
    torch.testing.assert_close(
        A.group_normalized(REWARD, GROUP, MASK)[:1], torch.tensor([0.5 / (std + 1e-6)])
    )
    torch.testing.assert_close(A.rloo(REWARD, GROUP, MASK)[:2], torch.tensor([2 / 3, -2 / 3]))
    torch.testing.assert_close(
        A.opo(REWARD, GROUP, MASK)[:2], torch.tensor([1 - 6 / 9, -6 / 9])
    )
    torch.testing.assert_close(A.gpg(REWARD, GROUP, MASK)[:2], torch.tensor([1.0, -1.0]))
    assert (A.passk(REWARD, GROUP, MASK)[:4] == 0).all()  # the best two tie
    best = A.passk(torch.tensor([1.0, 0.5, 0.0]), torch.zeros(3), torch.ones(3, 1))
    torch.testing.assert_close(best, torch.tensor([0.5 / (0.5 + 1e-6), 0.0, 0.0]))


def test_reward_to_go_passes_over_untrained_tokens_and_starts_on_the_last_trained_one():
    mask = torch.tensor([[1, 0, 1, 0]])
    paid = A.token_reward(torch.tensor([8.0]), mask)
    torch.testing.assert_close(paid, torch.tensor([[0.0, 0.0, 8.0, 0.0]]))
    returns = A.reward_to_go(paid, mask, gamma=0.5)
    torch.testing.assert_close(
        returns, torch.tensor([[4.0, 0.0, 8.0, 0.0]], dtype=torch.float64)
    )


@pytest.mark.parametrize("name", GROUPED)
def test_equal_rewards_give_exactly_zero(name):
    advantage = spread(ALL[name](REWARD, GROUP, MASK))
    if name != "reinforce_plus_plus_baseline":  # whitening shifts everything by the batch mean
        assert (advantage[4:7] == 0).all()
    everything_equal = spread(
        ALL[name](torch.full((8,), 0.1, dtype=torch.float64), GROUP, MASK)
    )
    assert (everything_equal == 0).all()


@pytest.mark.parametrize("name", sorted(set(GROUPED) - {"reinforce_plus_plus_baseline"}))
def test_a_group_of_one_gets_zero_or_its_reward(name):
    assert ALL[name](REWARD, GROUP, MASK)[7] == 0
    paid = ALL[name](REWARD, GROUP, MASK, alone="reward")[7]
    assert paid > 0
    if name in ("group_normalized", "group_centered", "rloo", "opo"):
        torch.testing.assert_close(paid, REWARD[7], rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", sorted(ALL))
def test_row_order_does_not_matter(name):
    order = torch.tensor([3, 7, 0, 5, 2, 6, 1, 4])
    whole = spread(ALL[name](REWARD, GROUP, MASK))
    shuffled = ALL[name](REWARD[order], GROUP[order], MASK[order])
    shuffled = shuffled if shuffled.ndim == 2 else shuffled.unsqueeze(-1) * MASK[order]
    torch.testing.assert_close(shuffled, whole[order])


@pytest.mark.parametrize(
    "name", sorted(set(GROUPED) - {"batch_normalized", "reinforce_plus_plus_baseline", "gpg"})
)
def test_ragged_groups_equal_the_groups_one_by_one(name):
    whole = ALL[name](REWARD, GROUP, MASK)
    for number in GROUP.unique():
        rows = number == GROUP
        torch.testing.assert_close(
            ALL[name](REWARD[rows], GROUP[rows], MASK[rows]), whole[rows]
        )


@pytest.mark.parametrize("name", sorted(ALL))
def test_padding_columns_and_token_rewards_change_nothing(name):
    whole = spread(ALL[name](REWARD, GROUP, MASK))
    paid = A.token_reward(REWARD, MASK)
    paid = torch.where(MASK.bool(), paid, torch.nan)
    rows = MASK.any(-1)  # an answer without tokens cannot carry a token reward
    by_token = ALL[name](paid[rows], GROUP[rows], MASK[rows])
    by_answer = ALL[name](REWARD[rows], GROUP[rows], MASK[rows])
    torch.testing.assert_close(by_token, by_answer)
    wide = torch.cat([MASK, torch.zeros(8, 4, dtype=MASK.dtype)], 1)
    widened = ALL[name](REWARD, GROUP, wide)
    torch.testing.assert_close(
        widened[:, :3] if widened.ndim == 2 else widened.unsqueeze(-1) * MASK, whole
    )


@pytest.mark.parametrize("name", sorted(ALL))
def test_an_unavailable_reward_is_left_out(name):
    reward = REWARD.clone()
    reward[1] = torch.nan
    keep = torch.arange(8) != 1
    got = ALL[name](reward, GROUP, MASK)
    assert torch.isfinite(got).all() and (got[1] == 0).all()
    torch.testing.assert_close(got[keep], ALL[name](reward[keep], GROUP[keep], MASK[keep]))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-1e3, 1e3, width=32), st.integers(-3, 3)), min_size=1, max_size=9
    ),
    st.sampled_from(sorted(ALL)),
)
def test_always_finite(rows, name):
    reward, group = (torch.tensor(column) for column in zip(*rows, strict=True))
    mask = torch.arange(4) < (torch.arange(len(rows)).unsqueeze(-1) % 5)
    assert torch.isfinite(ALL[name](reward.float(), group, mask)).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(-3, 3), st.floats(0.5, 4))
def test_group_algebra(seed, shift, scale):
    rng = torch.Generator().manual_seed(seed)
    reward = torch.randn(9, generator=rng, dtype=torch.float64)
    group, mask = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1]), torch.ones(9, 2)
    sizes = torch.tensor([4.0] * 4 + [5.0] * 5, dtype=torch.float64)
    for name in ("group_normalized", "group_centered", "rloo"):
        advantage = ALL[name](reward, group, mask)
        assert advantage[:4].sum().abs() < 1e-9 and advantage[4:].sum().abs() < 1e-9
        torch.testing.assert_close(ALL[name](reward + shift, group, mask), advantage)
    torch.testing.assert_close(
        A.rloo(reward, group, mask), sizes / (sizes - 1) * A.group_centered(reward, group, mask)
    )
    torch.testing.assert_close(
        A.group_normalized(reward * scale, group, mask),
        A.group_normalized(reward, group, mask),
        rtol=1e-3,
        atol=1e-4,
    )
    white = A.reinforce_plus_plus_baseline(reward, group, mask)
    torch.testing.assert_close(white.mean(), white.new_zeros(()), atol=1e-9, rtol=0)
    torch.testing.assert_close(white.var(), white.new_ones(()), atol=1e-6, rtol=0)


def test_near_equal_rewards_are_not_mistaken_for_equal_ones():
    reward = torch.tensor([0.5, 0.5 + 1e-6], dtype=torch.float64)
    advantage = A.group_normalized(reward, torch.zeros(2), torch.ones(2, 1))
    assert 0.2 < advantage[1] < 0.5  # eps tames the tiny spread, it does not remove it


def test_wrong_shapes_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(3,\).*\(8, 3\)"):
        A.group_normalized(torch.zeros(3), GROUP, MASK)
    with pytest.raises(ValueError, match="one number per answer"):
        A.group_normalized(REWARD, GROUP[:3], MASK)
    with pytest.raises(ValueError, match="greedy"):
        A.remax(REWARD, GROUP, MASK, baseline=torch.zeros(2))


def test_integers_and_half_precision_become_float32():
    assert A.group_normalized(REWARD.long(), GROUP, MASK).dtype == torch.float32
    assert A.group_normalized(REWARD.bfloat16(), GROUP, MASK).dtype == torch.float32
    assert A.reinforce_plus_plus(REWARD, GROUP, MASK).dtype == torch.float32
    assert A.rloo(REWARD.double(), GROUP, MASK).dtype == torch.float64
