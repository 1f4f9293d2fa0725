"""Part 1 on a GPU: kernels in bf16 against the plain form at released head sizes, forward and backward.

    python benchmarks/gpu/kernels.py [--small]

For each released head layout: which kernel the packed row takes, the largest relative difference of output and the
three gradients from the plain form in fp32, and the time of forward and backward as a share of the plain form's. The
same for the tower's windows. For the head: the relative error of its weight's gradient over many tiles, and its time
over that of the two products it consists of. `value` is the worst relative difference; the goal is 0.02.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from shapes import wait
from tiny_runs import result, say
from torch import Tensor

from mmrl.model.attention import _Packed, packed, verified_ragged_kernel
from mmrl.model.kernels import PLAIN
from mmrl.model.logprobs import head_scores
from mmrl.model.row_layout import Layout, example_layout
from mmrl.model.window_attention import Windows, _by_length, window_attention

HEADS = {"3B": (16, 2, 128), "7B": (28, 4, 128), "Qwen3-4B": (32, 8, 128)}
TOWERS = {"Qwen2.5-VL": (16, 80), "Qwen3-VL": (16, 64)}


def timed(device: torch.device, run: Callable[[], object]) -> float:
    """Median seconds of five calls."""
    run()
    found = []
    for _ in range(5):
        wait(device)
        began = time.perf_counter()
        run()
        wait(device)
        found.append(time.perf_counter() - began)
    return sorted(found)[2]


def far(mine: Tensor, right: Tensor) -> float:
    """Relative norm of the difference."""
    return float((mine.float() - right.float()).norm() / right.float().norm())


def with_gradients(
    run: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor
) -> list[Tensor]:
    """The output and the gradients of all inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = run(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def packed_row(
    device: torch.device, dtype: torch.dtype, heads: tuple[int, int, int], layout: Layout
) -> dict[str, float]:
    """The packed row's attention against the plain form in fp32."""
    count, shared, width = heads
    rng = torch.Generator().manual_seed(0)
    sizes = [(1, n, layout.length, width) for n in (count, shared, shared)]
    q, k, v = (torch.randn(s, generator=rng).to(device, dtype) for s in sizes)
    grad = torch.randn((1, layout.length, count, width), generator=rng).to(device)
    scale = width**-0.5

    def ours(q, k, v):
        return packed(q, k, v, layout, scale)

    def plain(q, k, v):
        return _Packed.apply(q, k, v, layout, scale, PLAIN)

    right = with_gradients(plain, (q.float(), k.float(), v.float()), grad)
    mine = with_gradients(ours, (q, k, v), grad)
    worst = max(far(a, b) for a, b in zip(mine, right, strict=True))
    fast = timed(device, lambda: with_gradients(ours, (q, k, v), grad))
    slow = timed(device, lambda: with_gradients(plain, (q, k, v), grad))
    return {"error": worst, "ms": 1e3 * fast, "share of plain": fast / slow}


def windows(
    device: torch.device, dtype: torch.dtype, tower: tuple[int, int], count: int, length: int
) -> dict[str, float]:
    """The tower's windows against one exact call in fp32."""
    heads, width = tower
    starts = torch.arange(0, count * length + 1, length, device=device, dtype=torch.int32)
    rng = torch.Generator().manual_seed(0)
    shape = (1, heads, count * length, width)
    inputs = tuple(torch.randn(shape, generator=rng).to(device, dtype) for _ in range(3))
    grad = torch.randn((1, count * length, heads, width), generator=rng).to(device)
    module = torch.nn.Identity()
    places = Windows.of(starts.tolist(), device)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return window_attention(
            module, q, k, v, None, cu_seq_lens_q=starts, max_length_q=length
        )[0]

    def exact(q, k, v):
        return _by_length(q, k, v, places, width**-0.5)

    wide = tuple(x.float() for x in inputs)
    right, mine = with_gradients(exact, wide, grad), with_gradients(ours, inputs, grad)
    worst = max(far(a, b) for a, b in zip(mine, right, strict=True))
    return {
        "error": worst,
        "ms": 1e3 * timed(device, lambda: with_gradients(ours, inputs, grad)),
    }


def head(
    device: torch.device, dtype: torch.dtype, tokens: int, vocabulary: int, width: int
) -> dict[str, float]:
    """The tiled head: error of the gradients, and time over that of the two products."""
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=rng).to(device, dtype)
    weight = (0.02 * torch.randn(vocabulary, width, generator=rng)).to(device, dtype)
    ids = torch.full((tokens,), 3, device=device)

    def grads(h: Tensor, w: Tensor) -> list[Tensor]:
        h, w = h.detach().requires_grad_(), w.detach().requires_grad_()
        head_scores(h, w, ids)[0].sum().backward()
        assert h.grad is not None and w.grad is not None
        return [h.grad, w.grad]

    mine = grads(hidden, weight)
    right = grads(hidden.float(), weight.float())
    worst = max(far(a, b) for a, b in zip(mine, right, strict=True))
    del right
    piece = hidden[: min(tokens, 2048)]
    slope = torch.randn(len(piece), vocabulary, device=device, dtype=dtype)

    def two_products() -> None:
        piece @ weight.t()  # forward
        piece @ weight.t()  # and once more in the backward, which keeps no logits
        slope @ weight
        slope.t() @ piece

    bound = timed(device, two_products) * tokens / len(piece)
    ours = timed(device, lambda: grads(hidden, weight))
    return {"error": worst, "ms": 1e3 * ours, "over its products": ours / bound}


def main() -> None:
    """Measure and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    small = parser.parse_args().small
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16
    prompts, answers = ((40, 30), [(9, 5), (7,)]) if small else ((1100, 2100), [[512] * 8] * 2)
    layout = example_layout(prompts, answers, device)
    table: dict[str, dict[str, float]] = {}
    for name, heads in HEADS.items():
        kernel = verified_ragged_kernel(device.type, dtype, heads[2], heads[:2])
        used = "padded batches" if kernel is None else kernel[0].__name__
        table[f"packed row, {name} ({used})"] = packed_row(device, dtype, heads, layout)
    for name, tower in TOWERS.items():
        count, length = (4, 16) if small else (70, 64)
        table[f"windows, {name}"] = windows(device, dtype, tower, count, length)
    sizes = (64, 512, 32) if small else (16_384, 151_936, 2048)
    table["head"] = head(device, dtype, *sizes)
    for name, row in table.items():
        say(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in row.items()))
    worst = max(row["error"] for row in table.values())
    result("gpu_kernels", worst, 0.02, "relative difference from fp32", table=table)


if __name__ == "__main__":
    main()
