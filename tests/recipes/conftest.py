"""What tests of recipes share: their real command lines, and what holds for the presets and settings of each."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock

from mmrl.model import tiny
from mmrl.recipes.shared import (
    choice_data,
    circuit_data,
    closer_data,
    drawing_data,
    embedded,
    evidence_data,
    point_data,
    pretext_warmup,
    solution_data,
    supervised,
)
from mmrl.recipes.shared.clip_data import clip_warm_up
from mmrl.recipes.shared.launch import EMBEDDED, choose_preset, launch, with_defaults
from mmrl.training.run import Run

ROOT = Path(__file__).parents[2]
SMALL = (
    "--run.steps",
    "2",
    "--run.eval-prompts",
    "8",
    "--run.prompts-per-step",
    "4",
    "--monitor.probe-every",
    "0",
)


class WarmModels:
    """Embedded models after a part of their warm-up, in the tests' cache in the place of the whole.

    What a recipe does with its embedded model is the same; how much the model has learned is for the benchmarks.
    """

    def __call__(self, recipe):
        """Folder of the model that a recipe starts from; made if it is not there."""
        if recipe in ("timelens", "tempsamp_r1", "video_r1"):
            warm = partial(embedded.warm_model, clip_warm_up("native"))
            return self.made("clips", warm, steps=8)
        if recipe == "videossr":
            self("timelens")  # what it starts from
            warm = partial(pretext_warmup.warm_pretext, pretext_warmup.CLIPS)
            return self.made(recipe, warm, labels=6)
        if recipe in ("np_engine", "hopchain"):
            chosen = {"np_engine": "PROBLEMS", "hopchain": "HOPS"}[recipe]
            settings = getattr(pretext_warmup, chosen)
            warm = partial(pretext_warmup.warm_pretext, settings)
            return self.made(recipe, warm, labels=6)
        if recipe in ("chain_of_symbol", "causal_reasoning"):
            settings = pretext_warmup.REASONING
            warm = partial(pretext_warmup.warm_pretext, settings)
            return self.made("reasoning", warm, steps=2, labels=2)
        if recipe == "mr_rlvr":
            self("papo")  # what it starts from
            return self.made(recipe, solution_data.warm_solutions, labels=6)
        if recipe in ("visual_jigsaw", "puzzlecraft", "pretext"):
            return self.made("pretext", pretext_warmup.warm_pretext, labels=6)
        if recipe == "longrlvr":
            self("papo")  # what it starts from
            return self.made("evidence", evidence_data.warm_evidence, steps=2, labels=1)
        if recipe == "knowrl":
            self("papo")  # what it starts from
            return self.made("points", point_data.warm_points, steps=2, labels=1)
        if recipe == "vmr":
            self("papo")  # what it starts from
            return self.made("choices", choice_data.warm_choices)
        if recipe == "rrvf":
            self("papo")  # what it starts from
            return self.made("drawings", drawing_data.warm_drawings, steps=4)
        if recipe == "codev_r1":
            self("papo")  # what it starts from
            return self.made("circuits", circuit_data.warm_circuits, steps=4)
        if recipe in ("verltool", "vrag_rl"):
            return self.made("closer", closer_data.warm_closer, steps=20)
        # Methods that compare right answers need some.
        return self.made("lookup", embedded.warm_model, labels=1)

    def made(self, name, warm, steps=4, labels=3):
        """A model after 1 / `steps` of its steps with 1 / `labels` of the labels in each.

        Of several processes that want a model at once, one makes it and the others wait.
        """
        place = tiny.cache_folder()
        place.mkdir(parents=True, exist_ok=True)
        # The number of steps is part of a model's key, so the loop is cut short rather than its setting changed.
        with FileLock(place / f"{name}.lock"), pytest.MonkeyPatch.context() as patch:
            patch.setattr(supervised, "Run", partial(shortened, steps, labels))
            return warm()


def shortened(fewer_steps, fewer_labels, *, steps, prompts_per_step, **settings):
    return Run(
        steps=steps // fewer_steps,
        prompts_per_step=prompts_per_step // fewer_labels,
        **settings,
    )


class CommandLine:
    """Calls a recipe in a process of its own: a fork, or a fresh interpreter where `fresh` is asked for."""

    def __init__(self, commands, warm):
        self.commands = commands
        self.warm = warm

    def __call__(self, name, folder, *more, small=SMALL, fresh=False):
        """Two small steps into a folder, with further arguments; a preset comes first."""
        preset = more[:1] if more and not more[0].startswith("-") else ()
        given = more[len(preset) :]
        if preset in ((), (EMBEDDED,)) and "--model" not in given:
            self.warm(name)
        command = [
            "-m",
            f"recipes.{name}",
            *preset,
            *small,
            "--run.output",
            str(folder),
            *given,
        ]
        return self.plain(command, folder.parent, fresh=fresh)

    def plain(self, command, place, fresh=False):
        """What follows `python` on a command line."""
        if not fresh:
            return self.commands(command, cwd=place)
        return subprocess.run(
            [sys.executable, *command],
            cwd=place,
            env=self.commands.environment,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def metrics(self, folder):
        return [
            json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]


class Rules:
    """What holds for every recipe."""

    def presets_fit(self, recipe):
        """Each preset sets only what the recipe has, and says what it is; sizes only on real ones."""
        sizes = []
        for preset, chosen in recipe.PRESETS.items():
            signature = inspect.signature(with_defaults(recipe.main, chosen.values))
            plain = inspect.signature(recipe.main).parameters
            for parameter in signature.parameters.values():
                default = plain[parameter.name].default
                assert type(parameter.default) is type(default) or not is_dataclass(default), (
                    preset,
                    parameter.name,
                )
            assert chosen.note, preset
            sizes.append(chosen.size)
        assert recipe.PRESETS[EMBEDDED].size is None and any(sizes)
        assert choose_preset(recipe.PRESETS, None, None, None) == EMBEDDED
        name = recipe.__name__.removeprefix("mmrl.")
        assert recipe.__doc__ and name in recipe.__doc__ and "arXiv" in recipe.__doc__

    def settings_are_explained(self, recipe, capsys):
        """--help-all works, every flag of it has its text, and every record is headed by what it is."""
        with pytest.raises(SystemExit) as ended:
            launch(recipe.main, recipe.PRESETS, ["--help-all"])
        text = capsys.readouterr().out
        assert ended.value.code == 0 and "Presets" in text
        explained = flags_in(text)
        taken = inspect.signature(recipe.main).parameters
        assert {"--model", *(["--dataset"] if "dataset" in taken else [])} <= explained.keys()
        assert not [flag for flag, said in explained.items() if not said]
        for parameter in inspect.signature(recipe.main).parameters.values():
            if is_dataclass(parameter.default):
                head = type(parameter.default).__doc__.split(".")[0].split("\n")[0]
                own = f"  {parameter.name}: " in recipe.main.__doc__
                assert own or head[:40] in text, parameter.name


def flags_in(text):
    """Each flag of a --help text with what is said about it before "(default: …)"; boxes may be drawn or not."""
    found, flag = {}, None
    for line in text.splitlines():
        indent, inside = re.match(r"[│|]?( *)(.*?)[│| ]*$", line).groups()
        if len(indent) < 4 and re.match(r"--?[a-z]", inside):
            # The text stands on the same line where all flags are short.
            head, _, said = inside.partition("  ")
            flag = head.split()[0].rstrip(",")
            found[flag] = said.strip()
        elif flag is not None and len(indent) >= 6:
            found[flag] = f"{found[flag]} {inside}".strip()
        elif not inside:
            flag = None
    return {flag: said.split("(default:")[0].strip() for flag, said in found.items()}


@pytest.fixture(scope="session")
def warm():
    return WarmModels()


@pytest.fixture(scope="session")
def command_line(commands, warm):
    return CommandLine(commands, warm)


@pytest.fixture(scope="session")
def rules():
    return Rules()
