"""The tools of a run are made of its settings, as its recipe made them; other runs have none."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from mmrl.recipes.shared.run_tools import tools_of, tools_of_run
from mmrl.types import Prompt

POLICY = SimpleNamespace(processing=None)
QUESTION = Prompt("q", [{"role": "user", "content": "How much is 6 * 7?"}])


def known(calculator, told=True, turns=3):
    tools = {"calculator": calculator, "python": False, "told": told}
    return {"tools": tools, "use": {"max_turns": turns}, "dataset": "train.jsonl"}


def test_tools_are_those_that_the_run_was_started_with(tmp_path):
    found = tools_of("arpo", known(True), POLICY, None)
    assert [tool.name for tool in found.toolbox.tools] == ["calculator"]
    assert found.toolbox.use.max_turns == 3
    (asked,) = found.asked([QUESTION])
    assert "<calc>" in str(asked.messages) and "6 * 7?" in str(asked.messages)
    silent = tools_of("arpo", known(True, told=False), POLICY, None)
    assert silent.asked([QUESTION]) == [QUESTION] and silent.mark != found.mark
    assert tools_of("arpo", known(True), POLICY, None).mark == found.mark
    run = {"run": {}, "settings": {}, "recipe": {"recipe": "arpo", "arguments": known(True)}}
    (tmp_path / "config.json").write_text(json.dumps(run))
    assert tools_of_run(tmp_path, POLICY, None).mark == found.mark


def test_runs_without_tools_have_none(tmp_path):
    assert tools_of("arpo", known(False), POLICY, None) is None
    assert tools_of("grpo", {"dataset": "x"}, POLICY, None) is None
    assert tools_of("no_recipe_of_ours", known(True), POLICY, None) is None
    assert tools_of_run(tmp_path, POLICY, None) is None
    for recipe in (None, {"recipe": "../arpo", "arguments": known(True)}):
        run = {"run": {}, "settings": {}, "recipe": recipe}
        (tmp_path / "config.json").write_text(json.dumps(run))
        assert tools_of_run(tmp_path, POLICY, None) is None
    with pytest.raises(ValueError, match="max_turns"):
        tools_of("arpo", known(True, turns=0), POLICY, None)
