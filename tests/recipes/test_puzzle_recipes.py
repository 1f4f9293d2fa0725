"""NP-Engine, HopChain and MR-RLVR through their real command lines, and what their prompts are made of."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmrl.data.drawn.drawn import Drawn
from mmrl.data.pretext.presets import NP_LEVELS, NP_SIZES, preset
from mmrl.data.pretext.tasks import np_problems
from mmrl.ground.faults import BadRow
from mmrl.recipes.shared.launch import choose_preset
from mmrl.recipes.shared.pretext_data import Puzzles, Stages, open_stages
from mmrl.recipes.shared.row_accuracy import RowAccuracy
from mmrl.recipes.shared.rows_beside import RowsBeside, puzzle_correct, puzzle_pay
from mmrl.rewards.functions import tagged_accuracy
from mmrl.training.run import Run
from mmrl.types import Prompt, Prompts, Rollout

NAMES = ("np_engine", "hopchain", "mr_rlvr", "chain_of_symbol", "causal_reasoning")
METRICS = {
    "chain_of_symbol": ("reward/answer", "reward/prefix", "reward/accuracy"),
    "causal_reasoning": ("reward/answer", "reward/length", "reward/accuracy"),
    "np_engine": ("reward/quality", "reward/feasible", "reward/ratio", "reward/accuracy"),
    "hopchain": ("reward/chain", "reward/accuracy"),
}


def moved(folder: Path, start: Path) -> list[str]:
    """Names of the parameters that differ."""
    before, after = (load_file(at / "model.safetensors") for at in (start, folder / "model"))
    return [name for name in after if not torch.equal(before[name], after[name])]


@pytest.mark.parametrize("name", METRICS)
def test_a_recipe_trains_with_no_arguments(name, warm, command_line, tmp_path):
    done = command_line(name, tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"recipes.{name} embedded" in done.stderr and f"{name}: " in done.stdout
    rows = command_line.metrics(tmp_path / "out")
    assert rows[0]["step"] == 0 and rows[-1]["step"] >= 1 and "eval/accuracy" in rows[-1]
    assert not set(METRICS[name]) - rows[-1].keys(), sorted(rows[-1])
    assert moved(tmp_path / "out", warm(name)), "no parameter moved"


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_fits_its_recipe(name, rules):
    recipe = importlib.import_module(f"mmrl.recipes.{name}")
    rules.presets_fit(recipe)
    assert choose_preset(recipe.PRESETS, None, "my/Qwen2.5-VL-7B", None) in ("7b", "8b")


# NP-Engine


def test_the_ten_problems_are_asked_in_words_and_as_pictures():
    words, pictures = preset("np-engine"), preset("np-engine-picture")
    for mix, shown in ((words, "text"), (pictures, "picture")):
        assert {part.task for part in mix.ingredients} == set(NP_SIZES) and len(NP_SIZES) == 10
        assert {part.knobs["show"] for part in mix.ingredients} == {shown}
        share = Counter()
        for part in mix.ingredients:
            share[part.task] += part.weight
        assert len({round(weight, 9) for weight in share.values()}) == 1, "the same of each"


def test_levels_are_those_of_the_papers_generators():
    """Sizes read in the scripts `generate_questions.py`; see the presets for where ours cannot reach."""
    for level, name in enumerate(NP_LEVELS):
        sizes: dict[str, list[int]] = {}
        for part in preset(name).ingredients:
            sizes.setdefault(part.task, []).append(int(part.knobs["size"]))
        for task, levels in NP_SIZES.items():
            assert (min(sizes[task]), max(sizes[task])) == levels[level]
    assert NP_SIZES["np-tsp"] == ((10, 20), (20, 30), (35, 45))
    assert NP_SIZES["np-clique"] == ((4, 8), (8, 12), (12, 16))
    whole = [part for name in NP_LEVELS for part in preset(name).ingredients]
    assert list(preset("np-engine").ingredients) == whole


def kinds(prompts: Prompts, indices: range) -> set[tuple[str, int]]:
    """Problem and size of each of these questions."""
    asked = [prompts[index].extra for index in indices]
    return {(extra["task"], extra["knobs"]["size"]) for extra in asked}


def test_training_goes_from_easy_to_hard_and_the_evaluation_asks_all(tmp_path, monkeypatch):
    # Levels of chance are simulated, which takes seconds for large tours, and are not looked at here.
    monkeypatch.setattr(np_problems, "_simulated", lambda task, size: (0.0, 0.0))
    run = Run(output=tmp_path, steps=3, prompts_per_step=8)
    data = open_stages("drawn", Puzzles("np-engine"), run)
    easy, medium, hard = (
        {(part.task, part.knobs["size"]) for part in preset(name).ingredients}
        for name in NP_LEVELS
    )
    for part, allowed in enumerate((easy, medium, hard)):
        # The first and the last question of each stage, and some between.
        assert kinds(data.train, range(8 * part, 8 * part + 8, 2)) <= allowed
        assert kinds(data.train, range(8 * part + 7, 8 * part + 8)) <= allowed
    assert kinds(data.train, range(100, 102)) <= hard, "the last stage goes on"
    asked = kinds(data.heldout, range(16))
    assert asked - hard - medium and asked - easy - medium, "easy and hard ones"
    at_once = open_stages("drawn", Puzzles("np-engine"), run, follow=False)
    assert kinds(at_once.train, range(8)) - easy, "the first questions are of all levels"


class Counted(Prompts):
    """Prompts that say where they are from, and count two things at a time."""

    def __init__(self, name: str, size: int | None = None) -> None:
        self.name, self.size = name, size

    def __getitem__(self, index: int) -> Prompt:
        return Prompt(f"{self.name}{index}", ({"role": "user", "content": "?"},), answer="a")

    def drain(self) -> dict[str, int]:
        return {f"{self.name}/read": 1, "read": 1}


def test_stages_follow_one_another_by_index():
    stages = Stages([Counted("a"), Counted("b")], each=3)
    assert [stages[i].id for i in range(8)] == ["a0", "a1", "a2", "b3", "b4", "b5", "b6", "b7"]
    assert stages.drain() == {"a/read": 1, "b/read": 1, "read": 2} and stages.size is None


# HopChain


def test_chains_lead_through_three_to_six_objects():
    from mmrl.data.pretext.stream.sources import DrawnSource
    from mmrl.data.pretext.stream.stream import SampleStream

    samples = list(SampleStream(DrawnSource(), preset("hopchain"), seed=3).first(12))
    # What is neither the reading of a number nor what is done with it leads to an object.
    visited = {len(sample.meta["program"]) - 1 for sample in samples}
    assert visited <= {3, 4, 5, 6} and len(visited) >= 3
    assert {sample.task for sample in samples} == {"hop-chain", "hop-chain-photo"}
    assert all(isinstance(sample.truth["answer"], int) for sample in samples)
    for name in ("hopchain-half", "hopchain-last"):
        whole = [(p.task, p.knobs["hops"]) for p in preset("hopchain").ingredients]
        assert [(p.task, p.knobs["hops"]) for p in preset(name).ingredients] == whole


def test_rows_stand_beside_the_chains_and_each_is_paid_by_its_own_rule(command_line, tmp_path):
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps({"question": f"What is {n} + 1?", "answer": n + 1}) for n in range(20)]
    file.write_text("\n".join(lines), encoding="utf-8")
    asked = ("embedded", "--rows", str(file), "--data.style", "tag", "--run.sample-every", "1")
    done = command_line("hopchain", tmp_path / "out", *asked)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = command_line.metrics(tmp_path / "out")[1:]
    assert any("reward/rows" in row for row in rows) and any(
        "reward/chain" in row for row in rows
    )
    refused = command_line("hopchain", tmp_path / "no", *asked, "--rows-share", "1.5")
    assert refused.returncode != 0 and "--rows-share is 1.5" in refused.stderr


def test_a_share_of_the_indices_are_rows_and_each_pass_takes_each_row_once():
    prompts = RowsBeside(Counted("puzzle"), Counted("row", 50), share=0.4, seed=5)
    ids = [prompts[index].id for index in range(400)]
    assert ids == [prompts[index].id for index in range(400)], "the same at any time"
    rows = [name for name in ids if name.startswith("row")]
    assert 0.3 < len(rows) / len(ids) < 0.5
    assert max(Counter(rows[:20]).values()) == 1, "no row twice within a pass"
    assert prompts.drain() == {"puzzle/read": 1, "row/read": 1, "read": 2}


def rollout(prompt: Prompt, text: str) -> Rollout:
    none = torch.zeros(0, dtype=torch.long)
    return Rollout(prompt, 0, none, none, none.to(torch.uint8), text, "eos")


def test_pay_that_is_not_of_the_kind_is_not_available(tmp_path):
    data = open_stages("drawn", Puzzles("masked-fill"), Run(output=tmp_path, steps=1))
    puzzle = data.train[0]
    right, row = rollout(puzzle, puzzle.extra["target"]), Counted("row")[0]
    answered = rollout(row, "<answer>a</answer>")
    assert puzzle_pay(right) == puzzle_correct(right) == 1.0
    assert puzzle_pay(answered) is None and puzzle_correct(answered) is None
    accuracy = RowAccuracy(tagged_accuracy)
    assert accuracy(answered) == 1.0 and accuracy(right) is None
    assert accuracy(replace(answered, text="<answer>b</answer>")) == 0.0


# MR-RLVR


def test_the_first_stage_is_a_run_of_its_own_and_the_second_starts_from_it(
    warm, command_line, tmp_path
):
    done = command_line("mr_rlvr", tmp_path / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "recipes.mr_rlvr embedded" in done.stderr
    first, second = tmp_path / "out" / "stage1", tmp_path / "out"
    assert {"reward/accuracy", "reward/format", "eval/accuracy"} <= set(
        command_line.metrics(second)[-1]
    )
    assert "reward/solution" in command_line.metrics(first)[-1]
    assert "reward/solution" not in command_line.metrics(second)[-1]
    assert moved(first, warm("mr_rlvr")), "the first stage trains"
    assert moved(second, first / "model"), "and the second goes on from it"
    # Two steps in all, of which four in ten (rounded) belong to the first stage.
    assert (
        command_line.metrics(first)[-1]["step"] == command_line.metrics(second)[-1]["step"] == 1
    )
    again = command_line("mr_rlvr", tmp_path / "out")
    assert again.returncode == 0, again.stderr[-3000:]
    assert command_line.metrics(first)[-1]["step"] == 1, "a finished stage is not made again"


def test_without_the_first_stage_it_is_plain_rl(command_line, tmp_path):
    done = command_line("mr_rlvr", tmp_path / "out", "embedded", "--solutions.share", "0")
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (tmp_path / "out" / "stage1").exists()
    assert command_line.metrics(tmp_path / "out")[-1]["step"] == 2


def test_rows_of_a_user_become_questions_about_their_solutions(tmp_path):
    from mmrl.recipes.shared.opening import Data
    from mmrl.recipes.shared.solution_data import Solutions, open_solutions

    file = tmp_path / "rows.jsonl"
    solution = (
        "1. Let x = {n}.\n2. Then y = x + 3 = {m}.\n3. So z = 2y = {k}.\n4. Thus z - 1 = {e}."
    )
    lines = []
    for n in range(11, 41):
        told = solution.format(n=n, m=n + 3, k=2 * n + 6, e=2 * n + 5)
        lines.append({"question": "What is z - 1?", "answer": 2 * n + 5, "solution": told})
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    questions = open_solutions(str(file), Data(style="answer"), Solutions(), seed=1)
    asked = [questions[index] for index in range(questions.size or 0)]
    tasks = Counter(prompt.extra["task"] for prompt in asked)
    assert set(tasks) == {"masked-fill", "step-reorder"} and min(tasks.values()) > 5
    for prompt in asked:
        words = prompt.messages[-1]["content"]
        assert words[0]["text"].startswith("What is z - 1?"), (
            "the row's own question comes first"
        )
        assert "<think>" in words[-1]["text"] and "<answer>" in words[-1]["text"]
        assert puzzle_pay(rollout(prompt, prompt.extra["target"])) == 1.0
        assert puzzle_pay(rollout(prompt, "<think>no</think><answer>?</answer>")) == 0.0
    assert asked[0].id == questions[0].id and asked[0].messages == questions[0].messages


def test_rows_without_a_usable_solution_are_bad_rows():
    from mmrl.data.pretext.surface import Surface
    from mmrl.recipes.shared.solution_data import SolutionQuestions, Solutions, surface_of

    class Told(Counted):
        def __getitem__(self, index: int) -> Prompt:
            extra = (
                {} if index == 0 else {"solution": "Too short." if index == 1 else "a\n" * 9}
            )
            return replace(super().__getitem__(index), extra=extra)

    questions = SolutionQuestions(Told("row", 3), Solutions(), Surface())
    with pytest.raises(
        BadRow, match=r"row0: column 'solution' holds NoneType.*solutions\.column"
    ):
        questions[0]
    with pytest.raises(BadRow, match=r"row1: the solution has fewer than 4 steps"):
        questions[1]
    with pytest.raises(BadRow, match=r"row2: "):
        questions[2]
    with pytest.raises(ValueError, match=r"--data\.style is 'objects'"):
        surface_of("objects")
    with pytest.raises(ValueError, match=r"Solutions\.share is 1"):
        Solutions(share=1.0)


def test_the_embedded_solutions_say_what_the_cells_hold():
    from mmrl.recipes.shared.solution_data import OBSERVED, Observed

    prompt = Observed(Drawn("lookup", cells=2, size_px=32))[3]
    steps = prompt.extra[OBSERVED].split("\n")
    assert len(steps) == 4 and steps[0].startswith("row 1 column 1 = ")
    asked = f"row {prompt.extra['row']} column {prompt.extra['column']} = {prompt.answer}"
    assert asked in steps


def test_the_table_names_the_recipes():
    text = (Path(__file__).parents[2] / "recipes" / "README.md").read_text()
    for name in NAMES:
        assert f"[{name}.py]({name}.py)" in text and f"recipes.{name}" in text
