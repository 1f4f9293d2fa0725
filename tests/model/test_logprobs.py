"""The tiled head against full logits: values, gradients, tiles and memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import log_softmax

import mmrl.model.logprobs as head
from mmrl.model.logprobs import embed, head_divergence, head_scores, head_spread
from mmrl.model.spread import Spread

torch.set_num_threads(1)


def draws(count=13, width=6, vocabulary=29, dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, width, generator=rng, dtype=dtype)
    other = torch.randn(count, width, generator=rng, dtype=dtype)
    weight = torch.randn(vocabulary, width, generator=rng, dtype=dtype)
    tokens = torch.randint(vocabulary, (count,), generator=rng)
    temperature = 0.5 + torch.rand(count, generator=rng, dtype=dtype)
    return hidden, other, weight, tokens, temperature


def full(hidden, weight, tokens, temperature):
    logp = log_softmax(hidden @ weight.t() / temperature[:, None], -1)
    return logp, logp.gather(1, tokens[:, None]).squeeze(1), -(logp.exp() * logp).sum(-1)


def exact(a, b, kind):
    kl = lambda x, y: (x.exp() * (x - y)).sum(-1)  # noqa: E731
    middle = torch.logsumexp(torch.stack([a, b]), 0) - torch.log(
        torch.tensor(2.0, dtype=a.dtype)
    )
    return {
        "forward": kl(a, b),
        "reverse": kl(b, a),
        "symmetric": 0.5 * (kl(a, b) + kl(b, a)),
        "js": 0.5 * (kl(a, middle) + kl(b, middle)),
    }[kind]


@pytest.fixture(params=["one tile", "ragged tiles"])
def tiles(request, monkeypatch):
    if request.param == "ragged tiles":
        monkeypatch.setattr(head, "CPU_TILE_BYTES", 29 * 8 * 5)


@pytest.mark.parametrize("leaf", [True, False])
@pytest.mark.parametrize("entropy", [True, False])
def test_scores_equal_full_logits(tiles, leaf, entropy):
    hidden, _, weight, tokens, temperature = draws()
    results = []
    for tiled in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        used = w if leaf else w * 1.0
        if tiled:
            logp, ent = head_scores(h, used, tokens, temperature, entropy)
        else:
            _, logp, ent = full(h, used, tokens, temperature)
        loss = (logp * torch.linspace(1, 2, 13, dtype=logp.dtype)).sum()
        if entropy:
            loss = loss + (ent * torch.linspace(-1, 3, 13, dtype=logp.dtype)).sum()
        loss.backward()
        results.append((logp.detach(), h.grad, w.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["forward", "reverse", "symmetric", "js"])
@pytest.mark.parametrize("grad_to", ["both", "this", "other"])
def test_divergence_equals_full_logits(tiles, kind, grad_to):
    hidden, other, weight, tokens, temperature = draws()
    second = draws(seed=7)[2]
    results = []
    for tiled in (True, False):
        h, o = (
            hidden.clone().requires_grad_(grad_to != "other"),
            other.clone().requires_grad_(grad_to != "this"),
        )
        w, v = (
            weight.clone().requires_grad_(grad_to != "other"),
            second.clone().requires_grad_(grad_to != "this"),
        )
        if tiled:
            la, ea, lb, eb, div = head_divergence(h, w, o, v, tokens, kind, temperature)
        else:
            a, la, ea = full(h, w, tokens, temperature)
            b, lb, eb = full(o, v, tokens, temperature)
            div = exact(a, b, kind)
        mixed = la + 2 * ea - lb + 0.3 * eb + torch.linspace(1, 4, 13, dtype=la.dtype) * div
        mixed.sum().backward()
        results.append([mixed.detach(), *(x.grad for x in (h, o, w, v))])
    for ours, theirs in zip(*results, strict=True):
        if theirs is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_shared_weight_collects_both_sides():
    hidden, other, weight, tokens, _ = draws()
    grads = []
    for tiled in (True, False):
        w = weight.clone().requires_grad_()
        if tiled:
            div = head_divergence(hidden, w, other, w, tokens, "forward")[-1]
        else:
            div = exact(
                log_softmax(hidden @ w.t(), -1), log_softmax(other @ w.t(), -1), "forward"
            )
        div.sum().backward()
        grads.append(w.grad)
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-11)


def test_identical_branches_have_no_divergence():
    hidden, _, weight, tokens, _ = draws(dtype=torch.float32)
    for kind in ("forward", "reverse", "symmetric", "js"):
        h = hidden.clone().requires_grad_()
        div = head_divergence(h, weight, hidden, weight, tokens, kind)[-1]
        div.sum().backward()
        assert div.abs().max() < 1e-6 and h.grad.abs().max() < 1e-5
        if kind != "js":
            assert torch.equal(div, torch.zeros_like(div))


def test_gradient_accumulates_over_calls():
    hidden, _, weight, tokens, _ = draws()
    w = weight.clone().requires_grad_()
    head_scores(hidden, w, tokens)[0].sum().backward()
    once = w.grad.clone()
    head_scores(hidden, w, tokens)[0].sum().backward()
    torch.testing.assert_close(w.grad, 2 * once)


def test_bf16_accumulates_in_fp32():
    hidden, _, weight, tokens, _ = draws(
        count=64, width=48, vocabulary=9000, dtype=torch.float32
    )
    low, low_weight = hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()
    logp, ent = head_scores(low, low_weight, tokens, entropy=True)
    wide = full(low.detach().float(), low_weight.detach().float(), tokens, torch.ones(64))
    assert logp.dtype == torch.float32
    torch.testing.assert_close(logp, wide[1], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ent, wide[2], rtol=1e-4, atol=1e-4)
    (logp.sum() + ent.sum()).backward()
    assert torch.isfinite(low.grad).all() and low_weight.grad.dtype == torch.float32


@pytest.mark.parametrize("leaf", [True, False], ids=["leaf", "through autograd"])
@pytest.mark.parametrize("score", ["log-prob", "entropy", "divergence"])
def test_bf16_head_gradient_over_two_thousand_tiles(monkeypatch, score, leaf):
    vocabulary, tiles = 96, 2000
    monkeypatch.setattr(head, "CPU_TILE_BYTES", vocabulary * 4)  # one token per tile
    hidden, other, weight, tokens, _ = draws(
        count=tiles, width=24, vocabulary=vocabulary, dtype=torch.float32
    )
    # Terms of one sign: every token is the same one, as format tokens of SFT and expert answers are.
    tokens = torch.full_like(tokens, 3)

    def gradients(dtype):
        values = [x.bfloat16().to(dtype).requires_grad_() for x in (hidden, weight, other)]
        h, w, o = values
        used = w if leaf else w * 1.0
        if score == "divergence":
            head_divergence(h, used, o, used, tokens, "forward")[-1].sum().backward()
        else:
            logp, entropy = head_scores(h, used, tokens, entropy=True)
            (logp if score == "log-prob" else entropy).sum().backward()
        return h.grad.float(), w.grad.float()

    for low, wide in zip(gradients(torch.bfloat16), gradients(torch.float32), strict=True):
        assert (low - wide).norm() < 3e-3 * wide.norm()


def test_nothing_of_size_tokens_times_vocabulary(monkeypatch):
    monkeypatch.setattr(head, "CPU_TILE_BYTES", 4 * 3000 * 8)
    hidden, other, weight, tokens, _ = draws(
        count=200, width=4, vocabulary=3000, dtype=torch.float32
    )
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.numel())
            return out

    with Watch():
        h, w = hidden.requires_grad_(), weight.requires_grad_()
        sum(x.sum() for x in head_divergence(h, w, other, w, tokens, "js")).backward()
    assert largest <= 3000 * 8


@pytest.mark.parametrize("padding", [None, 4])
def test_embedding_gradient(padding):
    weight = torch.randn(11, 3, dtype=torch.float64)
    ids = torch.tensor([1, 1, 4, 0])
    grads = []
    for mine in (True, False):
        w = weight.clone().requires_grad_()
        rows = (
            embed(w, ids, padding) if mine else torch.nn.functional.embedding(ids, w, padding)
        )
        (rows * torch.arange(12.0, dtype=torch.float64).view(4, 3)).sum().backward()
        grads.append(w.grad)
    assert torch.equal(*grads)


def real_ids(vocabulary, dtype=torch.float64):
    """Weights of a mean that leaves out a gap and the padded end."""
    weights = torch.ones(vocabulary, dtype=dtype)
    weights[3], weights[-4:] = 0, 0
    return weights / weights.sum()


@pytest.mark.parametrize("leaf", [True, False])
@pytest.mark.parametrize("read", ["mean", "logp mean", "entropy mean", "logp entropy mean"])
def test_the_mean_over_the_vocabulary_equals_full_logits(tiles, leaf, read):
    hidden, _, weight, tokens, temperature = draws()
    results = []
    for tiled in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        used = w if leaf else w * 1.0
        if tiled:
            spread = Spread(real_ids(29), 3)
            found = head_spread(h, used, tokens, temperature, True, spread)
            logp, ent, mean = found.logp, found.entropy, found.mean
        else:
            every, logp, ent = full(h, used, tokens, temperature)
            mean = every @ real_ids(29)
        numbers = {"logp": logp, "entropy": ent, "mean": mean}
        ramp = torch.linspace(-1, 3, 13, dtype=logp.dtype)
        sum((ramp * numbers[name]).sum() for name in read.split()).backward()
        results.append((mean.detach(), h.grad, w.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("leaf", [True, False])
@pytest.mark.parametrize(
    "read", ["picked", "logp picked", "entropy picked", "mean picked logp"]
)
def test_picked_tokens_equal_full_logits(tiles, leaf, read):
    hidden, _, weight, tokens, temperature = draws()
    rng = torch.Generator().manual_seed(4)
    # A token may be picked twice.
    wanted = torch.randint(0, 29, (13, 4), generator=rng)
    results = []
    for tiled in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        used = w if leaf else w * 1.0
        if tiled:
            spread = Spread(real_ids(29), 3, wanted)
            found = head_spread(h, used, tokens, temperature, True, spread)
            logp, ent, mean, picked = found.logp, found.entropy, found.mean, found.picked
        else:
            every, logp, ent = full(h, used, tokens, temperature)
            mean, picked = every @ real_ids(29), every.gather(1, wanted)
        slopes = torch.linspace(-1, 2, 4, dtype=logp.dtype)
        numbers = {"logp": logp, "entropy": ent, "mean": mean, "picked": picked @ slopes}
        ramp = torch.linspace(-1, 3, 13, dtype=logp.dtype)
        sum((ramp * numbers[name]).sum() for name in read.split()).backward()
        results.append((picked.detach(), h.grad, w.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("top", [1, 4, 29])
def test_the_most_likely_tokens_are_those_of_full_logits_and_pass_no_gradient(tiles, top):
    hidden, _, weight, tokens, temperature = draws()
    h = hidden.clone().requires_grad_()
    found = head_spread(h, weight, tokens, temperature, False, Spread(top=top))
    expected = full(hidden, weight, tokens, temperature)[0].topk(top)
    torch.testing.assert_close(found.top_logp, expected.values, rtol=1e-10, atol=1e-12)
    assert torch.equal(found.top_ids, expected.indices)
    assert found.logp.requires_grad and not found.top_logp.requires_grad
    assert found.mean is None and found.entropy is None


def test_what_else_is_asked_changes_no_bit_of_scores_and_gradients(tiles):
    hidden, _, weight, tokens, temperature = draws(dtype=torch.float32)
    results = []
    for spread in (Spread(), Spread(real_ids(29), 2)):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        found = head_spread(h, w, tokens, temperature, True, spread)
        (found.logp.sum() + 0.1 * found.entropy.sum()).backward()
        results.append((found.logp.detach(), found.entropy.detach(), h.grad, w.grad))
    assert all(map(torch.equal, *results))


def test_more_likely_tokens_than_there_are_is_refused():
    hidden, _, weight, tokens, _ = draws()
    with pytest.raises(ValueError, match=r"30 most likely.*has 29"):
        head_spread(hidden, weight, tokens, 1.0, False, Spread(top=30))
