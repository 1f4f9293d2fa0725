"""CPU time of a training step: ours as a share of TRL's GRPOTrainer, on the same tiny model and pictures.

    python benchmarks/step_vs_trl.py [--rounds 3]

One step = one prompt with one picture, 8 answers of a fixed length, rewards, update, optimizer, log line; each side
generates with its own engine and reads the same PNG files. TRL runs its defaults (activation checkpointing on), ours
runs its own (off at this size). Model: language 4 x 256, vision 4 x 128, vocabulary 8,192, fp32, one thread. Steps are
taken in turn; a cell's ratio is the median of ours over the median of TRL's. `value` is the worst ratio over its goal.

The second part feeds ids that TRL sampled, with TRL's advantages and weights (after one step, so that the KL has a
gradient), to our loss: the loss and each gradient must equal TRL's to 1e-4 of the gradient tensor's norm.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tiny_runs import (
    Cell,
    median,
    model_folder,
    our_prompts,
    our_trainer,
    our_worker,
    result,
    say,
    versions,
    write_rows,
)
from trl_setup import trl_versions, trl_worker

KL = 0.04
CELLS = ((256, 32, 0.0, 0.18), (256, 32, KL, 0.18), (1024, 64, 0.0, 0.14), (1024, 64, KL, 0.14))
"""Visual tokens, answer tokens, weight of the KL, goal."""


def ratio(cell: Cell, visual: int, rounds: int) -> float:
    """Our CPU time over TRL's."""
    theirs, ours = trl_worker(cell), our_worker(cell)
    seconds: dict[str, list[float]] = {"trl": [], "ours": []}
    for round_ in range(rounds + 1):
        for name, worker in (("trl", theirs), ("ours", ours)):
            answer = worker.ask("step")
            found = answer["visual"], answer["length"]
            assert found == (visual, cell.answer), (
                f"{name} saw {found} visual and answer tokens"
            )
            if round_:
                seconds[name].append(answer["seconds"])
    theirs.close()
    ours.close()
    say(
        f"  trl {[round(x, 2) for x in seconds['trl']]} s, ours {[round(x, 2) for x in seconds['ours']]} s"
    )
    return median(seconds["ours"]) / median(seconds["trl"])


def equality(cell: Cell, scratch: Path) -> dict[str, float]:
    """Relative difference of the loss, and the largest over all gradients, on TRL's own samples."""
    file = scratch / "step.pt"
    theirs = trl_worker(cell, file)
    theirs.ask("step")
    theirs.ask("step")
    theirs.close()
    saved = torch.load(file)
    value, gradients = our_step(cell, saved, scratch)
    assert set(gradients) == set(saved["gradients"]), "different parameters have gradients"
    gaps = {name: _gap(gradients[name], other) for name, other in saved["gradients"].items()}
    worst = max(gaps, key=lambda name: gaps[name])
    say(
        f"  loss {value:.8f} and {saved['loss']:.8f}; {len(gaps)} gradients, worst {worst} {gaps[worst]:.2e}"
    )
    return {"loss": abs(value - saved["loss"]) / abs(saved["loss"]), "gradient": gaps[worst]}


def our_step(cell: Cell, saved: dict, scratch: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """Our loss and gradients for TRL's samples, advantages and weights."""
    from mmrl.grpo import loss
    from mmrl.losses.reduce import Totals
    from mmrl.model.branches import Views
    from mmrl.model.packing import collate
    from mmrl.model.scoring import ScoreOutputs, score_packed
    from mmrl.types import Now, Rollout

    trainer = our_trainer(cell, scratch)
    policy, prompt, now = trainer.policy, our_prompts(cell.rows)[saved["row"]], Now(1, 0.0)
    named = dict(policy.model.named_parameters())
    with torch.no_grad():
        for name, weight in saved["weights"].items():
            named[name].copy_(weight)
    ids = policy.encode(prompt).ids
    assert torch.equal(ids, saved["prompt_ids"]), "the prompts are tokenised differently"
    rollouts = [
        Rollout(
            prompt,
            0,
            ids,
            row[keep.bool()],
            torch.zeros(int(keep.sum()), dtype=torch.uint8),
            "",
            "length",
            reward=0.0,
        )
        for row, keep in zip(saved["tokens"], saved["mask"], strict=True)
    ]
    batch = collate(rollouts)
    batch = replace(batch, advantage=saved["advantages"][:, None] * batch.mask)
    groups = Views(policy, rollouts, {}, now).groups("raw", range(len(rollouts)))
    shape = (len(rollouts), batch.tokens.shape[1])
    with torch.no_grad():
        reference = (
            score_packed(policy, {"ref": groups}, {"ref": ScoreOutputs()}, shape)
            if cell.kl
            else {}
        )
    live = (
        score_packed(policy, {"raw": groups}, {"raw": ScoreOutputs(grad=True)}, shape)
        | reference
    )
    totals = Totals(int(batch.mask.sum()), len(rollouts))
    value, _ = loss(trainer.grpo, trainer.surrogate, batch, live, [], totals, now)
    value.backward()
    policy.vision.backward()
    trainer.rewards.close()
    return float(value), {name: p.grad for name, p in named.items() if p.grad is not None}


def _gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))


def main() -> None:
    """Measure and print; the last two lines are JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3, help="counted steps per side and cell")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    say(f"ours: {versions('torch', 'transformers')}; theirs: {trl_versions()}")
    folder = str(model_folder())
    ratios: dict[str, float] = {}
    worst = 0.0
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        rows = {visual: str(write_rows(scratch, visual, 16)) for visual in (256, 1024)}
        gaps = equality(Cell(folder, rows[256], 32, KL, lr=1e-4), scratch)
        for visual, answer, weight, goal in CELLS:
            name = f"{visual} visual, {answer} answer tokens{', KL' if weight else ''}"
            say(name)
            ratios[name] = round(
                ratio(Cell(folder, rows[visual], answer, weight), visual, rounds), 4
            )
            worst = max(worst, ratios[name] / goal)
            say(f"  {ratios[name]:.3f} of TRL's CPU time, goal {goal}")
    result(
        "step_equals_trl",
        max(gaps.values()),
        1e-4,
        "relative difference",
        loss=gaps["loss"],
        gradient=gaps["gradient"],
    )
    result("step_vs_trl", worst, 1.0, "worst share of TRL's CPU time / its goal", cells=ratios)


if __name__ == "__main__":
    main()
