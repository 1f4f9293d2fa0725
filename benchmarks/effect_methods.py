"""Which methods the effects benchmark compares, what each claims, and the GRPO run that each is compared with.

The reference of a method is GRPO with the method's own numbers: the recipe of PAPO without its terms, with every record
that both recipes have (rows, reward, clip, sampling, optimizer, steps, loading) taken from the configuration that the
method really runs with. So prompts, answers and rewards are equal row by row; methods with equal numbers share one
reference. What a method adds stays on its side only: the label in ViSurf's group, the expert answer that CalibRL
scores, the checklists and the further prompts of PEARL's filter, the rule that Perception-R1 pays by. MSSR asks as many
prompts as GRPO has answers, once each; its reference asks an eighth of the prompts eight times.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any

import effect_claims_tools
import effect_trees
from effect_claims import ACCURACY, Claim, Method
from effect_claims_tools import TOOLS
from effect_rlvr import EXPLAINED, OPTIONS, PAID, QUESTIONS, RLVR, STEPS
from effect_trees import TREES

from mmrl.recipes import papo
from mmrl.recipes.shared.configuration import as_json
from mmrl.recipes.shared.launch import resolved

SHARED = (
    "model",
    "dataset",
    "data",
    "reward",
    "grpo",
    "sampling",
    "optim",
    "run",
    "load",
    "lora",
)
"""Arguments that every recipe here has in common with PAPO's."""
OFF = ("--papo.gamma", "0", "--papo.eta-orig", "0", "--papo.eta-masked", "0")
CLIPS = ("clip_low", "clip_high", "dual_clip")
GROUP = 8
"""Answers per prompt of the reference of a method that samples one."""


@dataclass(frozen=True)
class Trained:
    """One training run but for its seed."""

    name: str
    """Of its result files."""
    recipe: str
    arguments: Mapping[str, Any]
    """Of the recipe's `main`."""
    options: tuple[str, ...] = ()
    """Of the command line that they come from."""

    @property
    def main(self) -> Callable[..., None]:
        """The recipe."""
        return import_module(f"mmrl.recipes.{self.recipe}").main

    def on(self, model: str, dataset: str) -> Trained:
        """The same run from this model on these rows."""
        return replace(self, arguments={**self.arguments, "model": model, "dataset": dataset})

    @property
    def key(self) -> str:
        """Short digest of all settings but the seed, the model and the rows: those are the task's."""
        run = replace(self.arguments["run"], output=None, name="any", seed=0)
        plain = {**self.arguments, "run": run, "model": "", "dataset": ""}
        text = json.dumps([self.recipe, as_json(plain)], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()

    def summary(self) -> str:
        """Prompts × answers per step, and what is paid."""
        prompts = self.arguments["run"].prompts_per_step
        if "reward" not in self.arguments:
            return f"{prompts} × {self.arguments['sampling'].group_size}, its own"
        reward = self.arguments["reward"]
        paid = f"{reward.accuracy:g} / {reward.format:g}"
        if reward.own:
            paid = ", ".join(part.rpartition(":")[2] for part in reward.own)
        asked = f"{prompts} × {self.arguments['sampling'].group_size}"
        return f"{asked}, {paid}"


METHODS: Mapping[str, Method] = {
    "papo": Method("papo", (Claim("KL(raw‖masked) rises", "kl_masked"), ACCURACY)),
    "vogue": Method(
        "vogue",
        (Claim("pass@8 is kept", "pass8"), Claim("entropy is kept", "entropy"), ACCURACY),
    ),
    "dvrp": Method(
        "dvrp",
        (
            Claim("D⁻ - D⁺ grows", "kl_masked-kl_noisy"),
            Claim("robustness to noise rises", "noisy", "noise"),
            Claim("leans less on what is usual", "lean", "usual", larger=False),
            # Added after a look at one seed of the claim above.
            Claim("the words alone say less to it", "blind", "usual", larger=False),
        ),
    ),
    "noisy_rollout": Method(
        "noisy_rollout", (Claim("robustness to noise rises", "noisy", "noise"), ACCURACY)
    ),
    "vppo": Method("vppo", (ACCURACY, Claim("KL(raw‖masked) rises", "kl_masked"))),
    "perception_r1": Method(
        "perception_r1", (ACCURACY, Claim("what is asked about is seen more often", "facts"))
    ),
    "pearl": Method("pearl", (Claim("the picture is read better", "seeing"), ACCURACY)),
    "visurf": Method(
        "visurf", (Claim("learns where all answers fail", "accuracy", "failing"), ACCURACY)
    ),
    "calibrl": Method("calibrl", (ACCURACY, Claim("entropy is kept", "entropy"))),
    "mssr": Method(
        "mssr",
        (
            Claim("no collapse with one answer: learns", "accuracy", against="start"),
            ACCURACY,
        ),
    ),
}


@dataclass(frozen=True)
class Suite:
    """Methods that are run alike, and corrected together."""

    section: str
    """Of the document."""
    title: str
    methods: Mapping[str, Method]
    steps: int
    questions: int
    options: tuple[str, ...] = ()
    """Of every run."""
    paid: tuple[str, ...] = ()
    """Of runs on a task that does not say how it pays."""
    flags: str = ""
    """That name it on the command line."""
    explained: str = "Tasks and numbers are explained in `benchmarks/effect_tasks.py`."

    @property
    def claims(self) -> tuple[tuple[str, Claim], ...]:
        """All of them: what a table is corrected for, also where it has only some of their rows."""
        return tuple(
            (n, claim) for n, method in self.methods.items() for claim in method.claims
        )


SUITES: Mapping[str, Suite] = {
    "visual": Suite("effects", "All methods against GRPO", METHODS, 100, 384),
    "rlvr": Suite(
        *("rlvr effects", "RLVR systems against GRPO", RLVR, STEPS, QUESTIONS, OPTIONS),
        *(PAID, " --suite rlvr", EXPLAINED),
    ),
    "trees": Suite(
        *("tree effects", "Trees, hints and experience against GRPO", TREES),
        *(effect_trees.STEPS, effect_trees.QUESTIONS, effect_trees.TREE_OPTIONS),
        *(effect_trees.TREE_PAID, " --suite trees", effect_trees.EXPLAINED),
    ),
    "tools": Suite(
        *("tool effects", "Tools against GRPO without", TOOLS),
        *(effect_claims_tools.STEPS, effect_claims_tools.QUESTIONS),
        effect_claims_tools.TOOL_OPTIONS,
        *((), " --suite tools", effect_claims_tools.EXPLAINED),
    ),
}
EVERY: Mapping[str, Method] = {**METHODS, **RLVR, **TREES, **TOOLS}
CLAIMS = SUITES["visual"].claims


@cache  # reading a command line takes a tenth of a second, and tables ask again for every row
def method_run(name: str, options: tuple[str, ...]) -> Trained:
    """The embedded preset of a method's recipe with options of the command line."""
    method = EVERY[name]
    module = import_module(f"mmrl.recipes.{method.recipe}")
    asked = resolved(module.main, module.PRESETS, ["embedded", *options, *method.options])
    return Trained(name, method.recipe, asked.arguments, options)


def reference_run(method: Trained) -> Trained:
    """GRPO with the method's own numbers."""
    asked = EVERY[method.name]
    if asked.off:
        return replace(
            method_run(method.name, (*method.options, *asked.off)), name=f"grpo-{method.name}"
        )
    base = dict(_plain())
    plain, plain_run = base["optim"], base["run"]
    base |= {name: method.arguments[name] for name in SHARED if name in method.arguments}
    # Equal references are trained once, so what has no effect is written alike: a drawn task without a split is its
    # training side, a run of so many steps counts no epochs, and without decay it does not matter what decays.
    base["data"] = replace(base["data"], split=None)
    if (
        "reward" in method.arguments and base["reward"].own
    ):  # stand in the place of accuracy and format
        usual = _plain()["reward"]
        paid = {"accuracy": usual.accuracy, "format": usual.format}
        base["reward"] = replace(base["reward"], **paid)
    if base["run"].steps is not None:
        base["run"] = replace(base["run"], epochs=plain_run.epochs)
    if base["optim"].weight_decay == 0:
        base["optim"] = replace(base["optim"], decay_all=plain.decay_all)
    if base["sampling"].group_size == 1:
        answers = base["run"].prompts_per_step
        base = _asking(base, answers // GROUP, GROUP)
    base = _asking(base, asked.prompts, asked.group)
    if method.name in {**RLVR, **TREES} and base["run"].updates_per_step == 1:
        # The ratio is 1 in a single update, so no clip ever binds.
        base["grpo"] = replace(base["grpo"], **{n: getattr(_plain()["grpo"], n) for n in CLIPS})
    trained = Trained("grpo", "papo", base)
    return replace(trained, name=f"grpo-{trained.key}")


def _asking(base: dict[str, Any], prompts: int | None, group: int | None) -> dict[str, Any]:
    """The same with so many prompts per step and answers per prompt; None leaves them."""
    run, sampling = base["run"], base["sampling"]
    if prompts is not None:
        run = replace(run, prompts_per_step=prompts)
    if group is not None:
        sampling = replace(sampling, group_size=group)
    return {**base, "run": run, "sampling": sampling}


@cache
def _plain() -> Mapping[str, Any]:
    """PAPO's recipe without its terms."""
    return resolved(papo.main, papo.PRESETS, ["embedded", *OFF]).arguments
