"""Planning: every preset on the machine it is meant for, advised flags, refusal before loading, the command."""

from __future__ import annotations

import importlib
import shlex
from functools import cache
from inspect import signature
from itertools import chain
from pathlib import Path

import pytest

from mmrl.recipes.__main__ import main, recipes
from mmrl.recipes.shared import planning
from mmrl.recipes.shared.launch import Preset, launch, plan_run, resolved
from mmrl.recipes.shared.machines import in_words, machine
from mmrl.recipes.shared.opening import EMBEDDED
from mmrl.recipes.shared.planning import (
    NEEDLESS,
    PRESET_COLUMNS,
    planned,
    preset_row,
    refuse_unfit,
    remedies,
)
from mmrl.training.plan import GIB, Device

RECIPES = {name: importlib.import_module(f"mmrl.recipes.{name}") for name in recipes()}
PUBLISHED = [
    (name, preset)
    for name, recipe in RECIPES.items()
    for preset in recipe.PRESETS
    if preset != EMBEDDED and "load" in signature(recipe.main).parameters
]
SCALE = Path(__file__).parents[2] / "docs" / "scale.md"
BEGIN, END = "<!-- presets: begin -->\n", "<!-- presets: end -->\n"


@cache
def asked(recipe, *argv):
    """A command line as it is understood; nobody changes it."""
    module = RECIPES[recipe]
    return resolved(module.main, module.PRESETS, argv)


def table():
    """The table of `docs/scale.md`."""
    rows = [list(PRESET_COLUMNS), ["---"] * len(PRESET_COLUMNS)]
    for recipe, preset in PUBLISHED:
        meant_for = RECIPES[recipe].PRESETS[preset].machine
        rows.append(preset_row(asked(recipe, preset), meant_for))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


@pytest.mark.parametrize("recipe", sorted({name for name, _ in PUBLISHED}))
def test_every_preset_fits_the_machine_it_is_meant_for(recipe):
    """As it is, or with switches that change neither model nor method."""
    for name, preset in PUBLISHED:
        if name != recipe:
            continue
        meant_for = machine(RECIPES[name].PRESETS[preset].machine)
        flags, fits = remedies(asked(name, preset), meant_for)
        assert fits, preset
        assert all(flag.startswith(NEEDLESS) for flag in flags), (preset, flags)


def test_the_embedded_presets_fit_a_laptop():
    for name, recipe in RECIPES.items():
        preset = recipe.PRESETS[EMBEDDED]
        if preset.values.get("model") == EMBEDDED:
            found, _, _ = planned(asked(name, EMBEDDED), machine(preset.machine))
            assert found.fits, (name, found.phases)


@pytest.mark.parametrize(
    ("recipe", "preset", "on"),
    [("papo", "7b", "80"), ("papo", "7b", "48"), ("dvrp", "7b", "80"), ("sft", "3b", "40")],
)
def test_advised_flags_are_those_of_the_command_line_and_none_is_too_much(recipe, preset, on):
    flags, fits = remedies(asked(recipe, preset), machine(on))
    assert fits and flags
    given = [shlex.split(flag) for flag in flags]
    whole = planned(asked(recipe, preset, *chain(*given)), machine(on))[0]
    assert whole.fits
    for left_out in range(len(given)):
        rest = chain(*given[:left_out], *given[left_out + 1 :])
        assert not planned(asked(recipe, preset, *rest), machine(on))[0].fits


def test_the_plan_speaks_of_what_print_config_prints():
    plain = planned(asked("papo", "7b"), machine("8x80"))
    wide = planned(asked("papo", "7b", "--sampling.group-size", "10"), machine("8x80"))
    assert plain[2].group == 5 and wide[2].group == 10
    assert wide[2].prompts == asked("papo", "7b").arguments["run"].prompts_per_step
    # The reference is there for the KL alone.
    assert plain[2].reference
    assert not planned(asked("papo", "7b", "--grpo.kl", "0"), machine("80"))[2].reference
    lora = planned(asked("papo", "7b", "--lora.rank", "8"), machine("80"))
    assert not lora[2].reference and lora[1].trainable < 0.01 * lora[1].parameters


@pytest.mark.parametrize(
    ("recipe", "preset", "graphs"),
    [
        ("papo", "7b", 1),
        ("dvrp", "7b", 3),
        ("vppo", "7b", 1),
        ("vogue", "7b", 1),
        ("sft", "3b", 1),
    ],
)
def test_graphs_of_an_update_are_those_that_the_recipe_trains(
    recipe, preset, graphs, monkeypatch
):
    module, seen = RECIPES[recipe], {}
    for name in ("open_policy", "fit"):
        monkeypatch.setattr(module, name, lambda *_, **__: None)
    monkeypatch.setattr(module, "open_data", lambda *_: (None, None))
    monkeypatch.setattr(module, "Trainer", lambda policy, **settings: seen.update(settings))
    call = asked(recipe, preset)
    if recipe != "sft":
        module.main(**call.arguments)
        seen["rewards"].close()
        found = planning.plan_scores(
            call.arguments["grpo"],
            seen["objectives"],
            seen["branches"],
            call.arguments["run"].updates_per_step,
        )
        assert sum(one.grad for one in found.live.values()) == graphs
    assert planned(call, machine("80"))[2].graphs == graphs


def test_a_run_that_cannot_fit_is_refused_before_anything_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(planning, "this_machine", lambda where: Device("cpu", 4 * GIB))
    called = []
    papo = RECIPES["papo"]
    monkeypatch.setattr(papo, "open_data", lambda *_: called.append("data"))
    with pytest.raises(SystemExit) as ended:
        launch(papo.main, papo.PRESETS, ["3b"])
    said = str(ended.value)
    assert "needs about" in said and "the free memory of this computer is 4.0 GiB" in said
    assert "--load.no-check-memory" in said and not called
    refuse_unfit(asked("papo", "3b", "--load.no-check-memory"))
    refuse_unfit(asked("papo", EMBEDDED))


def test_what_may_fit_is_told_and_goes_on(monkeypatch, capsys):
    # The weights have room, but not even one of the longest questions: shorter ones may have.
    call = asked("evaluate", "real")
    device = Device("cuda", 18 * GIB)
    found = planned(call, device)[0]
    assert not found.fits and not found.cannot
    monkeypatch.setattr(planning, "resolve_device", lambda name: None)
    monkeypatch.setattr(planning, "this_machine", lambda where: device)
    refuse_unfit(call)
    assert "It may fit while" in capsys.readouterr().err


def test_a_model_that_is_nowhere_is_said_and_not_guessed(monkeypatch, capsys):
    call = asked("papo", "7b", "--model", "someone/else-9B")
    monkeypatch.setattr(planning, "this_machine", lambda where: Device("cpu", GIB))
    refuse_unfit(call)
    assert "Memory is not planned: The config of someone/else-9B" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="neither in a folder nor in the cache of the hub"):
        plan_run(
            RECIPES["papo"].main, RECIPES["papo"].PRESETS, ["7b", "--model", "someone/else-9B"]
        )


def test_the_report_has_phases_verdict_and_seconds_only_at_a_given_rate(capsys):
    papo = RECIPES["papo"]
    plan_run(papo.main, papo.PRESETS, ["7b", "--machine", "80"])
    said = capsys.readouterr().out
    for word in (
        "load",
        "generate",
        "update",
        "optimize",
        "masters",
        "It does not fit",
        "--optim.",
    ):
        assert word in said
    assert " s a step" not in said
    plan_run(papo.main, papo.PRESETS, ["7b", "--machine=8x80", "--tflops", "400"])
    said = capsys.readouterr().out
    assert " s a step at the given rate" in said and "It fits" in said
    assert "what each of 8 devices holds under torchrun, with --load.shard auto" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--machine", "H100"], "--machine is 'H100'; write the GiB"),
        (["--machine", "0x80"], "--machine is '0x80'"),
        (["--machine", "80", "--tflops", "fast"], "--tflops is 'fast'; it must be a positive"),
        (["--tflops", "400"], "name it with --machine"),
        (["--machine", "80", "--images", "-1"], "--images is '-1'"),
    ],
)
def test_flags_of_the_plan_are_checked(given, said):
    papo = RECIPES["papo"]
    with pytest.raises(SystemExit) as ended:
        plan_run(papo.main, papo.PRESETS, ["7b", *given])
    assert said in str(ended.value)


def test_machines_in_words():
    assert machine("8x80") == Device("cuda", 80 * GIB, 8)
    assert machine("cpu:24") == Device("cpu", 24 * GIB)
    assert in_words(machine("80")) == "a GPU with 80 GiB"
    assert (
        Preset("note").machine == "8x80" and Preset("note", model=EMBEDDED).machine == "cpu:8"
    )


def test_the_table_of_the_documentation_is_what_the_plan_computes():
    text = SCALE.read_text(encoding="utf-8")
    assert text.split(BEGIN)[1].split(END)[0] == table()


def test_what_loads_no_model_on_a_device_has_no_plan():
    with pytest.raises(SystemExit, match="nothing to plan"):
        main(["plan", "next_extrapolation"])


if __name__ == "__main__":
    whole = SCALE.read_text(encoding="utf-8")
    before, after = whole.split(BEGIN)[0], whole.split(END)[1]
    SCALE.write_text(f"{before}{BEGIN}{table()}{END}{after}", encoding="utf-8")
