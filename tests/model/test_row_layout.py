"""A row of trees: what sees what, against the dense mask, for every kernel; and no waiting for the device."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from mmrl.model import kernels
from mmrl.model.attention import _Packed, _PackedRagged, packed
from mmrl.model.kernels import CPU_FLASH, PLAIN
from mmrl.model.ragged import LOOP
from mmrl.model.row_layout import ALONE, ROOT, Layout, Past

torch.set_num_threads(1)
HEADS, SHARED, WIDTH = 4, 2, 16


@st.composite
def forests(draw, most=9, longest=7):
    """Lengths and parents of a random forest in depth-first order, empty segments included."""
    count = draw(st.integers(1, most))
    parents, path = [], []
    for node in range(count):
        # Whatever is open may get the next child; 0 means a new root.
        depth = draw(st.integers(0, len(path)))
        path = path[:depth]
        parents.append(path[-1] if path else ROOT)
        path.append(node)
    lengths = draw(st.lists(st.integers(0, longest), min_size=count, max_size=count))
    return tuple(lengths), tuple(parents)


def dense_mask(layout):
    """Who looks at whom [S, S], from the definition alone."""
    seen = torch.zeros(layout.length, layout.length, dtype=torch.bool)
    for node, (start, end) in enumerate(layout.spans):
        seen[start:end, start:end] = torch.ones(end - start, end - start).tril().bool()
        above = layout.parents[node]
        while above != ROOT:
            seen[start:end, slice(*layout.spans[above])] = True
            above = layout.parents[above]
    return seen


def dense(q, k, v, mask, scale):
    fold = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(fold, 1).transpose(-1, -2) * scale
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return (weights @ v.repeat_interleave(fold, 1)).transpose(1, 2)


def draws(length, dtype=torch.float64, seed=0, heads=(HEADS, SHARED, SHARED)):
    rng = torch.Generator().manual_seed(seed)
    shapes = [(1, n, length, WIDTH) for n in heads]
    return [torch.randn(s, generator=rng, dtype=dtype).requires_grad_() for s in shapes]


def with_kernel(which, monkeypatch):
    """The attention of one form, as a function of (q, k, v, layout, scale, *pasts)."""
    if which == "tiles":  # of a few scores each
        monkeypatch.setattr(kernels, "tile_bytes", lambda device: 8 * HEADS * 7)
    form, kernel = {
        "flash": (_Packed, CPU_FLASH),
        "plain": (_Packed, PLAIN),
        "tiles": (_Packed, PLAIN),
        "ragged": (_PackedRagged, LOOP),
    }[which]
    return lambda q, k, v, layout, scale, *pasts: form.apply(
        q, k, v, layout, scale, kernel, *pasts
    )


def assert_same(ours, theirs, inputs, seed=0):
    rng = torch.Generator().manual_seed(seed)
    grad = torch.randn(theirs.shape, generator=rng, dtype=theirs.dtype)
    mine = torch.autograd.grad(ours, inputs, grad, retain_graph=True)
    right = torch.autograd.grad(theirs, inputs, grad)
    for found, expected in zip((ours, *mine), (theirs, *right), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("which", ["flash", "plain", "tiles", "ragged"])
def test_every_token_sees_its_ancestors_and_itself(which, monkeypatch):
    run = with_kernel(which, monkeypatch)

    @settings(max_examples=40, deadline=None)
    @given(forests(), st.integers(0, 99))
    def check(forest, seed):
        layout = Layout(*forest)
        if layout.length:
            inputs = draws(layout.length, seed=seed)
            theirs = dense(*inputs, dense_mask(layout), 0.3)
            assert_same(run(*inputs, layout, 0.3), theirs, inputs)

    check()


@pytest.mark.parametrize("which", ["flash", "plain", "tiles", "ragged"])
def test_a_slice_may_look_at_prompts_outside_of_its_row(which, monkeypatch):
    """The same numbers as with those prompts in the row; gradients reach their keys and values."""
    run = with_kernel(which, monkeypatch)
    whole = Layout.flat((5, 3), ((4, 2, 0), (3, 6)))
    q, k, v = draws(whole.length)
    outside = [slice(0, 5), slice(11, 14)]
    inside = torch.cat([torch.arange(5, 11), torch.arange(14, 23)])
    pairs = [(k[:, :, cut], v[:, :, cut]) for cut in outside]
    pasts = [x for pair in pairs for x in pair]
    layers = [{0: pair} for pair in pairs]
    spans = ((0, 6), (6, 15))
    row = Layout((4, 2, 0, 3, 6), (ROOT,) * 5, pasts=tuple(map(Past, spans, layers)))
    mine = [x[:, :, inside] for x in (q, k, v)]
    # The layout finds them itself by the number of the layer.
    for found in (run(*mine, row, 0.3, *pasts), packed(*mine, row, 0.3, layer=0)):
        theirs = dense(q, k, v, dense_mask(whole), 0.3)[:, inside]
        assert_same(found, theirs, (q, k, v))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_forest_on_the_gpu(dtype):
    """By the kernels that are chosen there, against double precision on the CPU."""
    lengths, parents = (300, 40, 7, 90, 1, 513, 20), (ROOT, 0, 1, 1, 0, ROOT, 5)
    layout = Layout(lengths, parents, torch.device("cuda"))
    inputs = [x.detach().to(dtype) for x in draws(layout.length)]
    there = [x.cuda().requires_grad_() for x in inputs]
    here = [x.double().requires_grad_() for x in inputs]
    ours, right = packed(*there, layout, 0.3), dense(*here, dense_mask(layout), 0.3)
    ours.float().sum().backward()
    right.sum().backward()
    found, expected = [ours, *(x.grad for x in there)], [right, *(x.grad for x in here)]
    limit = 0.02 if dtype == torch.bfloat16 else 1e-4
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.cpu().double() - theirs).norm() <= limit * theirs.norm()


@pytest.mark.parametrize(
    "parents", [(ROOT, 0, 0, 1), (0,), (ROOT, ROOT, 0), (ROOT, 2, 0), (ROOT, 0, 3, 2)]
)
def test_a_row_that_is_not_depth_first_is_refused(parents):
    with pytest.raises(ValueError, match="depth first"):
        Layout((1,) * len(parents), parents)


def test_a_group_is_the_tree_of_depth_one():
    layout = Layout.flat((3, 2), ((4, 0, 1), ()))
    assert layout.prompts == ((0, 3), (8, 10))
    assert layout.answers == (((3, 7), (7, 7), (7, 8)), ())
    assert layout.parents == (ROOT, 0, 0, 0, ROOT) and layout.length == 10


def test_two_lengths_on_one_path_never_share_a_call():
    """Else a token would look twice in one call, and one of its two results would be lost."""
    layout = Layout((2, 2, 2), (ROOT, 0, 1))
    looking = [bucket for bucket, _ in layout.crossing]
    assert len(looking) == 2


class Waits(TorchDispatchMode):
    """Counts operators that make the host wait for the device, or keep it from running ahead."""

    NAMES = ("nonzero", "masked_select", "_local_scalar_dense", "equal", "unique")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        masked = any(x is not None and x.dtype == torch.bool for x in indices)
        if masked or name.startswith(self.NAMES):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("which", ["flash", "plain", "tiles", "ragged"])
def test_attention_never_waits_for_the_device(which, monkeypatch):
    if which == "ragged":  # the loop is for comparison only: it reads its bounds
        kernel = (
            lambda q, k, v, *rest: (q.clone(), q.new_zeros(q.shape[1], len(q)), ()),
            lambda grad, q, k, v, *rest: (grad.clone(), k.clone(), v.clone()),
        )
        run = lambda q, k, v, layout, scale: _PackedRagged.apply(q, k, v, layout, scale, kernel)  # noqa: E731
    else:
        run = with_kernel(which, monkeypatch)
    layout = Layout.flat((9, 9, 4), ((3, 5, 4), (6, 2), (7,)))
    inputs = draws(layout.length)
    _ = layout.causal, layout.ragged  # worked out on the host, once per row
    with Waits() as waits:
        run(*inputs, layout, 0.3).sum().backward()
    assert not waits.found


def test_the_indices_of_a_row_travel_once(monkeypatch):
    """However many segments and levels: one transfer for its dense parts, one for its ragged ones."""
    from mmrl.model import row_layout

    sent = []
    real = row_layout.moved
    monkeypatch.setattr(
        row_layout, "moved", lambda tensors, device: sent.append(1) or real(tensors, device)
    )
    layout = Layout.flat((9, 5, 700), ((3, 5, 4), (6, 2), (7, 600, 8)))
    for _ in range(3):  # layers
        _ = layout.causal, layout.crossing, layout.ragged
    assert len(sent) == 2


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("limit", [2**10, 2**14])
def test_the_plain_form_never_holds_more_scores_than_a_tile(monkeypatch, causal, limit):
    asked, seen = (300, 300) if causal else (40, 900)
    queries, keys, values = draws(asked, torch.float32, heads=(4, 2, 2))
    if not causal:
        keys, values = draws(seen, torch.float32, heads=(2, 2))
    largest = 0
    real = kernels._tile_scores

    def watched(*args):
        nonlocal largest
        scores = real(*args)
        largest = max(largest, scores.numel() * scores.element_size())
        return scores

    monkeypatch.setattr(kernels, "tile_bytes", lambda device: limit)
    monkeypatch.setattr(kernels, "_tile_scores", watched)
    out, lse, _ = PLAIN[0](queries, keys, values, causal, 0.2)
    grad = torch.ones_like(out)
    mine = PLAIN[1](grad, queries, keys, values, out, lse, causal, 0.2, ())
    assert 0 < largest <= limit
    flash_out, flash_lse, _ = CPU_FLASH[0](queries, keys, values, causal, 0.2)
    right = CPU_FLASH[1](grad, queries, keys, values, flash_out, flash_lse, causal, 0.2, ())
    for found, expected in zip((out, lse, *mine), (flash_out, flash_lse, *right), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [CPU_FLASH, PLAIN], ids=["flash", "plain"])
def test_keys_are_never_repeated_for_the_heads_that_read_them(kernel):
    """No tensor that is made is as large as keys with one copy per query head."""
    heads, shared, length = 8, 1, 64
    k, v = (x.detach() for x in draws(length, torch.float32, heads=(shared, shared)))
    # Few queries, so that only copies of keys would be large.
    (q,) = (x.detach() for x in draws(2, torch.float32, heads=(heads,)))

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple) else (out,):
                if isinstance(x, torch.Tensor):
                    self.size = max(self.size, x.untyped_storage().nbytes())
            return out

    with Largest() as largest:
        kernel[0](q, k, v, False, 0.2)
    assert largest.size < heads * length * WIDTH * 4


def test_long_keys_fill_a_call_by_themselves():
    layout = Layout.flat((ALONE, ALONE, 3, 3), ((2, 2), (2, 2), (2, 2), (2, 2)))
    assert len(layout.crossing) == 3
