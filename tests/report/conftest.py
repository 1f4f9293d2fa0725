"""Runs that were never run: folders with the files of one."""

import json

import numpy as np
import pytest

from mmrl.report.pictures import data_uri

DOT = data_uri(np.zeros((8, 8, 3), np.uint8))


@pytest.fixture
def make_run(tmp_path):
    """A function that writes a run's folder: rows by the name of the file they belong to, and its settings."""

    def make(name="run", settings=None, finished=True, **rows):
        folder = tmp_path / name
        folder.mkdir()
        config = {"settings": settings or {"seed": 0}, "environment": {"mmrl": "0"}}
        (folder / "config.json").write_text(json.dumps(config))
        for file, lines in rows.items():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"{file}.jsonl").write_text(text)
        if finished:
            (folder / "finished.json").write_text("{}")
        return folder

    return make


@pytest.fixture
def sample():
    """A function that gives the rows of one sampled group: of samples.jsonl, and its close-up."""

    def group(
        step, prompt="p", answers=2, text="an answer", tokens=3, uri=DOT, question="why?"
    ):
        rows = [
            {
                "step": step,
                "prompt": prompt,
                "question": question,
                "answer": text,
                "truth": "blue",
                "reward": 0.5,
                "parts": {"accuracy": 0.5, "form": None},
                "stop": "eos",
            }
        ] * answers
        spelt = [text[:12]] * tokens
        maps = {"logp": [-0.1] * tokens, "dependence/masked": [0.5] * tokens}
        near = {
            "step": step,
            "prompt": prompt,
            "pictures": {name: [[{"uri": uri, "time": None}]] for name in ("masked", "raw")},
            "answers": [{"tokens": spelt, **maps}] * min(answers, 4),
        }
        return rows, near

    return group
