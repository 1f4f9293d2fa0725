"""Commands that write a single file: never one of others, and not after hours of work."""

from __future__ import annotations

import json
import sqlite3

import pytest

from mmrl.data.drawn.drawn import Drawn
from mmrl.data.pretext.__main__ import main as pretext
from mmrl.ground.outputs import OutputError, alone, refuse_report, write_report
from mmrl.model.policy import Policy
from mmrl.recipes import difficulty, evaluate
from mmrl.recipes.shared.clip_stages import answered, measure_difficulty
from mmrl.recipes.shared.launch import launch
from mmrl.rewards.judge_ledger import Ledger
from mmrl.types import Sampling

THEIRS = {
    "rows": '{"question": "?", "answer": "!"}\n',
    "rows with an index": '{"index": 1, "question": "?"}\n',
    "a page": "<html></html>",
    "a config": '{"model": "x", "dataset": "y"}',
    "text": "notes",
}


def recipe(module):
    def start(file):
        with pytest.raises(SystemExit) as ended:
            flags = ["--model", "embedded", "--output", str(file)]
            launch(module.main, module.PRESETS, ["embedded", *flags])
        return str(ended.value.code)

    return start


def command(*words):
    def start(file, capsys):
        assert pretext([*words, str(file)]) == 2
        return capsys.readouterr().err

    return start


SMALL = ("--preset", "relative-position", "--count", "1")
STARTS = {
    "evaluate": recipe(evaluate),
    "difficulty": recipe(difficulty),
    "preview": command("preview", *SMALL, "--output"),
    "audit": command("audit", *SMALL, "--json"),
    "eval": command("eval", *SMALL, "--json"),
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("held", [*THEIRS, "a folder"])
def test_a_file_of_others_is_left_alone(start, held, tmp_path, capsys):
    file = tmp_path / "file"
    if held == "a folder":
        file.mkdir()
    else:
        file.write_text(THEIRS[held])
    started = STARTS[start]
    said = started(file) if start in ("evaluate", "difficulty") else started(file, capsys)
    assert "--output" in said or "--json" in said
    assert "name a file" in said if held == "a folder" else "it would be lost" in said
    assert held == "a folder" or file.read_text() == THEIRS[held]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_report_replaces_a_report(tmp_path):
    file = tmp_path / "deep" / "report.json"
    for number in (1, 2):
        write_report(file, "evaluation", {"accuracy": number})
    assert json.loads(file.read_text()) == {"mmrl": "evaluation", "accuracy": 2}
    refuse_report(None, "evaluation")
    with pytest.raises(OutputError, match=r"no report of mmrl \(audit\)"):
        refuse_report(file, "audit")


def test_a_difficulty_pass_keeps_to_its_settings_and_loses_one_line_at_most(
    tiny_folder, tmp_path, capsys
):
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32")
    file, short = tmp_path / "d.jsonl", Sampling(1, max_tokens=2)
    prompts = Drawn("clips", size=3, frames=4, fps=1.0)
    measure_difficulty(policy, prompts, file, short, settings={"model": "a"})
    whole = answered(file)
    assert [row["index"] for row in whole] == [0, 1, 2]
    with pytest.raises(OutputError, match=r"other settings:\s+difficulty\.model: was 'a', now"):
        measure_difficulty(policy, prompts, file, short, settings={"model": "b"})
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], lines[2][:20], lines[3][:9]]))
    measure_difficulty(policy, prompts, file, short, settings={"model": "a"})
    assert answered(
        file
    ) == whole and "line 3, 4 cannot be read" in capsys.readouterr().err.replace(
        "lines", "line"
    )
    with alone(file), pytest.raises(OutputError, match="Another process"):
        measure_difficulty(policy, prompts, file, short, settings={"model": "a"})


def test_a_judges_cache_is_no_database_of_others(tmp_path):
    with sqlite3.connect(tmp_path / "theirs.db") as database:
        database.execute("CREATE TABLE holidays (day TEXT)")
    with pytest.raises(ValueError, match=r"database of something else \(it holds holidays\)"):
        Ledger(tmp_path / "theirs.db")
    with sqlite3.connect(tmp_path / "theirs.db") as database:
        tables = database.execute("SELECT name FROM sqlite_master").fetchall()
    assert tables == [("holidays",)]
    for _ in range(2):
        Ledger(tmp_path / "ours.db").close()
