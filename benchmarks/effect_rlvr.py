"""Twenty systems of reinforcement learning with verifiable rewards, and what each paper leads to expect of it.

The runs are short and equal: 8 prompts × 8 answers a step on the embedded model, one optimizer update, our rewards. So
one GRPO run per seed and task is the reference of almost all. What is not equal is told in the tables as answers per
step: DARS and GHPO ask hard prompts again and SELF asks each once more, so that their prompts are fewer or more until
answers come out about even; BroRL asks a quarter of the prompts four times as often; Beyond Variance answers its
candidates once before the first step, which is counted; RL-PLUS samples seven answers beside an expert's.

Claims are the papers'; where a number stands for one, the comment says how. "Variety" is the number of different right
answers among eight, on the task where two are right.
"""

from __future__ import annotations

from collections.abc import Mapping

from effect_claims import Claim, Method

STEPS, QUESTIONS = 30, 192
OPTIONS = (
    *(
        "--run.prompts-per-step",
        "8",
        "--sampling.group-size",
        "8",
        "--monitor.probe-every",
        "0",
    ),
    *("--monitor.probe-first", "0", "--reward.grader", "ours"),
    *("--sampling.temperature", "1.0"),
)
"""Of all runs."""
PAID = ("--reward.accuracy", "0.9", "--reward.format", "0.1")
"""Of runs on a task that does not say how it pays."""

EXPLAINED = (
    "Behind the rewards stand the answers per step that the method and its reference really asked for. Methods are "
    "explained in `benchmarks/effect_rlvr.py`, tasks in `benchmarks/effect_tasks.py`, numbers in "
    "`benchmarks/effect_answers.py`. A verdict needs five seeds."
)

PASS1 = Claim("pass@1 rises above GRPO's", "pass1")
PASS8 = Claim("pass@8 rises above GRPO's", "pass8")
ENTROPY = Claim("entropy is kept", "entropy")
VARIETY = Claim("right answers stay different", "variety", "either")
FAILING = Claim("learns where all answers fail", "pass1", "failing")

KNOWN_RATES = ("--noisy.false-positive", "0.1", "--noisy.false-negative", "0.4")

RLVR: Mapping[str, Method] = {
    "nsr": Method("nsr", (PASS8, ENTROPY, VARIETY)),
    "ngrpo": Method("ngrpo", (PASS8, FAILING)),
    "dcpo": Method(
        "dcpo",
        # The share of answers that teach is logged by DCPO alone; what it buys is speed.
        (PASS1, Claim("fewer tokens are clipped", "trained/clipped", larger=False)),
        # Large steps, so that there is a ratio to bound.
        ("--data.limit", "128", "--run.updates-per-step", "4", "--optim.lr", "5e-4"),
    ),
    "ace": Method(
        "ace", (PASS8, Claim("wrong answers are less certain", "sure", larger=False))
    ),
    "canon": Method("canon", (PASS1, PASS8)),
    "progrpo": Method("progrpo", (PASS8, ENTROPY, VARIETY)),
    "beyond_variance": Method(
        "beyond_variance",
        (Claim("few questions teach", "pass1", against="start"), PASS8),
        ("--pairs.count", "4"),
    ),
    "dsdr": Method("dsdr", (Claim(PASS1.text, "pass1", "either"), VARIETY)),
    "pacs": Method("pacs", (PASS1, PASS8)),
    "laser": Method(
        "laser",
        (PASS1, Claim("its own verdict is right more often than not", "trained/verified")),
        ("--laser.loss-warmup", "5", "--laser.mix-warmup", "5"),
    ),
    "rover": Method("rover", (PASS1, PASS8, VARIETY)),
    # Seven answers and an expert's.
    "rl_plus": Method(
        "rl_plus", (PASS8, FAILING), ("--sampling.group-size", "7"), prompts=8, group=8
    ),
    "ampo": Method("ampo", (PASS8, FAILING)),
    "noisy_verifier": Method(
        "noisy_verifier",
        (Claim("stays right under wrong verdicts", "pass1"),),
        ("--noise.false-positive", "0.1", "--noise.false-negative", "0.4", *KNOWN_RATES),
        # GRPO must be told the same wrong verdicts, which that recipe alone makes.
        off=("--noisy.correction", "off"),
    ),
    "longrlvr": Method(
        "longrlvr",
        (Claim(PASS1.text, "pass1", "evidence"),),
        # The form of an answer is its own: our part for it would pay for leaving the evidence out.
        ("--reward.accuracy", "1.0", "--reward.format", "0.0"),
        # GRPO on answers alone, which the recipe is without its context reward.
        off=("--longrlvr.weight", "0"),
    ),
    "dars": Method("dars", (PASS1, PASS8), ("--run.prompts-per-step", "3"), prompts=8),
    "ead": Method("ead", (PASS1, PASS8)),
    "brorl": Method(
        "brorl",
        (PASS1,),
        ("--run.prompts-per-step", "2", "--sampling.group-size", "32"),
        prompts=8,
        group=8,
    ),
    "ghpo": Method("ghpo", (FAILING,), ("--run.prompts-per-step", "2"), prompts=8),
    # One greedy answer to each prompt, and groups to those that it fails.
    "self_boundary": Method(
        "self_boundary", (PASS1, PASS8), ("--run.prompts-per-step", "11"), prompts=8
    ),
}
