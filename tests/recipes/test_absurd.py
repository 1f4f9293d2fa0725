"""Settings that nobody means are refused where they are given, in the words of the command line."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from dataclasses import fields, is_dataclass, replace
from functools import partial

import pytest
import torch

import mmrl.recipes
from mmrl.losses.advantages import group_centered, group_normalized
from mmrl.rollouts.groups import PlainRollout, group_rollout
from mmrl.training.compatibility import check_lengths, check_sampling
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.types import Sampling

INFINITE = (math.inf, -math.inf, math.nan)
RECIPES = [
    name
    for _, name, is_package in pkgutil.iter_modules(mmrl.recipes.__path__)
    if not is_package and not name.startswith("_")
]


def records(value, found):
    """Every record that a recipe takes, and those inside them."""
    if is_dataclass(value) and not isinstance(value, type) and type(value) not in found:
        found[type(value)] = value
        for each in fields(value):
            records(getattr(value, each.name), found)


def all_numbers():
    """(record, field) of every number with a point that some recipe's command line sets."""
    found = {}
    for name in RECIPES:
        module = importlib.import_module(f"mmrl.recipes.{name}")
        for parameter in inspect.signature(
            getattr(module, "main", lambda: 0)
        ).parameters.values():
            records(parameter.default, found)
    for record in found.values():
        for each in fields(record):
            if each.init and "float" in str(each.type):
                yield pytest.param(record, each.name, id=f"{type(record).__name__}.{each.name}")


@pytest.mark.parametrize(("record", "name"), all_numbers())
def test_no_setting_of_any_recipe_may_be_infinite(record, name):
    for value in INFINITE:
        given = (
            (0.0, value) if "tuple" in str(record.__dataclass_fields__[name].type) else value
        )
        with pytest.raises(ValueError, match=rf"{type(record).__name__}\.{name}"):
            replace(record, **{name: given})


ABSURD = [
    (Optim, {"lr": 1.5}, r"Optim\.lr is 1\.5; it must be in \[0, 1\]"),
    (Optim, {"lr": 1e30}, r"Optim\.lr"),
    (Optim, {"weight_decay": 1e9}, r"Optim\.weight_decay"),
    (
        Optim,
        {"nonfinite": "hope"},
        r"Optim\.nonfinite is 'hope'; it must be 'retry', 'skip' or",
    ),
    (
        Sampling,
        {"max_tokens": 10**9},
        r"Sampling\.max_tokens is 1000000000; it must be 1 to 1,048",
    ),
    (Sampling, {"group_size": 10**9}, r"Sampling\.group_size"),
    (Sampling, {"temperature": 1e6}, r"Sampling\.temperature"),
    (Run, {"tokens_per_pass": 10**9}, r"Run\.tokens_per_pass"),
]


@pytest.mark.parametrize(("kind", "setting", "told"), ABSURD)
def test_absurd_numbers_are_refused(kind, setting, told):
    with pytest.raises(ValueError, match=told):
        kind(**setting)


@pytest.mark.parametrize("estimator", [group_normalized, group_centered])
def test_answers_that_cannot_be_compared_are_refused(estimator):
    alone, greedy = Sampling(group_size=1), Sampling(group_size=8, temperature=0.0)
    with pytest.raises(ValueError, match=r"group_size is 1.*--sampling\.group-size to 2"):
        check_sampling(alone, estimator)
    with pytest.raises(ValueError, match=r"temperature is 0.*--sampling\.temperature above 0"):
        check_sampling(greedy, estimator, PlainRollout(group_rollout))
    check_sampling(Sampling(group_size=2), estimator)


def test_an_estimator_that_does_not_compare_may_have_single_answers():
    def itself(reward, group, mask):
        return torch.as_tensor(reward)

    for estimator in (itself, partial(group_centered, alone="reward")):
        check_sampling(Sampling(group_size=1), estimator)
    check_sampling(Sampling(group_size=1, temperature=0.0), itself)


def test_answers_longer_than_the_model_can_read_are_refused():
    with pytest.raises(
        ValueError, match=r"max_tokens is 40,000, but this model reads at most 32,"
    ):
        check_lengths(Sampling(max_tokens=40_000), 32_768)


@pytest.mark.parametrize(
    "flags",
    [
        ["--optim.lr", "inf"],
        ["--optim.lr", "nan"],
        ["--sampling.temperature", "inf"],
        ["--sampling.group-size", "1"],
        ["--sampling.max-tokens", "1000000000"],
    ],
    ids=" ".join,
)
def test_the_command_ends_with_the_words_of_the_flag_and_no_traceback(
    commands, tmp_path, flags
):
    output = tmp_path / "run"
    done = commands(["-m", "recipes.papo", *flags, "--run.output", str(output)], cwd=tmp_path)
    assert done.returncode not in (0, None) and "Traceback" not in done.stderr
    said = " ".join((done.stdout + done.stderr).replace("│", " ").split())
    name = flags[0].removeprefix("--").replace("-", "_")
    assert name.split(".")[1] in said
    assert not (output / "metrics.jsonl").exists()
