"""Surrogates: golden values and gradients, clip behaviour, and padding."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrl.losses import kl
from mmrl.losses import surrogates as S
from mmrl.losses.reduce import (
    Totals,
    constant_norm,
    keep,
    reduced,
    sequence_mean,
    sequence_sum,
    token_mean,
)

GOLDEN = (
    Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden"))
    / "objectives"
    / "policy_loss.npz"
)
VERL_REDUCTION = {
    "token-mean": token_mean,
    "seq-mean-token-mean": sequence_mean,
    "seq-mean-token-sum": sequence_sum,
    # verl divides the sum by the padded length only, not by the number of answers.
    "seq-mean-token-sum-norm": lambda x, m, t: constant_norm(x, m, t, x.shape[1] / t.sequences),
}
# EasyR1, TRL and verl's GMPO count an answer without tokens as a zero.
EASYR1_REDUCTION = {
    "token": token_mean,
    "seq": lambda x, m, t: sequence_mean(x, m, Totals(t.tokens, len(m))),
}
TRL_REDUCTION = {
    "grpo": EASYR1_REDUCTION["seq"],
    "sapo": EASYR1_REDUCTION["seq"],
    "bnpo": token_mean,
    "dapo": token_mean,
    "cispo": token_mean,
    "dr_grpo": lambda x, m, t: constant_norm(x, m, Totals(t.tokens, len(m)), x.shape[1]),
}
NAMES = {
    "default": S.clipped,
    "vanilla": S.clipped,
    "gspo": S.gspo,
    "gspo_token": S.gspo_token,
    "cispo": S.cispo,
    "sapo": S.sapo,
    "gpg": S.reinforce,
    "geo_mean": S.gmpo,
}
ALL = [S.clipped, S.gspo, S.gspo_token, S.cispo, S.gmpo, S.sapo, S.reinforce]


def golden_keys():
    if not GOLDEN.exists():
        return []
    keys = [key for key in np.load(GOLDEN).files if "__in_" not in key]
    return sorted({tuple(key.rsplit("__", 1)[0].split("__", 1)) for key in keys})


def plan(key, low, high, dual):
    """(surrogate, clips, reduction, beta) for a golden key, or None if it names something that we do not have."""
    clips = {"clip_low": low, "clip_high": high, "dual_clip": dual}
    first, *rest = key.split("__")
    source, _, name = first.partition("_")
    if source == "verl" and name in NAMES:
        fixed = S.own_reduction(NAMES[name]) == "sequence"
        if name == "geo_mean":
            return S.gmpo, clips, EASYR1_REDUCTION["seq"], 0.0
        if name == "gspo":
            return S.gspo_token, {**clips, "dual_clip": None}, sequence_mean, 0.0
        rule = (
            sequence_mean if fixed and not rest else VERL_REDUCTION.get(rest[0] if rest else "")
        )
        return rule and (NAMES[name], clips, rule, 0.0)
    if source in ("easyr1", "papo") and name in NAMES and rest and rest[0] in EASYR1_REDUCTION:
        return NAMES[name], clips, EASYR1_REDUCTION[rest[0]], 0.0
    if source == "trl" and name in TRL_REDUCTION:
        return trl_plan(name, rest, {**clips, "dual_clip": None})
    return None


def trl_plan(name, rest, clips):
    level, *options = rest
    beta = 0.0
    surrogate = {"cispo": S.cispo, "sapo": S.sapo}.get(name, S.clipped)
    if name == "cispo":
        clips = {**clips, "clip_low": 1.0, "clip_high": 4.0}  # only an upper bound, 5.0 itself
    if level == "sequence":
        surrogate = S.gspo
    for option in options:
        if option.startswith("beta"):
            beta = float(option.removeprefix("beta"))
        elif option == "gspo_eps":
            clips = {**clips, "clip_low": 3e-4, "clip_high": 4e-4}
        elif option.startswith("delta"):
            surrogate = partial(surrogate, delta=float(option.removeprefix("delta")))
        else:
            return None
    if level not in ("token", "sequence") or (beta and level == "sequence"):
        return None
    return surrogate, clips, TRL_REDUCTION[name], beta


@pytest.mark.parametrize(("case", "key"), golden_keys())
def test_golden_objectives_policy_loss(case, key):
    vectors = np.load(GOLDEN)
    planned = plan(key, *(float(x) for x in vectors[f"{case}__in_clip"]))
    if planned is None:
        pytest.skip(f"{case}__{key}: no such surrogate here")
    surrogate, clips, rule, beta = planned
    logp, old, ref, mask = (
        torch.tensor(vectors[f"{case}__in_{name}"])
        for name in ("log_probs", "old_log_probs", "ref_log_probs", "response_mask")
    )
    logp.requires_grad_()
    advantage = torch.tensor(vectors[f"{case}__in_adv_seq"]).unsqueeze(-1) * mask
    x = surrogate(logp, old, advantage, mask, **clips)
    if beta:
        x = x + beta * kl.k3(logp, ref, log_ratio_max=None, value_max=None) * (logp - old).exp()
    loss = rule(x, mask, Totals.of(mask))
    (gradient,) = torch.autograd.grad(loss, logp)
    np.testing.assert_allclose(
        loss.item(), vectors[f"{case}__{key}__loss"], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        gradient.numpy(), vectors[f"{case}__{key}__grad"], rtol=1e-4, atol=1e-6
    )


@pytest.mark.skipif(not GOLDEN.exists(), reason="no policy_loss.npz in the golden folder")
def test_golden_objectives_policy_loss_has_known_cases():
    assert any(plan(key, 0.2, 0.2, 3.0) for _, key in golden_keys())


def random_batch(seed=0, rows=5, columns=6, scale=0.3):
    rng = torch.Generator().manual_seed(seed)
    logp = -torch.rand(rows, columns, generator=rng, dtype=torch.float64) * 2
    old = logp + scale * torch.randn(rows, columns, generator=rng, dtype=torch.float64)
    advantage = torch.randn(rows, 1, generator=rng, dtype=torch.float64).expand(rows, columns)
    lengths = torch.tensor([[columns], [1], [3], [columns - 1], [2]])[:rows]
    return logp.requires_grad_(), old, advantage, torch.arange(columns) < lengths


CLIPS = {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": 3.0}


@pytest.mark.parametrize("surrogate", ALL)
def test_on_policy_value_and_gradient_are_those_of_policy_gradient(surrogate):
    logp, _, advantage, mask = random_batch()
    totals = Totals.of(mask)
    rule = S.own_reduction(surrogate) or "token"
    loss = reduced(surrogate(logp, logp.detach(), advantage, mask, **CLIPS), mask, totals, rule)
    (gradient,) = torch.autograd.grad(loss, logp)
    weight = (
        mask / totals.tokens
        if rule == "token"
        else mask / mask.sum(-1, keepdim=True) / totals.sequences
    )
    torch.testing.assert_close(gradient, -advantage * weight)
    if surrogate in (S.clipped, S.gspo, S.gspo_token, S.gmpo):
        torch.testing.assert_close(loss, -(advantage * weight).sum())


@pytest.mark.parametrize("surrogate", ALL)
def test_garbage_in_padding_reaches_neither_value_nor_gradient(surrogate):
    logp, old, advantage, mask = random_batch()
    expected = surrogate(logp, old, advantage, mask, **CLIPS)
    (gradient,) = torch.autograd.grad(keep(expected, mask).sum(), logp)
    for garbage in (torch.nan, torch.inf, -torch.inf):
        dirty, dirty_old, dirty_advantage = (
            torch.where(mask, x.detach(), garbage) for x in (logp, old, advantage)
        )
        dirty.requires_grad_()
        got = surrogate(dirty, dirty_old, dirty_advantage, mask, **CLIPS)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(torch.autograd.grad(got.sum(), dirty)[0], gradient)
    assert (expected[~mask] == 0).all() and (gradient[~mask] == 0).all()


@pytest.mark.parametrize("surrogate", ALL)
def test_answers_do_not_touch_each_other(surrogate):
    logp, old, advantage, mask = random_batch()
    whole = surrogate(logp, old, advantage, mask, **CLIPS)
    alone = surrogate(logp[3:4, :5], old[3:4, :5], advantage[3:4, :5], mask[3:4, :5], **CLIPS)
    torch.testing.assert_close(whole[3:4, :5], alone)


def token(log_ratio, advantage, surrogate=S.clipped, **options):
    """Loss and gradient of a single token with this log-ratio and advantage."""
    logp = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
    zero, one = torch.zeros_like(logp), torch.ones(1, 1)
    loss = surrogate(logp, zero, zero + advantage, one, **{**CLIPS, **options}).sum()
    return loss.item(), torch.autograd.grad(loss, logp)[0].item()


def test_clipping_stops_the_gradient_only_where_the_move_already_paid():
    assert token(np.log(1.4), 1.0) == (pytest.approx(-1.3), 0.0)
    assert token(np.log(0.7), -1.0) == (pytest.approx(0.8), 0.0)
    assert token(np.log(0.7), 1.0) == (pytest.approx(-0.7), pytest.approx(-0.7))
    assert token(np.log(1.4), -1.0) == (pytest.approx(1.4), pytest.approx(1.4))


def test_dual_clip_acts_only_on_negative_advantages_and_large_ratios():
    assert token(np.log(4.0), -1.0) == (pytest.approx(3.0), 0.0)
    assert token(np.log(4.0), -1.0, dual_clip=None) == (pytest.approx(4.0), pytest.approx(4.0))
    assert token(np.log(2.9), -1.0)[1] == pytest.approx(2.9)
    assert token(np.log(4.0), 1.0) == token(np.log(4.0), 1.0, dual_clip=None)


def test_delta_caps_the_unclipped_branch():
    capped = partial(S.clipped, delta=1.5)
    assert token(np.log(4.0), -1.0, capped, dual_clip=None) == (pytest.approx(1.5), 0.0)


def test_a_wide_range_is_no_clip():
    logp, old, advantage, mask = random_batch(scale=1.0)
    wide = S.clipped(logp, old, advantage, mask, clip_low=1.0, clip_high=1e9, dual_clip=None)
    torch.testing.assert_close(wide, keep(-advantage * (logp - old).exp(), mask))


def test_the_log_ratio_is_bounded():
    value, gradient = token(500.0, -1.0, dual_clip=None)
    assert value == pytest.approx(np.exp(20.0)) and gradient == 0


def test_gspo_gradient_is_equal_for_all_tokens_of_an_answer():
    logp, old, advantage, mask = random_batch(scale=0.01)
    loss = sequence_mean(S.gspo(logp, old, advantage, mask, **CLIPS), mask, Totals.of(mask))
    (gradient,) = torch.autograd.grad(loss, logp)
    for row, on in zip(gradient, mask, strict=True):
        torch.testing.assert_close(row[on], row[on][:1].expand(on.sum()))
    by_token = sequence_mean(
        S.gspo_token(logp, old, advantage, mask, **CLIPS), mask, Totals.of(mask)
    )
    torch.testing.assert_close(by_token, loss)
    torch.testing.assert_close(torch.autograd.grad(by_token, logp)[0], gradient)


def test_gspo_token_lets_advantages_differ_within_an_answer_and_gspo_does_not():
    logp, old, _, mask = random_batch(scale=0.01)
    advantage = torch.where(torch.arange(6) < 3, 1.0, 0.0).double().expand(5, 6)
    split = {}
    for surrogate in (S.gspo, S.gspo_token):
        loss = keep(surrogate(logp, old, advantage, mask, **CLIPS), mask).sum()
        split[surrogate] = torch.autograd.grad(loss, logp)[0]
    assert (split[S.gspo_token][0, 3:] == 0).all()
    assert (split[S.gspo][0, 3:] != 0).all()


def test_single_token_answers_make_gspo_and_grpo_agree():
    logp, old, advantage, _ = random_batch()
    mask = torch.arange(6).expand(5, 6) < 1
    torch.testing.assert_close(
        S.gspo(logp, old, advantage, mask, **CLIPS),
        S.clipped(logp, old, advantage, mask, **CLIPS),
    )


def test_cispo_keeps_a_gradient_for_clipped_tokens():
    value, gradient = token(np.log(1.9), 1.0, S.cispo)
    assert gradient == pytest.approx(-1.3) and value == pytest.approx(-1.3 * np.log(1.9))
    assert token(np.log(1.9), 1.0, S.clipped)[1] == 0


def test_gmpo_clips_against_the_advantage_in_log_space():
    range_ = {"clip_low": 0.4, "clip_high": 0.4}
    assert token(0.9, 1.0, S.gmpo, **range_) == (pytest.approx(-np.exp(0.4)), 0.0)
    assert token(0.9, -1.0, S.gmpo, **range_)[0] == pytest.approx(np.exp(0.9))
    assert token(-0.9, -1.0, S.gmpo, **range_) == (pytest.approx(np.exp(-0.4)), 0.0)


def test_sapo_gradient_fades_on_both_sides():
    at_one = abs(token(0.0, 1.0, S.sapo)[1])
    assert at_one == pytest.approx(1.0)
    for log_ratio in (-2.0, 2.0):
        assert 0 < abs(token(log_ratio, 1.0, S.sapo)[1]) < at_one


def test_own_reduction_is_read_through_partial():
    assert S.own_reduction(S.gspo) == "sequence"
    assert (
        S.own_reduction(partial(partial(S.sapo, tau_positive=2.0), tau_negative=2.0))
        == "sequence"
    )
    assert S.own_reduction(partial(S.clipped, delta=2.0)) is None
    assert S.own_reduction(lambda *tensors, **clips: tensors[0]) is None


def test_ratio_metrics_count_clips_where_they_bind():
    ratio = torch.tensor([[1.5, 0.5, 1.5, 0.5, 4.0, 1.0]])
    advantage = torch.tensor([[1.0, -1.0, -1.0, 1.0, -1.0, 1.0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0]])
    maps = S.ratio_metrics(ratio.log(), torch.zeros(1, 6), advantage, mask, **CLIPS)
    assert maps["clip_high"].tolist() == [[1, 0, 0, 0, 0, 0]]
    assert maps["clip_low"].tolist() == [[0, 1, 0, 0, 0, 0]]
    assert maps["clip_dual"].tolist() == [[0, 0, 0, 0, 1, 0]]
    torch.testing.assert_close(maps["ratio"], torch.where(mask.bool(), ratio, 0.0))
    torch.testing.assert_close(maps["kl_old"], torch.where(mask.bool(), -ratio.log(), 0.0))
