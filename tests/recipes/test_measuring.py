"""A benchmark from the command's function: graded as published, official numbers, answers kept beside the report."""

import base64
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mmrl import Sampling
from mmrl.recipes import evaluate
from mmrl.recipes.shared import measuring
from mmrl.recipes.shared.opening import Load


def said(group, text, accuracy, **row):
    prompt = SimpleNamespace(extra=row)
    return SimpleNamespace(
        group=group, text=text, parts={"accuracy": accuracy}, reward=None, prompt=prompt
    )


def test_sampled_numbers_by_hand():
    answers = [said(0, t, a) for t, a in (("\\boxed{4}", 1.0), ("\\boxed{5}", 0.0))]
    answers += [said(0, "\\boxed{5}", 0.0), said(0, "<think>4", 0.0)]
    answers += [said(1, "\\boxed{B. dog}", 1.0), said(1, "\\boxed{b. dog}", 1.0)]
    answers += [said(1, "\\boxed{A}", 0.0), said(1, "\\boxed{C}", 0.0)]
    found = measuring.sampled_numbers(answers, (1, 4, 8))
    assert found == {"mean@1": 1.0, "mean@4": 0.375, "majority@4": 0.5}
    assert measuring.sampled_numbers([], (1,)) == {}


def test_published_numbers_by_hand():
    rows = [("a", "x", 1.0), ("a", "x", 0.0), ("b", "y", 1.0), ("a", "z", 1.0)]
    answers = [
        said(n, "", score, form="yes_no", chance=0.5, category=category, group_pair=pair)
        for n, (category, pair, score) in enumerate(rows)
    ]
    found = measuring.published_numbers(answers)
    assert found == pytest.approx(
        {
            "above_chance": 0.5,
            "accuracy/a": 2 / 3,
            "accuracy/b": 1.0,
            "category_mean": 5 / 6,
            "all_right_pair": 2 / 3,
        }
    )
    assert measuring.published_numbers([said(0, "", 1.0)]) == {}


def test_a_model_is_known_by_its_content(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.bin").write_bytes(b"1")
    first = measuring.model_content(str(tmp_path))
    assert measuring.model_content(str(tmp_path)) == first
    (tmp_path / "a.bin").write_bytes(b"2")
    assert measuring.model_content(str(tmp_path)) != first


def test_a_benchmark_is_measured_and_its_answers_are_kept(tmp_path, tiny_folder, capsys):
    file = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(file, "PNG")
    row = {
        **{"category": "VD", "subcategory": "illusion", "set_id": "0", "figure_id": "1"},
        **{"question": "Same size?", "gt_answer": "1"},
        "image": base64.b64encode(file.getvalue()).decode(),
    }
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({**row, "question_id": n}) + "\n" for n in range(2)))
    output = tmp_path / "hallusion.json"
    for _ in range(2):
        evaluate.main(
            model=str(tiny_folder),
            dataset=f"benchmark:hallusionbench={data}",
            sampling=Sampling(max_tokens=3, temperature=1.0),
            samples=2,
            ks=(1, 2),
            output=output,
            load=Load(min_pixels=None, max_pixels=None),
        )
    report = json.loads(output.read_text())
    assert {"accuracy", "all_right_question", "all_right_figure", "above_chance"} <= {*report}
    assert {"mean@2", "majority@2", "pass@2", "accuracy/VD"} <= {*report}
    assert len((tmp_path / "hallusion.answers.jsonl").read_text().splitlines()) == 1 + 2 * 2
    told = capsys.readouterr().out
    assert told.count("answers to 4 questions are those of") == 1
