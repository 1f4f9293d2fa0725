"""What PAPO does to the embedded model: accuracy and perception KL against GRPO from the same warm start.

For each seed it trains `recipes.papo` twice, with its coefficient and with zero, and scores fixed held-out answers
(drawn once by the warm start) under the real and under fixed masked pictures. The perception KL is the exact
KL(raw‖masked) over the vocabulary, mean over answer tokens, in nats. Writes the rows of `docs/effects.md` that
concern PAPO to stderr; the last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from mmrl.model.branches import Views
from mmrl.model.policy import Policy
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.perception.masking import PatchMask
from mmrl.recipes.shared.embedded import warm_model
from mmrl.recipes.shared.opening import DRAWN, Data, open_data
from mmrl.rollouts.engine import HFEngine
from mmrl.training.evaluate import heldout_prompts
from mmrl.types import Now, Rollout, Sampling, VisualBranch

NOW = Now(0, 0.0, seed=1234)


@dataclass(frozen=True)
class Outcome:
    """One run."""

    before: float
    after: float
    kl: float


def main(
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int = 100,
    jobs: int = 2,
    output: Path | None = None,
) -> None:
    """Train PAPO and GRPO for each seed and compare."""
    torch.set_num_threads(1)
    start = warm_model()
    place = output or Path(tempfile.mkdtemp())
    runs = [(gamma, seed) for seed in seeds for gamma in ("0.002", "0")]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda run: train(place, run[0], run[1], steps), runs))
    answers = fixed_answers(start)
    base = perception_kl(start, answers)
    found = {run: outcome(folder(place, *run), answers) for run in runs}
    for (gamma, seed), o in found.items():
        name = "PAPO" if float(gamma) else "GRPO"
        print(
            f"| {name} | {seed} | {o.before:.3f} | {o.after:.3f} | {base:.3f} | {o.kl:.3f} |",
            file=sys.stderr,
        )
    gains = [o.after - o.before for (gamma, _), o in found.items() if float(gamma)]
    higher = [found["0.002", s].kl > found["0", s].kl for s in seeds]
    ok = min(gains) >= 0.10 and all(higher)
    row = {
        "name": "papo_effect",
        "value": round(min(gains), 4),
        "goal": 0.10,
        "unit": "held-out accuracy gained, worst seed",
    }
    print(json.dumps({**row, "ok": ok, "kl_above_grpo": higher}))


def folder(place: Path, gamma: str, seed: int) -> Path:
    """Output of one run."""
    return place / f"gamma{gamma}-seed{seed}"


def train(place: Path, gamma: str, seed: int, steps: int) -> None:
    """One run of the recipe."""
    options = ["--papo.gamma", gamma, "--run.seed", str(seed), "--run.steps", str(steps)]
    target = ["--run.output", str(folder(place, gamma, seed))]
    command = [sys.executable, "-m", "recipes.papo", *options, *target]
    subprocess.run(
        command,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )


def fixed_answers(start: Path) -> list[Rollout]:
    """Answers of the warm start to held-out prompts, the same for every run."""
    _, heldout = open_data(DRAWN, Data(style="tag"), seed=99)
    policy = Policy.load(start, device="cpu", dtype="float32")
    return HFEngine(policy).generate(
        heldout_prompts(heldout, 256), Sampling(1, 1.0, max_tokens=10), NOW
    )


def perception_kl(model: Path, answers: list[Rollout]) -> float:
    """Mean exact KL(raw‖masked) over the tokens of the fixed answers under fixed masks, in nats."""
    policy = Policy.load(model, device="cpu", dtype="float32")
    views = Views(policy, answers, {"masked": VisualBranch(PatchMask(ratio=0.6, size=16))}, NOW)
    rows = range(len(answers))
    shape = (len(answers), max(len(r.tokens) for r in answers))
    outputs = {"raw": ScoreOutputs(), "masked": ScoreOutputs(divergence="forward")}
    with torch.no_grad():
        scores = score_packed(
            policy, {name: views.groups(name, rows) for name in outputs}, outputs, shape
        )["masked"]
    assert scores.divergence is not None
    return float(scores.divergence.sum() / sum(len(r.tokens) for r in answers))


def outcome(run: Path, answers: list[Rollout]) -> Outcome:
    """Accuracies from the run's metrics, KL of its final model."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    exams = [r["eval/accuracy"] for r in rows if r.get("eval/accuracy") is not None]
    return Outcome(exams[0], exams[-1], perception_kl(run / "model", answers))


if __name__ == "__main__":
    tyro.cli(main)
