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
from mmrl.model.decoding import Decoding, PromptBlocks, Widths, decode
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


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("block", [6, 4, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decode_step_equals_packed(dtype, block, fixed):
    """Prompts in blocks of any size, rows that leave, are taken over, or begin later than others."""
    prompts, width = (6, 3), 8
    layout = example_layout(prompts, [[4, 4], [4, 4, 4]])
    q, k, v = (x.detach() for x in draws(layout, width=width, dtype=dtype))
    full = packed(q, k, v, layout, 0.4)
    blocks = PromptBlocks(block, room=11)
    blocks.add((0, 1), layout.prompts, [(k, v)])
    widths = Widths(prompts=2, group=4, parts=-(-6 // block)) if fixed else None
    store = Decoding(blocks, widths)
    starts = [start for group in layout.answers for start, _ in group]
    prompt_of, begins = [0, 0, 1, 1, 1], {}
    # Step -> (rows that go on, None for new ones; room; the answer in each row).
    changes = {
        0: ([None, None, None], 2, [0, 2, 3]),
        1: ([0, 1, 2, None], 2, [0, 2, 3, 1]),
        2: ([0, 1, 2, 3], 4, [4, 2, 3, 1]),  # answer 4 takes the row of answer 0
        4: ([0, 3], 4, [4, 1]),
    }
    for t in range(5):
        if t in changes:
            rows, room, sitting = changes[t]
            store.arrange(rows, room)
            if t == 4 and not fixed:
                blocks.shrink()
            store.seat([prompt_of[answer] for answer in sitting])
            begins |= {answer: t for answer in sitting if answer not in begins}
        count = torch.tensor([t - begins[answer] for answer in sitting])
        at = torch.tensor([starts[answer] for answer in sitting]) + count
        one = [x[0][:, at].transpose(0, 1)[:, :, None] for x in (q, k, v)]
        store.written = count
        alike = len(set(count.tolist())) == 1
        store.begin(int(count.max()), int(count[0]) if alike else None)
        out = decode(*one, store, 0, 0.4)
        torch.testing.assert_close(out[:, 0], full[0, at], rtol=1e-5, atol=1e-5)


def test_blocks_of_prompts_that_left_are_taken_by_others():
    layout = example_layout((6, 3, 4), ((), (), ()))
    _, k, v = (x.detach() for x in draws(layout, width=8))
    blocks = PromptBlocks(4, room=3)
    blocks.add((0, 1), layout.prompts[:2], [(k, v)])
    assert blocks.free == 0 and blocks.blocks == {0: [0, 1], 1: [2]}
    blocks.drop(0)
    kept = [(k, v)]
    blocks.add((2,), layout.prompts[2:], kept)
    assert blocks.blocks == {1: [2], 2: [0]} and blocks.free == 1 and not kept
    torch.testing.assert_close(blocks.keys[0][0], k[0][:, 9:13])
    blocks.shrink()
    assert blocks.blocks == {1: [1], 2: [0]} and blocks.room == 2 and blocks.single
    torch.testing.assert_close(blocks.values[0][1, :, :3], v[0][:, 6:9])
    assert blocks.unseen()[:, 0, 0].tolist() == [[False] * 4, [False] * 3 + [True]]
