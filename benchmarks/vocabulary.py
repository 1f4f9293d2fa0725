"""Peak memory with a vocabulary of 151,936 against the same run with 8,192.

    python benchmarks/vocabulary.py

Allowed: the small run's peak, the difference in weights, their gradients and AdamW's two states, and one tile of
logits. A tensor of tokens x vocabulary (32 answers x 64 tokens: 1.2 GiB in fp32) would break the bound at once. Each
size runs in a process of its own: 4 prompts with 64 visual tokens, 8 answers of 64 tokens, whole trainer steps.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_runs import Cell, model_folder, our_worker, result, say, versions, write_rows

SMALL, LARGE, HIDDEN, PROMPTS = 8192, 151_936, 256, 4


def main() -> None:
    """Measure and print; the last line is JSON."""
    from mmrl.model.logprobs import CPU_TILE_BYTES

    peaks: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        rows = str(write_rows(Path(scratch), 64, 16))
        for vocabulary in (SMALL, LARGE):
            cell = Cell(str(model_folder(vocabulary=vocabulary)), rows, 64)
            worker = our_worker(replace(cell, prompts=PROMPTS))
            peaks[vocabulary] = max(worker.ask("step")["peak"] for _ in range(3))
            worker.close()
            say(f"vocabulary {vocabulary}: peak {peaks[vocabulary]:.0f} MiB")
    states = 4  # weights, gradients, two moments; the embedding is tied to the head
    allowed = peaks[SMALL] + ((LARGE - SMALL) * HIDDEN * 4 * states + CPU_TILE_BYTES) / 2**20
    say(f"{versions('torch', 'transformers')}; expected {allowed:.0f} MiB")
    result("vocabulary", peaks[LARGE] / allowed, 1.10, "peak / expected peak")


if __name__ == "__main__":
    main()
