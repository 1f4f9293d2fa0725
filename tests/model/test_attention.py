"""Shared-prefix attention against the dense mask, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.model.attention import (
    _disagreement,
    _Packed,
    _PackedRagged,
    packed,
    verified_kernel,
    verified_ragged_kernel,
)
from mmrl.model.decoding import Decoding, decode
from mmrl.model.kernels import PLAIN
from mmrl.model.ragged import LOOP, TORCH_FLASH
from mmrl.model.row_layout import example_layout

torch.set_num_threads(1)


def dense_mask(layout):
    mask = torch.zeros(layout.length, layout.length, dtype=torch.bool)
    for (start, end), answers in zip(layout.prompts, layout.answers, strict=True):
        mask[start:end, start:end] = torch.ones(end - start, end - start).tril().bool()
        for a, b in answers:
            mask[a:b, start:end] = True
            mask[a:b, a:b] = torch.ones(b - a, b - a).tril().bool()
    return mask


def dense(q, k, v, layout, scale):
    fold = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(fold, 1).transpose(-1, -2) * scale
    weights = scores.masked_fill(~dense_mask(layout), float("-inf")).softmax(-1)
    return (weights @ v.repeat_interleave(fold, 1)).transpose(1, 2)


def draws(layout, heads=4, shared=2, width=16, dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    shapes = [
        (1, heads, layout.length, width),
        (1, shared, layout.length, width),
        (1, shared, layout.length, width),
    ]
    return [torch.randn(s, generator=rng, dtype=dtype).requires_grad_() for s in shapes]


lengths = st.integers(0, 6)
groups = st.lists(
    st.tuples(st.integers(1, 9), st.lists(lengths, max_size=4)), min_size=1, max_size=4
)


@settings(max_examples=60, deadline=None)
@given(groups, st.sampled_from(["flash", "plain", "ragged"]), st.integers(0, 99))
def test_packed_equals_dense(shape, which, seed):
    layout = example_layout([p for p, _ in shape], [a for _, a in shape])
    q, k, v = draws(layout, seed=seed)
    grad = torch.randn(1, layout.length, 4, 16, dtype=torch.float64)
    if which == "ragged":
        ours = _PackedRagged.apply(q, k, v, layout, 0.3, LOOP)
    else:
        kernel = PLAIN if which == "plain" else verified_kernel("cpu", torch.float64)
        ours = _Packed.apply(q, k, v, layout, 0.3, kernel)
    mine = torch.autograd.grad(ours, (q, k, v), grad)
    expected = dense(q, k, v, layout, 0.3)
    theirs = torch.autograd.grad(expected, (q, k, v), grad)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "kernel, says",
    [
        (LOOP, None),
        ((LOOP[0], lambda *args: [2 * x for x in LOOP[1](*args)]), "dq differs"),
        (
            (lambda *args: (LOOP[0](*args)[0] * torch.nan, *LOOP[0](*args)[1:]), LOOP[1]),
            "out differs",
        ),
        (TORCH_FLASH, ""),  # there is no CUDA here: any message, but no exception
    ],
    ids=["right", "wrong backward", "not a number", "cannot run"],
)
def test_a_kernel_must_agree_with_the_plain_form_before_it_is_used(kernel, says):
    problem = _disagreement(_PackedRagged.apply, kernel, "cpu", torch.float32, 80, (4, 2))
    assert problem is None if says is None else problem is not None and says in problem


@pytest.mark.gpu
@pytest.mark.parametrize("width, heads", [(128, (28, 4)), (128, (16, 2)), (128, (32, 8))])
def test_a_flash_kernel_is_used_at_released_head_sizes(width, heads):
    assert verified_ragged_kernel("cuda", torch.bfloat16, width, heads) is not None
    assert verified_kernel("cuda", torch.bfloat16, width, heads) is not PLAIN


def test_large_scores_on_padded_queries_give_no_nan():
    layout = example_layout((5,), ((1, 7, 3),))
    q, k, v = draws(layout, dtype=torch.float32)
    out = packed(q * 60, k * 60, v, layout, 1.0)
    out.sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))


def test_answers_do_not_see_each_other_or_other_groups():
    layout = example_layout((4, 4), ((3, 3), (2,)))
    q, k, v = draws(layout)
    base = packed(q, k, v, layout, 0.25)
    start, end = layout.answers[0][1]
    changed = v.detach().clone()
    changed[:, :, start:end] += 100.0
    other = packed(q, k, changed, layout, 0.25)
    same = torch.ones(layout.length, dtype=torch.bool)
    same[start:end] = False
    assert torch.equal(base[:, same], other[:, same])
    assert not torch.allclose(base[:, ~same], other[:, ~same])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decode_step_equals_packed(dtype):
    prompts, answers, width = (6, 3), (2, 3), 8
    steps = 4
    layout = example_layout(prompts, [[steps] * n for n in answers])
    q, k, v = (x.detach() for x in draws(layout, width=width, dtype=dtype))
    full = packed(q, k, v, layout, 0.4)
    longest = max(prompts)
    keys = torch.zeros(2, 2, longest, width, dtype=dtype)
    values = torch.zeros_like(keys)
    mask = torch.zeros(2, longest, dtype=torch.bool)
    for g, (a, b) in enumerate(layout.prompts):
        keys[g, :, : b - a], values[g, :, : b - a], mask[g, : b - a] = (
            k[0, :, a:b],
            v[0, :, a:b],
            True,
        )
    segments = [s for group in layout.answers for s in group]
    group = torch.tensor([0] * answers[0] + [1] * answers[1])
    room = torch.zeros(len(segments), 2, steps, width, dtype=dtype)
    store = Decoding([keys], [values], mask, [room], [room.clone()], group)
    alive = list(range(len(segments)))
    for t in range(steps):
        at = torch.tensor([segments[r][0] + t for r in alive])
        pick = lambda x: x[0][:, at].transpose(0, 1)[:, :, None]  # noqa: B023, E731
        out = decode(pick(q), pick(k), pick(v), store, 0, 0.4)
        store.filled += 1
        torch.testing.assert_close(out[:, 0], full[0, at], rtol=1e-5, atol=1e-5)
        if t == 1:  # drop one answer of the first group and all but one of the second
            rows = torch.tensor([1, 3])
            alive = [alive[r] for r in rows.tolist()]
            store.keep(rows)
