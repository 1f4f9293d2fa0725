"""Divergence estimators: golden values, closed forms, and which divergence each gradient follows."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from mmrl.losses import kl

GOLDEN = (
    Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden"))
    / "objectives"
    / "kl_estimators.npz"
)
KNOWN = {
    **{name: kl.k1 for name in ("verl_k1", "verl_kl", "easyr1_kl")},
    **{name: kl.k2 for name in ("verl_k2", "verl_mse", "easyr1_mse")},
    **{name: kl.k3 for name in ("verl_k3", "verl_low_var_kl", "easyr1_low_var_kl")},
    **{name: kl.absolute for name in ("verl_abs", "easyr1_abs")},
    "trl_k3_unclamped": lambda a, b: kl.k3(a, b, log_ratio_max=None, value_max=None),
}


def golden_keys():
    if not GOLDEN.exists():
        return []
    return [key.split("__", 1) for key in np.load(GOLDEN).files if "__in_" not in key]


@pytest.mark.parametrize(("case", "key"), golden_keys())
def test_golden_objectives_kl(case, key):
    vectors = np.load(GOLDEN)
    name = key.removesuffix("__dlogp")
    if name not in KNOWN:
        pytest.skip(f"{case}__{key}: no such estimator here")
    a = torch.tensor(vectors[f"{case}__in_log_probs"], requires_grad=True)
    value = KNOWN[name](a, torch.tensor(vectors[f"{case}__in_ref_log_probs"]))
    got = torch.autograd.grad(value.sum(), a)[0] if key.endswith("__dlogp") else value.detach()
    np.testing.assert_allclose(got.numpy(), vectors[f"{case}__{key}"], rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not GOLDEN.exists(), reason="no kl_estimators.npz in the golden folder")
def test_golden_objectives_kl_has_known_cases():
    assert any(key.removesuffix("__dlogp") in KNOWN for _, key in golden_keys())


def random_logits(seed, size=6):
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(size, generator=rng, dtype=torch.float64) * 1.5 for _ in range(2))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_expected_values_and_gradients_over_a_small_vocabulary(seed):
    logits_a, logits_b = random_logits(seed)
    logits_a.requires_grad_()
    log_a, log_b = torch.log_softmax(logits_a, -1), torch.log_softmax(logits_b, -1)
    weight = log_a.detach().exp()  # the tokens are drawn from a, the draw carries no gradient

    def gradient(x):
        return torch.autograd.grad(x, logits_a, retain_graph=True)[0]

    free = {"log_ratio_max": None, "value_max": None}
    forward, reverse = kl.forward_kl(logits_a, logits_b), kl.reverse_kl(logits_a, logits_b)
    torch.testing.assert_close((weight * kl.k1(log_a, log_b)).sum(), forward)
    torch.testing.assert_close((weight * kl.k3(log_a, log_b, **free)).sum(), forward)
    torch.testing.assert_close(
        gradient((weight * kl.k1(log_a, log_b)).sum()), torch.zeros_like(log_a)
    )
    torch.testing.assert_close(
        gradient((weight * kl.k2(log_a, log_b)).sum()), gradient(forward)
    )
    torch.testing.assert_close(
        gradient((weight * kl.k3(log_a, log_b, **free)).sum()), gradient(reverse)
    )


def test_k3_is_non_negative_and_zero_only_for_equal_log_probs():
    d = torch.linspace(-5, 5, 2001)
    value = kl.k3(d, torch.zeros_like(d))
    assert (value >= 0).all()
    assert ((value == 0) == (d == 0)).all()
    small = torch.tensor([1e-3, -1e-3], dtype=torch.float64)
    torch.testing.assert_close(
        kl.k3(small, small * 0), kl.k2(small, small * 0), rtol=1e-3, atol=0
    )


def test_k3_keeps_precision_for_nearly_equal_policies():
    u = torch.tensor([1e-4, 3e-5, -2e-5])
    exact = torch.expm1(u.double()) - u.double()
    assert (kl.k3(torch.zeros(3), u) >= 0).all()
    torch.testing.assert_close(kl.k3(torch.zeros(3), u).double(), exact, rtol=0.2, atol=1e-11)


def test_k3_gradient_and_clamps():
    d = torch.tensor([-30.0, -4.0, -1.0, 0.0, 2.0, 30.0], requires_grad=True)
    value = kl.k3(d, torch.zeros(6))
    (gradient,) = torch.autograd.grad(value.sum(), d)
    torch.testing.assert_close(value.detach()[[0, 1]], torch.tensor([10.0, 10.0]))
    assert gradient[0] == 0 and gradient[1] == 0 and gradient[5] == 0
    torch.testing.assert_close(gradient[2:5], 1 - torch.exp(-d.detach()[2:5]))
    free = kl.k3(d, torch.zeros(6), log_ratio_max=None, value_max=None)
    torch.testing.assert_close(free[1], torch.tensor(math.exp(4.0) - 5.0))


def test_k3_direction_is_not_the_papers_printed_form():
    a, b = torch.tensor([-1.0]), torch.tensor([-3.0])
    printed = torch.exp(a - b) - (a - b) - 1
    assert not torch.allclose(kl.k3(a, b), printed)
    torch.testing.assert_close(kl.k3(a, b), torch.exp(b - a) + (a - b) - 1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_exact_forms_agree_with_torch_distributions(seed):
    a, b = random_logits(seed)
    p, q = Categorical(logits=a), Categorical(logits=b)
    torch.testing.assert_close(kl.forward_kl(a, b), kl_divergence(p, q))
    torch.testing.assert_close(kl.reverse_kl(a, b), kl_divergence(q, p))
    torch.testing.assert_close(
        kl.symmetric_kl(a, b), (kl_divergence(p, q) + kl_divergence(q, p)) / 2
    )
    torch.testing.assert_close(kl.entropy(a), p.entropy())
    mixture = Categorical(probs=(p.probs + q.probs) / 2)
    torch.testing.assert_close(
        kl.jensen_shannon(a, b), (kl_divergence(p, mixture) + kl_divergence(q, mixture)) / 2
    )
    assert 0 <= kl.jensen_shannon(a, b) <= math.log(2)
    torch.testing.assert_close(kl.forward_kl(torch.log_softmax(a, -1), b), kl.forward_kl(a, b))


def test_impossible_tokens_add_nothing_to_value_or_gradient():
    a = torch.tensor([0.3, -torch.inf, 1.0], requires_grad=True)
    b = torch.tensor([1.0, -torch.inf, -0.5])
    short = torch.tensor([0.3, 1.0], requires_grad=True)
    for exact in kl.EXACT.values():
        value = exact(a, b)
        torch.testing.assert_close(value, exact(short, b[[0, 2]]))
        (gradient,) = torch.autograd.grad(value, a)
        torch.testing.assert_close(
            gradient[[0, 2]], torch.autograd.grad(exact(short, b[[0, 2]]), short)[0]
        )
    assert torch.isfinite(torch.autograd.grad(kl.entropy(a), a)[0]).all()
    disjoint = kl.jensen_shannon(
        torch.tensor([0.0, -torch.inf]), torch.tensor([-torch.inf, 0.0])
    )
    torch.testing.assert_close(disjoint, torch.tensor(math.log(2)))
    assert kl.forward_kl(torch.tensor([0.0, 0.0]), torch.tensor([0.0, -torch.inf])) == torch.inf
