"""The soak run in small: one kill, damaged pictures, failing rewards; and what it would notice."""

from __future__ import annotations

import argparse
import importlib
import json
import random
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = (
    "--steps 8 --kills 1 --rows 40 --bad 0.2 --prompts 2 --faults 0.2 --kinds raise nan text"
)


@pytest.fixture(scope="module")
def done(commands, tmp_path_factory):
    """Folder of both runs, and what was printed last."""
    folder = tmp_path_factory.mktemp("soak")
    script = str(ROOT / "benchmarks" / "soak.py")
    ended = commands([script, *SMALL.split(), "--output", str(folder)], cwd=folder)
    assert ended.returncode in (0, 1), ended.stderr
    return folder, json.loads(ended.stdout.splitlines()[-1]), ended


@pytest.fixture
def soak(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("soak")


def test_a_short_soak_breaks_no_promise(done):
    _, found, ended = done
    assert ended.returncode == 0 and found["broken"] == [] and found["value"] == 0, found
    assert "disturbed: code -9" in ended.stderr
    assert found["bad_rows"] >= 1 and set(found["faults"]) <= {
        "exception",
        "nonfinite",
        "not_a_number",
    }


def test_a_soak_sees_what_breaks(done, soak, monkeypatch, tmp_path):
    folder, _, _ = done
    args = argparse.Namespace(steps=8, kills=1, rows=40, bad=0.2, prompts=2, faults=0.2)
    dead, whole = soak.Lifetime(-signal.SIGKILL), soak.Lifetime(0)
    lives = {"peace": [whole], "disturbed": [dead, whole]}
    assert all(soak.judged(folder, args, lives)["holds"].values())
    late = {**lives, "disturbed": [whole, whole]}
    assert not soak.judged(folder, args, late)["holds"]["killed"]
    swollen = soak.Lifetime(0, [500.0 + 2 * step for step in range(100)])
    assert not soak.judged(folder, args, {**lives, "peace": [swollen]})["holds"]["flat_memory"]
    longer = argparse.Namespace(**{**vars(args), "steps": 9})
    assert not soak.judged(folder, longer, lives)["holds"]["finished"]
    # A row that is met again in a second pass over the rows is one row.
    (tmp_path / "skipped.jsonl").write_text('{"position": 3, "reason": "a"}\n' * 2)
    assert soak.reported_rows(tmp_path) == {"a"}
    other = {"peace": "a", "disturbed": "b"}
    monkeypatch.setattr(soak, "digest", lambda output: other[output.name])
    monkeypatch.setattr(soak, "reported_rows", lambda output: {output.name})
    holds = soak.judged(folder, args, lives)["holds"]
    assert not holds["same_weights"] and not holds["bad_rows_reported"]


def test_kills_come_one_in_each_stretch_of_the_run(soak):
    for kills in (1, 3, 7):
        moments = soak.kill_moments(2000, kills, random.Random(0))
        assert moments == sorted(moments) and len(moments) == kills
        assert all(1 <= moment < 1999 for moment in moments)


def test_a_sweep_of_kills_sees_what_differs(soak, monkeypatch, tmp_path):
    sweep = importlib.import_module("kill_sweep")

    def run(name, weights=b"w", memory=1, reward=0.5):
        at = tmp_path / name / "checkpoints" / "step-4"
        at.mkdir(parents=True)
        (at / "weights.safetensors").write_bytes(weights)
        (at / "optimizer.pt").write_bytes(b"o")
        # Ids of runs differ, and so do the seconds of a step.
        (at / "state.json").write_text(json.dumps({"run": name, "remembered": memory}))
        row = {"step": 4, "reward/total": reward, "time/total": len(name)}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return tmp_path / name

    peace = run("peace")
    assert sweep.differing(peace, run("same"), 4) == []
    assert sweep.differing(peace, run("weights", b"v"), 4) == ["weights.safetensors differs"]
    assert sweep.differing(peace, run("memory", memory=2), 4) == [
        "the state differs in remembered"
    ]
    assert sweep.differing(peace, run("metrics", reward=0.6), 4) == ["metrics differ"]
    with pytest.raises(SystemExit):
        sweep.main(["papo"])
    words = sweep.words_of("deepsearch", tmp_path, 4)
    assert "--sampling.group-size" not in words, "that recipe keeps its own"
    assert words[words.index("--data.limit") + 1] == "6"
