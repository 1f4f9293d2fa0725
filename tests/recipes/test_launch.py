"""How recipes start: presets and their choice, help of common arguments, every recipe's --help."""

from __future__ import annotations

import importlib
import logging
import warnings
from dataclasses import dataclass

import huggingface_hub
import pytest
from transformers.utils import logging as library

from mmrl.model.quiet import quiet_libraries
from mmrl.recipes.__main__ import recipes
from mmrl.recipes.shared.launch import (
    HELP,
    Preset,
    choose_preset,
    explained,
    with_defaults,
)
from mmrl.recipes.shared.miniature import SHARED, miniature


@dataclass(frozen=True)
class Knobs:
    """Two numbers."""

    one: int = 1
    two: int = 2


def recipe(model: str = "a", dataset: str = "b", knobs: Knobs = Knobs(), share: float = 0.5):
    """Do it.

    Args:
        dataset: Ours.
        share: How much.
    """
    return model, dataset, knobs, share


PRESETS = {
    "embedded": Preset("tiny"),
    "7b": Preset("large", 7.0, knobs={"two": 3}),
    "3b": Preset("small", 3.0, model="c"),
    "odd": Preset("no size", share=0.1),
}


def test_a_preset_changes_fields_of_records_and_replaces_the_rest():
    values = PRESETS["7b"].values
    assert with_defaults(recipe, values)() == ("a", "b", Knobs(1, 3), 0.5)
    assert recipe() == ("a", "b", Knobs(1, 2), 0.5), "the recipe itself is left alone"
    with pytest.raises(ValueError, match=r"sets \['knob'\]"):
        with_defaults(recipe, {"knob": {}})


@pytest.mark.parametrize(
    ("name", "model", "dataset", "wanted"),
    [
        ("odd", None, None, "odd"),
        (None, None, None, "embedded"),
        (None, "embedded", "my.jsonl", "embedded"),
        (None, "my/Model-4B-Instruct", None, "3b"),
        (None, "my/Model-72B", None, "7b"),
        (None, "my/model", None, "7b"),
        (None, None, "my.jsonl", "7b"),
    ],
)
def test_the_preset_is_the_named_one_or_the_nearest_in_size(name, model, dataset, wanted):
    assert choose_preset(PRESETS, name, model, dataset) == wanted


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"There is no preset '7'; .*Perhaps you meant '7b'"):
        choose_preset(PRESETS, "7", None, None)


def test_common_arguments_are_explained_once_and_own_lines_go_before():
    text = explained(with_defaults(recipe, {})).__doc__ or ""
    assert f"    model: {HELP['model']}" in text and "    dataset: Ours." in text
    assert HELP["dataset"] not in text and "video_root" not in text


def test_the_miniature_merges_records_and_leaves_out_none():
    preset = miniature(run={"steps": 7}, monitor=None, dataset="mine", papo={"gamma": 1.0})
    assert preset.values["run"] == {**SHARED["run"], "steps": 7}
    assert "monitor" not in preset.values and preset.values["dataset"] == "mine"
    assert preset.values["papo"] == {"gamma": 1.0} and preset.size is None


@pytest.mark.parametrize("name", recipes())
def test_every_flag_of_every_recipe_is_explained(name, rules, capsys):
    rules.settings_are_explained(importlib.import_module(f"mmrl.recipes.{name}"), capsys)


def test_papo_reads_as_a_table_and_an_algorithm_box():
    import mmrl.recipes.papo as papo

    with open(papo.__file__, encoding="utf-8") as file:
        assert len(file.readlines()) <= 80


@pytest.mark.parametrize("downloads", [True, False])
def test_no_bar_of_a_library_stands_between_our_lines(downloads, caplog):
    hub = huggingface_hub.utils
    before = hub.are_progress_bars_disabled()
    try:
        library.enable_progress_bar()
        if not downloads:
            hub.disable_progress_bars()
        quiet_libraries()
        assert not library.is_progress_bar_enabled()
        assert hub.are_progress_bars_disabled() is not downloads
    finally:
        (hub.disable_progress_bars if before else hub.enable_progress_bars)()
    torch_log = logging.getLogger("torch.utils._pytree")
    torch_log.warning("Calling register_constant() on Enum subclasses is deprecated")
    torch_log.warning("something else")
    logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 8s [Retry 4/5].")
    assert [record.message for record in caplog.records] == ["something else"]


def test_what_libraries_will_change_is_not_told_to_users():
    def said(module):
        with warnings.catch_warnings(record=True) as told:
            warnings.resetwarnings()
            quiet_libraries()
            for kind in (FutureWarning, DeprecationWarning, UserWarning):
                warnings.warn_explicit("old name", kind, f"{module}.py", 1, module)
        return [warning.category for warning in told]

    assert said("transformers.modeling_utils") == [UserWarning]
    assert said("my_rewards") == [FutureWarning, DeprecationWarning, UserWarning]
