"""What each method does to the embedded model, against GRPO and against the warm start, over several seeds.

    python benchmarks/effects.py                                    every method, 3 seeds, 100 steps: an hour or more
    python benchmarks/effects.py --methods papo vogue --steps 50    some of them
    python benchmarks/effects.py --document docs/effects.md         also write the table into that file

Each method is its recipe's embedded preset with the same number of steps, prompts and answers as GRPO (MSSR: one answer
to as many prompts as GRPO has answers); GRPO is the PAPO recipe without its terms. A finished run in --output is not
repeated. Final models are measured on the same held-out prompts:

    accuracy, noisy, blank    greedy accuracy with the pictures, under Gaussian noise, on black pictures
    pass8, entropy            pass@8 and mean surprise -log p of 8 sampled answers
    kl_masked, kl_noisy       exact KL(raw‖view) over the vocabulary on answers of the warm start, nats per token
    seeing                    share of a picture's cells that its description names rightly
    rescued                   accuracy on prompts that 8 answers of the warm start all got wrong

A claim is the difference in one number (or of a contrast of two) that a paper leads to expect. Differences are paired
by seed; the interval is Student's at 95 %. "shown": the interval lies on the claimed side of 0; "opposite": on the
other; "not shown": it holds 0. With few seeds most small effects are not shown.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import torch
import tyro
from documents import student, write_section

from mmrl.data.drawn.checklist import cells_prompt, cells_seen
from mmrl.model.branches import Views
from mmrl.model.policy import Policy
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.perception.masking import Blank, PatchMask
from mmrl.perception.noise import GaussianNoise
from mmrl.recipes.shared.embedded import warm_model
from mmrl.recipes.shared.opening import DRAWN, Data, open_data
from mmrl.rewards.pay import tagged_accuracy
from mmrl.rollouts.engine import HFEngine
from mmrl.rollouts.groups import by_group
from mmrl.rollouts.noisy import rendered
from mmrl.training.evaluate import heldout_prompts, pass_rates
from mmrl.types import Now, Prompt, Rollout, Sampling, VisualBranch

NOW = Now(0, 0.0, seed=1234)
BRANCHES = {
    "masked": VisualBranch(PatchMask(ratio=0.6, size=16)),
    "noisy": VisualBranch(GaussianNoise(0.2)),
    "blank": VisualBranch(Blank()),
}
BASE = "grpo"


@dataclass(frozen=True)
class Claim:
    """One expectation: a number is larger (or smaller) than for the reference."""

    text: str
    number: str
    """A measured number, or "a-b" for the difference of two."""
    against: Literal["grpo", "start"] = "grpo"
    larger: bool = True


@dataclass(frozen=True)
class Method:
    """A recipe with options, and what its paper claims."""

    recipe: str
    claims: tuple[Claim, ...]
    options: tuple[str, ...] = ()


ACCURACY = Claim("accuracy rises above GRPO's", "accuracy")
METHODS: Mapping[str, Method] = {
    BASE: Method(
        "papo",
        (
            Claim("learns at all", "accuracy", "start"),
            Claim("gains without the picture, too", "blank", "start"),
        ),
        ("--papo.gamma", "0", "--papo.eta-orig", "0", "--papo.eta-masked", "0"),
    ),
    "papo": Method("papo", (Claim("KL(raw‖masked) rises", "kl_masked"), ACCURACY)),
    "vogue": Method(
        "vogue",
        (Claim("pass@8 is kept", "pass8"), Claim("entropy is kept", "entropy"), ACCURACY),
    ),
    "dvrp": Method(
        "dvrp",
        (
            Claim("D⁻ - D⁺ grows", "kl_masked-kl_noisy"),
            Claim("robustness to noise rises", "noisy"),
            Claim("leans less on text: accuracy minus blank accuracy rises", "accuracy-blank"),
        ),
    ),
    "noisy_rollout": Method(
        "noisy_rollout", (Claim("robustness to noise rises", "noisy"), ACCURACY)
    ),
    "vppo": Method("vppo", (ACCURACY, Claim("KL(raw‖masked) rises", "kl_masked"))),
    "perception_r1": Method(
        "perception_r1", (ACCURACY, Claim("more of the picture is said rightly", "seeing"))
    ),
    "pearl": Method("pearl", (Claim("the picture is read better", "seeing"), ACCURACY)),
    "visurf": Method("visurf", (Claim("learns where all answers fail", "rescued"), ACCURACY)),
    "calibrl": Method("calibrl", (ACCURACY, Claim("entropy is kept", "entropy"))),
    "mssr": Method(
        "mssr", (Claim("no collapse with one answer: learns", "accuracy", "start"), ACCURACY)
    ),
}


def main(
    methods: tuple[str, ...] = tuple(METHODS),
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int = 100,
    prompts: int = 256,
    jobs: int = 1,
    output: Path | None = None,
    document: Path | None = None,
) -> None:
    """Train, measure and compare; the last line is one JSON object."""
    if unknown := sorted(set(methods) - METHODS.keys()):
        raise SystemExit(f"unknown methods {unknown}; there are {sorted(METHODS)}.")
    torch.set_num_threads(1)
    start, place = warm_model(), output or Path(tempfile.mkdtemp())
    names = list(dict.fromkeys([BASE, *methods]))
    runs = [(name, seed) for seed in seeds for name in names]
    with ThreadPoolExecutor(jobs) as pool:
        list(
            pool.map(
                lambda run: train(place / f"{run[0]}-{run[1]}", run[0], run[1], steps), runs
            )
        )
    exam = Exam.of(start, prompts)
    found: dict[tuple[str, int], dict[str, float]] = {}
    for run in runs:
        found[run] = exam.measured(place / f"{run[0]}-{run[1]}" / "model")
        print(f"{run[0]} seed {run[1]}: {rounded(found[run])}", file=sys.stderr)
    before = exam.measured(start)
    rows = [
        judged(name, claim, found, before, seeds)
        for name in names
        for claim in METHODS[name].claims
    ]
    text = report(rows, found, before, names, seeds, steps, prompts)
    print(text)
    if document is not None:
        write_section(document, "effects", text)
    verdicts = {f"{row.method}: {row.claim.text}": row.verdict for row in rows}
    shown = sum(verdict == "shown" for verdict in verdicts.values())
    row = {
        "name": "effects",
        "value": shown,
        "goal": 0,
        "unit": f"claims shown, of {len(rows)}",
        "ok": True,
    }
    print(
        json.dumps(
            {**row, "seeds": len(seeds), "steps": steps, "verdicts": verdicts},
            ensure_ascii=False,
        )
    )


def train(folder: Path, name: str, seed: int, steps: int) -> None:
    """One run of a recipe, unless it is finished."""
    if (folder / "finished.json").is_file():
        return
    method = METHODS[name]
    options = [
        "--run.seed",
        str(seed),
        "--run.steps",
        str(steps),
        "--run.eval-prompts",
        "0",
        "--run.save-every",
        "0",
    ]
    command = [
        sys.executable,
        "-m",
        f"recipes.{method.recipe}",
        "embedded",
        *options,
        *method.options,
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, "--run.output", str(folder)], check=True, env=env, stdout=subprocess.DEVNULL
    )


@dataclass(frozen=True)
class Exam:
    """The same questions, and the same given answers, for every model."""

    prompts: tuple[Prompt, ...]
    answers: tuple[Rollout, ...]
    """Answers of the warm start, scored under each view."""
    failed: frozenset[str]
    """Prompts that the warm start never got right."""

    @staticmethod
    def of(start: Path, count: int) -> Exam:
        """Draw the questions and answer them with the warm start."""
        _, heldout = open_data(DRAWN, Data(style="tag"), seed=99)
        prompts = tuple(heldout_prompts(heldout, count))
        engine = HFEngine(Policy.load(start, device="cpu", dtype="float32"))
        groups = by_group(engine.generate(prompts, Sampling(8, 1.0, max_tokens=10), NOW))
        failed = frozenset(
            g[0].prompt.id for g in groups if not any(tagged_accuracy(r) for r in g)
        )
        return Exam(prompts, tuple(g[0] for g in groups), failed)

    def measured(self, model: Path) -> dict[str, float]:
        """All numbers of one model."""
        policy = Policy.load(model, device="cpu", dtype="float32")
        engine: Any = HFEngine(policy)
        greedy, free = Sampling(1, 0.0, max_tokens=10), Sampling(8, 1.0, max_tokens=10)
        right = {
            r.prompt.id: tagged_accuracy(r) for r in engine.generate(self.prompts, greedy, NOW)
        }
        numbers = {"accuracy": fmean(right.values())}
        numbers["rescued"] = (
            fmean([right[name] for name in self.failed]) if self.failed else float("nan")
        )
        for view in ("noisy", "blank"):
            seen = rendered(policy, self.prompts, view, BRANCHES[view], NOW)
            shown = engine.generate(self.prompts, greedy, NOW, visual=seen, branch=view)
            numbers[view] = fmean(tagged_accuracy(r) for r in shown)
        several = [
            replace(r, parts={"accuracy": tagged_accuracy(r)})
            for r in engine.generate(self.prompts, free, NOW)
        ]
        numbers["pass8"] = pass_rates(several, [8])["pass@8"]
        numbers["entropy"] = -fmean(
            float(value) for r in several if r.logp is not None for value in r.logp
        )
        asked = [question for prompt in self.prompts if (question := cells_prompt(prompt))]
        described = engine.generate(asked, replace(greedy, max_tokens=32), NOW)
        numbers["seeing"] = fmean(cells_seen(r) for r in described)
        for view in ("masked", "noisy"):
            numbers[f"kl_{view}"] = self.divergence(policy, view)
        return numbers

    def divergence(self, policy: Policy, view: str) -> float:
        """Mean exact KL(raw‖view) over the tokens of the given answers."""
        answers = [replace(r, group=i) for i, r in enumerate(self.answers)]
        views, rows = Views(policy, answers, BRANCHES, NOW), range(len(answers))
        outputs = {"raw": ScoreOutputs(), view: ScoreOutputs(divergence="forward")}
        shape = (len(answers), max(len(r.tokens) for r in answers))
        with torch.no_grad():
            scores = score_packed(
                policy, {name: views.groups(name, rows) for name in outputs}, outputs, shape
            )[view]
        assert scores.divergence is not None
        return float(scores.divergence.sum() / sum(len(r.tokens) for r in answers))


@dataclass(frozen=True)
class Row:
    """A claim and what was found."""

    method: str
    claim: Claim
    value: float
    reference: float
    difference: float
    half: float
    """Half the width of the 95 % interval; NaN with one seed."""

    @property
    def verdict(self) -> str:
        """shown, opposite or not shown."""
        gain = self.difference if self.claim.larger else -self.difference
        if math.isnan(self.half):
            return "not shown (one seed)"
        return "shown" if gain > self.half else "opposite" if -gain > self.half else "not shown"


def judged(
    name: str,
    claim: Claim,
    found: Mapping[tuple[str, int], Mapping[str, float]],
    before: Mapping[str, float],
    seeds: Sequence[int],
) -> Row:
    """Paired differences over the seeds."""
    values = [contrast(found[name, seed], claim.number) for seed in seeds]
    others = [
        contrast(before if claim.against == "start" else found[BASE, seed], claim.number)
        for seed in seeds
    ]
    gaps = [value - other for value, other in zip(values, others, strict=True)]
    half = (
        student(len(gaps)) * stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
    )
    return Row(name, claim, fmean(values), fmean(others), fmean(gaps), half)


def contrast(numbers: Mapping[str, float], name: str) -> float:
    """A number, or the difference of two ("a-b")."""
    first, _, second = name.partition("-")
    return numbers[first] - (numbers[second] if second else 0.0)


def report(
    rows: Sequence[Row],
    found: Mapping[tuple[str, int], Mapping[str, float]],
    before: Mapping[str, float],
    names: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    prompts: int,
) -> str:
    """Both tables as Markdown."""
    lines = [
        "## All methods against GRPO (`python benchmarks/effects.py`)",
        "",
        f"Embedded presets, {steps} steps, seeds {', '.join(map(str, seeds))}, {prompts} held-out prompts. Differences "
        "are paired by seed, with Student's 95 % interval; what is measured is listed in the benchmark's docstring.",
        "",
        "| method | claim | number | value | reference | difference | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        gap = f"{row.difference:+.3f}" + ("" if math.isnan(row.half) else f" ± {row.half:.3f}")
        cells = (row.method, row.claim.text, row.claim.number, f"{row.value:.3f}")
        lines.append(
            f"| {' | '.join(cells)} | {row.reference:.3f} ({row.claim.against}) | {gap} | {row.verdict} |"
        )
    numbers = list(before)
    lines += ["", f"| run | {' | '.join(numbers)} |", f"| --- |{' --- |' * len(numbers)}"]
    lines.append(f"| warm start | {' | '.join(f'{before[n]:.3f}' for n in numbers)} |")
    for name in names:
        means = {
            number: fmean(found[name, seed][number] for seed in seeds) for number in numbers
        }
        lines.append(
            f"| {name}, mean of {len(seeds)} | {' | '.join(f'{means[n]:.3f}' for n in numbers)} |"
        )
    return "\n".join(lines)


def rounded(numbers: Mapping[str, float]) -> str:
    """Numbers in one line."""
    return "  ".join(f"{name} {value:.3f}" for name, value in numbers.items())


if __name__ == "__main__":
    tyro.cli(main)
