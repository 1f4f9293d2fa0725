"""Shared-prefix scoring and update against our own repeated path, as a share of what the token counts allow.

    python benchmarks/shared_prefix.py [--rounds 2] [--family qwen3_5 --small]

A model of 54 M parameters (language 8 x 512, vision 4 x 256, vocabulary 49,152), one prompt with a picture, 8
answers of 64 tokens. The repeated path (`mmrl/model/reference_scores.py`) gives each answer a row with its own copy
of the prompt but runs the vision tower once. Let R be its CPU time, t what does not depend on the form (the tower,
and the head on the 512 answer tokens, each measured alone: forward, or forward and backward), r and s the tokens of
the language model in the repeated and in the packed form. Then the token counts allow a time of t + (R - t) * s / r,
and the speed-up

    bound = R / (t + (R - t) * s / r),        value = (R / packed time) / bound,

where a value above 1 is possible because attention in the packed form is cheaper than the count of tokens says. A
second figure repeats the tower as well (one run). `value` is the worst of scoring and update at 256 and 1,024 visual
tokens. `--family` takes another kind of model, `--small` one of 4 x 256 with 256 visual tokens.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tiny_runs import (
    cpu_seconds,
    interleaved,
    median,
    model_folder,
    result,
    say,
    versions,
    visual_side,
)

from mmrl.data.drawn.drawn import Drawn
from mmrl.model.packing import Group
from mmrl.model.policy import Policy
from mmrl.model.reference_scores import score_repeated
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.types import Scores

GROUP, ANSWER, GOAL = 8, 64, 0.8
Score = Callable[[ScoreOutputs], dict[str, Scores]]


def group_of(policy: Policy, visual: int) -> Group:
    """One prompt and its answers."""
    encoded = policy.encode(Drawn("lookup", size_px=visual_side(visual), cells=4)[0])
    rng = torch.Generator().manual_seed(visual)
    answers = tuple(torch.randint(0, 256, (ANSWER,), generator=rng) for _ in range(GROUP))
    return Group(encoded, encoded.visual, answers, tuple(range(GROUP)), (1.0,) * GROUP)


def forms(policy: Policy, group: Group) -> dict[str, Score]:
    """The packed form and both repeated forms."""
    views, shape = {"raw": [group]}, (GROUP, ANSWER)
    return {
        "packed": lambda want: score_packed(policy, views, {"raw": want}, shape),
        "repeated": lambda want: score_repeated(policy, views, {"raw": want}, shape),
        "tower repeated": lambda want: score_repeated(
            policy, views, {"raw": want}, shape, tower_once=False
        ),
    }


def scored(policy: Policy, score: Score) -> float:
    """CPU seconds of a pass without gradient."""
    policy.vision.clear()
    with torch.no_grad():
        return cpu_seconds(lambda: score(ScoreOutputs()))


def updated(policy: Policy, score: Score) -> float:
    """CPU seconds of forward and backward."""

    def run() -> None:
        score(ScoreOutputs(grad=True))["raw"].logp.sum().backward()
        policy.vision.backward()

    policy.vision.clear()
    seconds = cpu_seconds(run)
    policy.model.zero_grad(set_to_none=True)
    return seconds


def tower(policy: Policy, group: Group, grad: bool) -> float:
    """CPU seconds of the vision tower alone."""

    def run() -> None:
        features = policy.vision.features(group.visual, grad)
        if grad:
            sum(f.merged.sum() for f in features).backward()  # type: ignore[union-attr]
            policy.vision.backward()

    policy.vision.clear()
    with torch.set_grad_enabled(grad):
        seconds = cpu_seconds(run)
    policy.model.zero_grad(set_to_none=True)
    return seconds


def head(policy: Policy, grad: bool) -> float:
    """CPU seconds of the plain head on the answer tokens."""
    weight = policy.base.lm_head.weight
    states = torch.randn(GROUP * ANSWER, weight.shape[1], requires_grad=grad)
    tokens = torch.zeros(len(states), 1, dtype=torch.long)

    def run() -> None:
        logp = torch.log_softmax(policy.base.lm_head(states), -1).gather(1, tokens)
        if grad:
            logp.sum().backward()

    with torch.set_grad_enabled(grad):
        seconds = cpu_seconds(run)
    policy.model.zero_grad(set_to_none=True)
    return seconds


def tokens_of(policy: Policy, score: Score) -> int:
    """Tokens through the language model."""
    policy.counters.clear()
    with torch.no_grad():
        score(ScoreOutputs())
    return policy.counters["tokens/score"]


def compare(policy: Policy, visual: int, grad: bool, rounds: int) -> dict[str, float]:
    """Speed-ups and bounds of one setting."""
    group = group_of(policy, visual)
    made = forms(policy, group)
    run = updated if grad else scored
    sides = {
        name: (lambda score=made[name]: run(policy, score)) for name in ("packed", "repeated")
    }
    seconds = {
        name: median(values) for name, values in interleaved(sides, rounds, warmup=0).items()
    }
    seconds["tower repeated"] = run(policy, made["tower repeated"])
    tower_alone = median([tower(policy, group, grad) for _ in range(2 * rounds)])
    head_alone = median([head(policy, grad) for _ in range(2 * rounds)])
    fixed = tower_alone + head_alone
    share = tokens_of(policy, made["packed"]) / tokens_of(policy, made["repeated"])
    bound = seconds["repeated"] / (fixed + (seconds["repeated"] - fixed) * share)
    speed = seconds["repeated"] / seconds["packed"]
    whole = seconds["tower repeated"]
    whole_bound = whole / (fixed + (whole - GROUP * tower_alone - head_alone) * share)
    say(
        f"{visual} visual tokens, {'update' if grad else 'scoring'}: "
        + ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
        + f", tower {tower_alone:.2f} s, head {head_alone:.2f} s; {speed:.2f} x of {bound:.2f} x; "
        f"tower repeated {whole / seconds['packed']:.2f} x"
    )
    return {
        "speedup": round(speed, 3),
        "bound": round(bound, 3),
        "share": round(speed / bound, 3),
        "tower_repeated_speedup": round(whole / seconds["packed"], 3),
        "tower_repeated_share": round(whole / seconds["packed"] / whole_bound, 3),
    }


def main() -> None:
    """Measure and print; the last line is JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--family", default="qwen2_5_vl", help="model_type of the model")
    parser.add_argument("--small", action="store_true", help="a smaller model, one length")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    large = {
        "hidden": 512,
        "layers": 8,
        "heads": 8,
        "vision_hidden": 256,
        "vocabulary": 49_152,
    }
    folder = model_folder(family=asked.family, **({} if asked.small else large))
    policy = Policy.load(folder, device="cpu", dtype="float32")
    size = sum(p.numel() for p in policy.model.parameters()) / 1e6
    say(f"{versions('torch', 'transformers')}; {asked.family}, {size:.1f} M parameters")
    updated(policy, forms(policy, group_of(policy, 64))["packed"])  # warm-up
    cells = {
        f"{visual} {'update' if grad else 'scoring'}": compare(
            policy, visual, grad, asked.rounds
        )
        for visual in ((256,) if asked.small else (256, 1024))
        for grad in (False, True)
    }
    worst = min(cell["share"] for cell in cells.values())
    result(
        "shared_prefix",
        worst,
        GOAL,
        "share of the token-count bound",
        at_least=True,
        cells=cells,
    )


if __name__ == "__main__":
    main()
