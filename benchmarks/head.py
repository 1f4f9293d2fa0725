"""The tiled head against its matrix products alone.

    python benchmarks/head.py [--full]

Forward and backward of log-probs and entropies, weight and hidden states trained, take four products: logits, logits
once more in the backward (none are kept), and two that take their slopes. The products run in the same tiles of tokens
as the head; CPU seconds of one thread, the sides in turn, the least of 5: work beside it makes caches
slower for whoever runs, never faster.

The work on a logit beside its products does not depend on how many there are, and that of the products on the width
alone: so the width is a real one, 1,024, while a quarter of the vocabulary tells the same in a minute or two. `--full`
takes 151,936 entries.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tiny_runs import cpu_seconds, interleaved, result, say, versions
from torch import Tensor

VOCABULARY, WIDTH, TOKENS, ROUNDS = 151_936, 1024, 440, 5


def main() -> None:
    """Measure and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="all entries")
    if parser.parse_args().full:
        measure(VOCABULARY)
    else:
        measure(VOCABULARY // 4)


def measure(vocabulary: int) -> None:
    """Time both sides with so many entries."""
    from mmrl.model.logprobs import head_scores, tile_rows

    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=rng).requires_grad_()
    weight = (0.02 * torch.randn(vocabulary, WIDTH, generator=rng)).requires_grad_()
    tokens = torch.randint(vocabulary, (TOKENS,), generator=rng)
    step = tile_rows(vocabulary, 4, torch.device("cpu"))
    slopes = torch.randn(step, vocabulary, generator=rng)
    gradient = torch.zeros(vocabulary, WIDTH)

    logits = torch.empty(step, vocabulary)
    pulled = torch.empty(step, WIDTH)

    @torch.no_grad()
    def products() -> None:
        # Into memory that is there already: a product alone, and nothing of the allocator.
        for piece in hidden.split(step):
            rows = len(piece)
            for _ in ("forward", "backward"):
                torch.mm(piece, weight.t(), out=logits[:rows])
            torch.mm(slopes[:rows], weight, out=pulled[:rows])
            gradient.addmm_(slopes[:rows].t(), piece)

    def head(entropy: bool) -> Callable[[], None]:
        def run() -> None:
            logp, spread = head_scores(hidden, weight, tokens, 1.0, entropy)
            total: Tensor = logp.sum() if spread is None else logp.sum() + spread.sum()
            total.backward()

        return run

    runs = {"products": products, "log-probs": head(False), "with entropies": head(True)}
    sides = {name: partial(cpu_seconds, run) for name, run in runs.items()}
    seconds = interleaved(sides, ROUNDS, warmup=1)
    found = {name: min(values) for name, values in seconds.items()}
    for name, value in found.items():
        say(f"{name}: {value:.2f} s, {value / found['products']:.3f} of the products")
    say(f"{versions('torch')}; {vocabulary:,} entries, tiles of {step} tokens")
    alone = found.pop("products")
    worst = max(found.values()) / alone
    result("head", worst, 1.3, "worst time / its four products")


if __name__ == "__main__":
    main()
