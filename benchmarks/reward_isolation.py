"""What isolation costs: milliseconds per answer at batch 256, PAPO's two reward parts, answers of 512 tokens.

    python benchmarks/reward_isolation.py

Overhead = (wall time with isolated workers - wall time of the same functions in this process) / 256, the median of
seven rounds that alternate, with warm workers. The start of the workers, once per run, is printed beside it.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmrl.rewards.pay import Rewards, boxed_accuracy, think_format
from mmrl.types import Media, Prompt, Rollout

BATCH, GROUP, TOKENS, ROUNDS, GOAL = 256, 8, 512, 7, 5.0


def rollouts() -> list[Rollout]:
    """32 groups of 8 answers to questions about a picture of 448 x 448."""
    image = Media(torch.zeros(1, 3, 448, 448, dtype=torch.uint8))
    made = []
    for index in range(BATCH):
        messages = [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": "How many? " * 20}],
            }
        ]
        prompt = Prompt(f"p{index // GROUP}", messages, (image,), answer=str(index % 5))
        text = (
            "<think>"
            + "I look at the picture. " * 80
            + f"</think> So it is \\boxed{{{index % 7}}}."
        )
        roles = torch.zeros(TOKENS, dtype=torch.uint8)
        made.append(
            Rollout(
                prompt,
                index // GROUP,
                torch.arange(400),
                torch.arange(TOKENS),
                roles,
                text,
                "eos",
            )
        )
    return made


def seconds(rewards: Rewards, batch: list[Rollout]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    rewards(batch)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print; the last line is JSON."""
    torch.set_num_threads(1)
    batch = rollouts()
    parts = {"accuracy": (0.9, boxed_accuracy), "format": (0.1, think_format)}
    isolated, direct = Rewards(**parts), Rewards(isolate=False, **parts)
    began = time.perf_counter()
    isolated.start()
    start = time.perf_counter() - began
    pairs = [(seconds(isolated, batch), seconds(direct, batch)) for _ in range(ROUNDS + 1)][1:]
    isolated.close()
    overheads = [1000 * (there - here) / BATCH for there, here in pairs]
    value = statistics.median(overheads)
    print(f"python {platform.python_version()}, torch {torch.__version__}")
    print(f"workers started in {start:.2f} s (with math-verify loaded)")
    print(
        f"ms per answer over the direct call, per round: {[round(one, 3) for one in overheads]}"
    )
    outcome = {
        "name": "reward_isolation",
        "value": round(value, 4),
        "goal": GOAL,
        "unit": "ms/answer",
        "ok": value < GOAL,
    }
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
