"""The tiled head with 151,936 entries against its matrix products alone.

    python benchmarks/head.py

Forward and backward of log-probs and entropies of 440 tokens at width 1,024, weight and hidden states trained, take
four products: logits, logits once more in the backward (none are kept), and two that take their slopes. The products
run in the same tiles of tokens as the head; CPU seconds of one thread, both sides in turn, medians of 3.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tiny_runs import cpu_seconds, interleaved, median, result, say, versions
from torch import Tensor

VOCABULARY, WIDTH, TOKENS, ROUNDS = 151_936, 1024, 440, 3


def main() -> None:
    """Measure and print; the last line is JSON."""
    from mmrl.model.logprobs import head_scores, tile_rows

    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=rng).requires_grad_()
    weight = (0.02 * torch.randn(VOCABULARY, WIDTH, generator=rng)).requires_grad_()
    tokens = torch.randint(VOCABULARY, (TOKENS,), generator=rng)
    step = tile_rows(VOCABULARY, 4, torch.device("cpu"))
    slopes = torch.randn(step, VOCABULARY, generator=rng)
    gradient = torch.zeros(VOCABULARY, WIDTH)

    @torch.no_grad()
    def products() -> None:
        for piece in hidden.split(step):
            slope = slopes[: len(piece)]
            _ = piece @ weight.t(), piece @ weight.t(), slope @ weight
            gradient.addmm_(slope.t(), piece)

    def head(entropy: bool) -> Callable[[], None]:
        def run() -> None:
            logp, spread = head_scores(hidden, weight, tokens, 1.0, entropy)
            total: Tensor = logp.sum() if spread is None else logp.sum() + spread.sum()
            total.backward()

        return run

    runs = {"products": products, "log-probs": head(False), "with entropies": head(True)}
    sides = {name: partial(cpu_seconds, run) for name, run in runs.items()}
    seconds = interleaved(sides, ROUNDS, warmup=0)
    found = {name: median(values) for name, values in seconds.items()}
    for name, value in found.items():
        say(f"{name}: {value:.2f} s, {value / found['products']:.3f} of the products")
    say(f"{versions('torch')}; tiles of {step} tokens")
    worst = max(found.values()) / found["products"]
    result("head", worst, 1.3, "worst time / its four products")


if __name__ == "__main__":
    main()
