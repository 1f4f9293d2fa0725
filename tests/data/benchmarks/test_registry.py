"""Every benchmark on rows of its published schema, made here: read as prompts, asked and graded."""

import base64
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmrl.data.benchmarks.grading import graded
from mmrl.data.benchmarks.record import adapted
from mmrl.data.benchmarks.registry import BENCHMARKS, find, place_of
from mmrl.data.grounding.formats import is_grounding, read_rows
from mmrl.data.rows.sources import load_prompts
from mmrl.ground.faults import Fault


def picture():
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


P = picture()
# Name -> (row, a right reply's content, a wrong one's, answer as read, what the question must show).
ROWS = {
    "geometry3k": (
        {"images": [P], "problem": "Find x.", "answer": "\\frac{3}{2}", "id": 7},
        *("1.5", "2", "\\frac{3}{2}", "Find x."),
    ),
    "mathvista": (
        {
            **{"pid": "1", "question": "How wide?", "image": "images/1.jpg", "decoded_image": P},
            **{"choices": None, "unit": "m", "precision": 1.0, "answer": "1.2"},
            **{"question_type": "free_form", "answer_type": "float", "metadata": {"task": "t"}},
        },
        *("1.21", "1.4", "1.2", "How wide? (unit: m)"),
    ),
    "mathverse": (
        {
            **{"sample_index": "1", "problem_index": "1", "problem_version": "Text Lite"},
            **{"question": "Which?\nChoices:\nA:1\nB:2", "image": P, "answer": "B"},
            **{"question_type": "multi-choice"},
        },
        *("B", "A", "B", "Which?"),
    ),
    "mathverse-vision-only": (
        {
            **{"sample_index": "5", "problem_index": "1", "problem_version": "Vision Only"},
            **{"question": "", "image": P, "answer": "12", "question_type": "free-form"},
        },
        *("12", "13", "12", "picture"),
    ),
    "we-math": (
        {
            **{"ID": "1", "key": "2steps_1", "question": "Area?", "answer": "B", "image_path": P},
            "option": "A. 3; B. 4; C. 5; D. No correct answer",
        },
        *("B", "C", "B", "B. 4"),
    ),
    "mmk12": (
        {"id": "a", "question": "Angle?", "answer": "35°", "subject": "math", "image": P},
        *("35", "36", "35°", "Angle?"),
    ),
    "logicvista": (
        {"question": "Which two?\nA, B, C", "answer": "A, C", "image": P},
        *("C and A", "A", "A, C", "Which two?"),
    ),
    "mmmu-pro": (
        {
            **{"id": "t1", "question": "What is <image 1>?", "options": "['a cat', 'a dog']"},
            **{"answer": "B", "subject": "Art", "image_1": P},
            **{f"image_{n}": None for n in range(2, 8)},
        },
        *("a dog", "a cat", "B", "B. a dog"),
    ),
    "mmmu-pro-vision": (
        {"id": "t2", "image": P, "options": "['a', 'b']", "answer": "J", "subject": "Art"},
        *("(J)", "(I)", "J", "picture"),
    ),
    "mathvision": (
        {
            **{"id": "4", "question": "How many? <image1>", "options": [], "decoded_image": P},
            **{"image": "images/4.jpg", "answer": "7", "level": 2, "subject": "counting"},
        },
        *("7", "8", "7", "How many?"),
    ),
    "dynamath": (
        {
            **{"id": "1", "question": "Slope?", "image": "1.png", "decoded_image": P},
            **{"ground_truth": "-2.0", "answer_type": "float", "subject": "algebra"},
        },
        *("-2", "2", "-2.0", "Slope?"),
    ),
    "clevr-count": (
        {"image": P, "problem": "How many spheres?", "solution": "<answer> 5 </answer>"},
        *("5", "6", "5", "How many spheres?"),
    ),
    "superclevr": (
        {"image_path": P, "question": "How many cars?", "ground_truth": 3},
        *("There are 3", "There are 4", 3, "How many cars?"),
    ),
    "tallyqa": (
        {"image": P, "question": "How many cows?", "answer": 2, "issimple": True, "question_id": 9},
        *("2", "3", 2, "How many cows?"),
    ),
    "countbenchqa": (
        {"image": P, "question": "How many cups?", "number": 4, "text": "four cups"},
        *("4", "four hundred", 4, "How many cups?"),
    ),
    "hallusionbench": (
        {
            **{"category": "VD", "subcategory": "illusion", "set_id": "0", "figure_id": "1"},
            **{"question_id": "0", "question": "Same size?", "gt_answer": "1", "image": P},
        },
        *("Yes, they are.", "No.", "yes", "Same size?"),
    ),
    "mmstar": (
        {
            **{"index": 0, "question": "Which?\nOptions: A: red, B: blue", "image": P},
            **{"answer": "A", "category": "coarse", "l2_category": "x"},
        },
        *("A", "B", "A", "A: red"),
    ),
    "blink": (
        {
            **{"idx": "v_1", "question": "Q", "sub_task": "Counting", "answer": "(B)"},
            **{"prompt": "How many?\n(A) 0\n(B) 1", "choices": ["0", "1"]},
            **{"image_1": P, "image_2": P, "image_3": None, "image_4": None},
        },
        *("(B)", "(A)", "B", "(B) 1"),
    ),
    "vstar": (
        {
            **{"text": "Colour?\n(A) red\n(B) blue", "label": "A", "image": P},
            **{"category": "direct_attributes", "question_id": "0"},
        },
        *("A", "B", "A", "(A) red"),
    ),
    "hr-bench-4k": (
        {
            **{"index": 0, "question": "Where?", "A": "left", "B": "right", "C": "up", "D": "down"},
            **{"answer": "C", "image": P, "category": "single", "cycle_category": "0"},
        },
        *("up", "down", "C", "C. up"),
    ),
    "mmvp": (
        {
            **{"Index": 2, "Question": "Eyes?", "Options": "(a) Open (b) Closed"},
            **{"Correct Answer": "(b)", "image": P},
        },
        *("(b)", "(a)", "B", "B. Closed"),
    ),
    "cv-bench": (
        {
            **{"idx": 1, "type": "2D", "task": "Count", "image": P, "question": "Chairs?"},
            **{"choices": ["0", "3"], "answer": "(B)", "prompt": "x", "source": "COCO"},
        },
        *("3", "0", "B", "B. 3"),
    ),
    "video-mme": (
        {
            **{"videoID": "clip", "question_id": "1-1", "question": "Who?", "duration": "short"},
            **{"options": ["A. Ann.", "B. Bob."], "answer": "B"},
        },
        *("Bob.", "Ann.", "B", "B. Bob."),
    ),
    "mvbench": (
        {"video": "clip.mp4", "question": "What?", "candidates": ["up", "down"], "answer": "down"},
        *("B", "A", "B", "B. down"),
    ),
    "tempcompass": (
        {
            **{"video_id": "clip", "question": "What?\nA. runs\nB. sits", "answer": "B. sits"},
            "dim": "action",
        },
        *("B", "A", "B", "A. runs"),
    ),
    "tempcompass-yes-no": (
        {"video_id": "clip", "question": "Does it run?", "answer": "no", "dim": "action"},
        *("No", "Yes", "no", "Does it run?"),
    ),
    "mmvu": (
        {
            **{"id": "v_0", "video_path": "clip.mp4", "question": "Which?", "answer": "B"},
            **{"question_type": "multiple-choice", "choices": {"A": "ice", "B": "fire"}},
        },
        *("fire", "ice", "B", "B. fire"),
    ),
    "vsi-bench": (
        {
            **{"id": 0, "dataset": "d", "scene_name": "clip", "question": "How many chairs?"},
            **{"question_type": "object_counting", "options": None, "ground_truth": "4"},
        },
        *("4", "40", "4", "How many chairs?"),
    ),
    "longvideobench": (
        {
            **{"id": "a_0", "video_path": "clip.mp4", "question": "Then?", "correct_choice": 1},
            **{"option0": "x", "option1": "y", "option2": "N/A", "option3": "N/A"},
            **{"option4": "N/A", "duration_group": 15},
        },
        *("y", "x", "B", "B. y"),
    ),
}  # fmt: skip
ROWS["hr-bench-8k"] = ROWS["hr-bench-4k"]
SPANS = {
    "charades-sta": ("charades.txt", "AB 1.0 4.5##a person sits\n"),
    "activitynet": (
        "anet.json",
        {"v_1": {"duration": 9.0, "timestamps": [[1, 4.5]], "sentences": ["a dog"]}},
    ),
    "qvhighlights": (
        "qv.jsonl",
        {"qid": 1, "query": "a dog", "vid": "v", "duration": 9, "relevant_windows": [[0, 4]]},
    ),
    "timelens-bench": (
        "charades-timelens.json",
        {"v_1": {"duration": 9.0, "spans": [[1, 4.5]], "queries": ["a dog"]}},
    ),
}


def test_every_benchmark_has_a_row():
    assert {*ROWS, *SPANS} == set(BENCHMARKS)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_published_row_is_read_and_graded(name, tmp_path):
    row, right, wrong, answer, shown = ROWS[name]
    benchmark = BENCHMARKS[name]
    found = adapted(benchmark, row)
    assert found["answer"] == answer or f"<answer> {answer} </answer>" == found["answer"]
    assert {*found} <= {*benchmark.columns}
    if benchmark.videos:
        assert found["videos"] == ["d/clip.mp4" if name == "vsi-bench" else "clip.mp4"]
        assert shown in found["problem"] or shown in _below(found)
        reference, extra = found["answer"], found
        # Only looked for, not decoded.
        (tmp_path / "d").mkdir()
        for clip in ("clip.mp4", "d/clip.mp4"):
            (tmp_path / clip).write_bytes(b"0")
        file = tmp_path / "rows.jsonl"
        file.write_text(json.dumps(row) + "\n")
        assert len(load_prompts(f"benchmark:{name}={file}")) == 1
    else:
        # As a file: what a user does whose rows lie here.
        file = tmp_path / "rows.jsonl"
        file.write_text(json.dumps(row) + "\n")
        prompts = load_prompts(f"benchmark:{name}={file}")
        prompt = prompts[0]
        assert len(prompts) == 1 and len(prompt.media) == (2 if name == "blink" else 1)
        text = "".join(
            part["text"] if isinstance(part, dict) and "text" in part else ""
            for turn in prompt.messages
            for part in (
                turn["content"]
                if isinstance(turn["content"], list)
                else [{"text": turn["content"]}]
            )
        )
        assert shown in text
        reference, extra = prompt.answer, prompt.extra
        assert reference == answer
    assert graded(f"<think>it is A or B</think> \\boxed{{{right}}}", reference, extra) == 1.0
    assert graded(f"<think>it is A or B</think> \\boxed{{{wrong}}}", reference, extra) < 1.0
    assert graded("<think>it is A or B", reference, extra) == 0.0


def _below(found):
    letters = "ABCDE"
    options = found.get("options") or []
    return "\n".join(f"{letters[n]}. {text}" for n, text in enumerate(options))


@pytest.mark.parametrize("name", sorted(SPANS))
def test_annotations_of_spans_are_recognised(name, tmp_path):
    file = tmp_path / SPANS[name][0]
    content = SPANS[name][1]
    file.write_text(content if isinstance(content, str) else json.dumps(content) + "\n")
    for video in ("AB", "v", "v_1"):
        (tmp_path / f"{video}.mp4").write_bytes(b"0")
    assert is_grounding(file)
    assert len(read_rows(file).rows) == 1
    with pytest.raises(ValueError, match="--dataset FILE --video-root"):
        place_of(f"benchmark:{name}")


def test_what_is_asked_for_wrongly_is_said():
    with pytest.raises(ValueError, match="Did you mean benchmark:mathvista"):
        find("benchmark:mathvist")
    with pytest.raises(ValueError, match=r"choose with --data.subset among Art_Style"):
        place_of("benchmark:blink")
    with pytest.raises(ValueError, match=r"--data\.subset is 'Chess'"):
        place_of("benchmark:mvbench", None, "Chess")
    with pytest.raises(ValueError, match=r"benchmark:tallyqa=FILE.jsonl"):
        place_of("benchmark:tallyqa")
    assert place_of("benchmark:blink", None, "Jigsaw") == (
        "BLINK-Benchmark/BLINK",
        "val",
        "Jigsaw",
    )
    assert place_of("benchmark:mathvision", "testmini")[1] == "testmini"


def test_rows_of_another_schema_are_refused(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"frage": "?", "answer": "A"}\n')
    with pytest.raises(ValueError, match=r"has no column 'question', which the rows of MMStar"):
        load_prompts(f"benchmark:mmstar={file}")


@pytest.mark.parametrize("answer", ["E", "purple", 4, -1])
def test_an_answer_that_is_no_option_is_a_bad_row(answer):
    row = {**ROWS["mvbench"][0], "answer": answer}
    with pytest.raises(Fault, match="bad answer"):
        adapted(BENCHMARKS["mvbench"], row)


@pytest.mark.parametrize(
    ("form", "said", "answer", "extra", "score"),
    [
        ("choice", "A or B", "A", {}, 0),
        ("choice", "the answer is (C)", "C", {}, 1),
        ("choice", "A cat", "B", {"options": ["dog", "A cat"]}, 1),
        ("choice", "B", "A", {"options": ["B", "A"]}, 1),  # the text of the first option
        ("yes_no", "yes and no", "yes", {}, 0),
        ("yes_no", "Nothing", "no", {}, 0),
        ("letters", "AC", "A, C", {}, 1),
        ("letters", "A, B, C", "A, C", {}, 0),
        ("letters", "none", "A", {}, 0),
        ("number", "1.249", "1.2", {"precision": 1}, 1),
        ("number", "1.26", "1.2", {"precision": 1}, 0),
        ("number", "[3, 5]", "5", {}, 0),
        ("number", "[1, 2]", "[1, 2]", {"precision": 1}, 1),  # a list has no decimals
        ("relative", "11", "10", {}, 0.9),
        ("relative", "many", "10", {}, 0),
        ("text", "The Fire", "the fire", {}, 1),
        ("math", "0.5", "\\frac{1}{2}", {}, 1),
    ],
)
def test_forms(form, said, answer, extra, score):
    assert graded(f"\\boxed{{{said}}}", answer, {"form": form, **extra}) == pytest.approx(score)


def test_a_row_without_a_form_is_no_row_of_a_benchmark():
    with pytest.raises(ValueError, match="none of"):
        graded("\\boxed{1}", "1", {})


def test_chance_comes_from_the_options():
    chances = {name: adapted(BENCHMARKS[name], ROWS[name][0])["chance"] for name in ROWS}
    assert chances["mmmu-pro"] == 0.5 and chances["mmmu-pro-vision"] == 0.1
    assert chances["hallusionbench"] == 0.5 and chances["geometry3k"] == 0.0
    assert chances["hr-bench-4k"] == chances["mmstar"] == 0.25


def test_pairs_and_groups():
    row = ROWS["mmvp"][0]
    pairs = [
        adapted(BENCHMARKS["mmvp"], {**row, "Index": n})["group_pair"] for n in (1, 2, 3, 4)
    ]
    assert pairs == [0, 0, 1, 1]
    found = adapted(BENCHMARKS["hallusionbench"], ROWS["hallusionbench"][0])
    assert found["group_question"] == "VD/illusion/0/0"
    assert found["group_figure"] == "VD/illusion/0/1"


def test_pictures_embedded_as_bytes_are_read_when_asked_for(tmp_path):
    """As the hub stores them: the first look at all rows must not read the pictures."""
    row = ROWS["mathvision"][0]
    image = {"bytes": base64.b64decode(P), "path": None}
    table = pa.Table.from_pylist(
        [{**row, "decoded_image": image, "options": options} for options in ([], ["7", "8"])]
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    prompts = load_prompts(f"benchmark:mathvision={tmp_path / 'rows.parquet'}")
    assert [prompt.extra["form"] for prompt in (prompts[0], prompts[1])] == ["math", "choice"]
    assert [prompt.answer for prompt in (prompts[0], prompts[1])] == ["7", "A"]
    assert all(len(prompts[n].media) == 1 for n in range(2))


def test_grading_loads_no_torch():
    code = "import sys, mmrl.data.benchmarks.grading; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_documentation_has_every_benchmark():
    page = Path(__file__).parents[3] / "docs" / "evaluation.md"
    listed = re.findall(r"^\| `([\w-]+)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(listed) == set(BENCHMARKS)
