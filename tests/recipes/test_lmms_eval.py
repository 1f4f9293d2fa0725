"""`mmrl eval --with lmms-eval`: what that program is told, with a stand-in for it; our tasks, read as it reads them.

The stand-in takes the flags of lmms-eval 0.7.3 and no others, loads a task's YAML with its functions as that version
does, answers every question with the truth and writes results under that version's names. Where an environment with
lmms-eval is named (LMMS_EVAL_PYTHON), the last test runs the real one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image

from mmrl.data.pretext.__main__ import main as pretext_rows
from mmrl.model.load import LoRA
from mmrl.model.policy import Policy
from mmrl.recipes.__main__ import main
from mmrl.recipes.shared.lmms_eval import TASKS, numbers_of

STAND_IN = '''
"""The surface of lmms-eval 0.7.3 that is used."""
import argparse, json, math, os, sys
from pathlib import Path
assert "math_verify" not in sys.modules and "torch" not in sys.modules
parser = argparse.ArgumentParser(allow_abbrev=False)
for name in ("model", "model_args", "tasks", "include_path", "batch_size", "output_path", "limit", "gen_kwargs"):
    parser.add_argument(f"--{name}")
parser.add_argument("--log_samples", action="store_true")
given = vars(parser.parse_args())
import mmrl  # must be importable, though it is not installed here
given["cwd"], given["mmrl"] = os.getcwd(), str(Path(mmrl.__file__).resolve())
given["rows"] = [json.loads(line) for line in open("spans.jsonl")] if os.path.exists("spans.jsonl") else None
Path("told.json").write_text(json.dumps(given))
if "fails" in given["tasks"]:
    sys.exit(3)
place = Path(given["output_path"]) / "some__model"
place.mkdir(parents=True, exist_ok=True)
found = {"alias": given["tasks"], "mIoU,none": 25.0, "mIoU_stderr,none": "N/A", "R1@0.5,none": 50}
(place / "20270101_000000_results.json").write_text(json.dumps({"results": {given["tasks"]: found}}))
'''


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A Python that has this stand-in, and of our own packages none by itself."""
    place = tmp_path_factory.mktemp("env")
    package = place / "site" / "lmms_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(STAND_IN)
    script = place / "python"
    # -S: what is installed for us is not there; the stand-in is put last, behind what the command asks for.
    script.write_text(
        f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{place / "site"}" exec {sys.executable} -S "$@"\n'
    )
    script.chmod(0o755)
    return str(script)


@pytest.fixture
def spans(tmp_path):
    rows = [
        {"video": "a.mp4", "query": "A dog jumps.", "span": [1.0, 3.0], "duration": 8.0},
        {"video": "b.mp4", "query": "it rains", "span": [0.0, 2.0], "duration": 6.0},
    ]
    for row in rows:
        (tmp_path / row["video"]).write_bytes(b"not read here")
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def evaluate(*words):
    main(["eval", *map(str, words)])


def told(folder):
    return json.loads((folder / "told.json").read_text())


def test_the_other_program_is_told_model_tasks_and_rows(
    tiny_folder, spans, python, tmp_path, capsys
):
    out = tmp_path / "out"
    evaluate(
        *(tiny_folder, "--with", "lmms-eval", "--tasks", "mmrl_spans", "--dataset", spans),
        *("--output", out, "--python", python, "--device", "cpu", "--max-pixels", "4096"),
        *("--limit", "2", "--", "--gen_kwargs", "max_new_tokens=6"),
    )
    found = told(out)
    assert found["model"] == "qwen2_5_vl" and found["tasks"] == "mmrl_spans"
    assert found["model_args"].split(",") == [
        f"pretrained={tiny_folder.resolve()}",
        *("min_pixels=200704", "max_pixels=4096", "device=cpu", "device_map=cpu"),
    ]
    assert found["limit"] == "2" and found["gen_kwargs"] == "max_new_tokens=6"
    assert Path(found["include_path"]) == TASKS.resolve() and found["cwd"] == str(out)
    first, second = found["rows"]
    assert first["video"] == str(tmp_path / "a.mp4") and first["spans"] == [[1.0, 3.0]]
    assert "A dog jumps" in first["question"] and second["duration"] == 6.0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split() for line in shown] == [
        ["mmrl_spans", "mIoU", "25.0000"],
        ["mmrl_spans", "R1@0.5", "50.0000"],
    ]


def test_an_adapter_is_merged_first(tiny_folder, python, tmp_path):
    run = tmp_path / "run"
    Policy.load(tiny_folder, device="cpu", lora=LoRA(rank=2)).save(run / "model")
    evaluate(run, "--with=lmms-eval", "--tasks", "mmstar", "--python", python)
    place = run / "lmms-eval" / "model"
    assert f"pretrained={place}" in told(run / "lmms-eval")["model_args"]
    assert (place / "model.safetensors").is_file()
    assert not (place / "adapter_config.json").exists()


def test_the_command_can_be_shown_without_the_program(tiny_folder, tmp_path, capsys):
    out = tmp_path / "my out"
    evaluate(
        *(tiny_folder, "--with", "lmms-eval", "--tasks", "mmstar,mmmu_val", "--show"),
        *("--output", out),
    )
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"cd '{out}'" and "--tasks mmstar,mmmu_val " in second


REFUSED = {
    "no lmms-eval": (["--tasks", "mmstar"], r"has no lmms-eval.*pip install 'lmms-eval==0\.7"),
    "no python": (
        ["--tasks", "mmstar", "--python", "/no/python"],
        r"--python /no/python cannot",
    ),
    "no tasks": ([], r"--tasks is missing"),
    "unknown flag": (["--tasks", "mmstar", "--speed", "9"], r"'--speed'.*behind --"),
    "two of ours": (["--tasks", "mmrl_spans,mmrl_pretext"], r"different --dataset; ask twice"),
    "no spans": (["--tasks", "mmrl_spans", "--show"], r"mmrl_spans needs --dataset"),
    "no rows": (["--tasks", "mmrl_pretext", "--show"], r"make one with mmrl pretext export"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_asked_is_refused_with_the_flag(
    case, tiny_folder, tmp_path, monkeypatch
):
    words, said = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LMMS_EVAL_PYTHON", raising=False)
    with pytest.raises(SystemExit, match=rf"(?s)mmrl eval --with lmms-eval: .*{said}"):
        evaluate(tiny_folder, "--with", "lmms-eval", "--output", tmp_path / "out", *words)


def test_another_program_is_not_known(tiny_folder):
    with pytest.raises(SystemExit, match="--with is 'vlmeval'; it must be lmms-eval"):
        evaluate(tiny_folder, "--with", "vlmeval")


def test_a_part_of_a_file_is_refused_since_the_other_program_shows_whole_ones(
    tiny_folder, spans, tmp_path
):
    row = {
        "video": "a.mp4",
        "query": "x",
        "span": [1.0, 2.0],
        "duration": 9.0,
        "start": 0.5,
        "end": 4.0,
    }
    spans.write_text(json.dumps(row))
    words = ("--tasks", "mmrl_spans", "--dataset", spans, "--output", tmp_path / "o", "--show")
    with pytest.raises(SystemExit, match=r"asks about a part of .*a\.mp4 \(0\.5 to 4\.0 s\)"):
        evaluate(tiny_folder, "--with", "lmms-eval", *words)


def test_a_program_that_fails_is_said(tiny_folder, python, tmp_path):
    words = ("--tasks", "fails", "--python", python, "--output", tmp_path / "out")
    with pytest.raises(SystemExit, match=r"ended with status 3 and wrote no results.*--show"):
        evaluate(tiny_folder, "--with", "lmms-eval", *words)


def as_they_load_it(name):
    """A task's YAML with `!function module.name` as lmms-eval 0.7.3 resolves it: a file beside the YAML."""

    class Loader(yaml.SafeLoader):
        pass

    def function(loader, node):
        module, _, attribute = node.value.rpartition(".")
        spec = importlib.util.spec_from_file_location(module, TASKS / f"{module}.py")
        made = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
        return getattr(made, attribute)

    Loader.add_constructor("!function", function)
    return yaml.load((TASKS / f"{name}.yaml").read_text(), Loader)


def test_spans_are_asked_and_measured_as_ours(tmp_path):
    task = as_they_load_it("mmrl_spans")
    row = {"video": "/v/a.mp4", "query": "a dog jumps", "span": [1.0, 3.0]}
    assert task["doc_to_visual"](row) == ["/v/a.mp4"]
    (turn,) = task["doc_to_messages"](row)
    assert [part["type"] for part in turn["content"]] == ["video", "text"]
    assert turn["content"][1]["text"] == task["doc_to_text"](row)
    assert "'a dog jumps'" in task["doc_to_text"](row)
    names = {metric["metric"] for metric in task["metric_list"]}
    right = task["process_results"](row, [task["doc_to_target"](row)])
    assert right == {name: 100.0 for name in names}
    half = task["process_results"](row, ["from 1.0 to 2.0 seconds"])
    assert (half["mIoU"], half["R1@0.5"], half["R1@0.7"]) == (50.0, 100.0, 0.0)
    assert set(task["process_results"](row, ["no idea"]).values()) == {0.0}


def test_pretext_rows_are_asked_and_paid_as_ours(tmp_path):
    folder = tmp_path / "rows"
    pretext_rows(["export", "--preset", "rotation", "--count", "2", "--output", str(folder)])
    files = {"test": str(folder / "data" / "*.parquet")}
    rows = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "c"))
    task, doc = as_they_load_it("mmrl_pretext"), rows["test"][0]
    parts = [part for turn in task["doc_to_messages"](doc) for part in turn["content"]]
    media = [part["url"] for part in parts if part["type"] == "image"]
    assert media and {part["type"] for part in parts} == {"image", "text"}
    assert all(isinstance(one, Image.Image) for one in media)
    assert task["doc_to_visual"](doc) == media
    assert all(part["text"] for part in parts if part["type"] == "text")
    names = {metric["metric"] for metric in task["metric_list"]}
    right = task["process_results"](doc, [task["doc_to_target"](doc)])
    assert right == {name: 1.0 for name in names}
    assert task["process_results"](doc, ["nonsense"])["accuracy"] == 0.0


def test_clips_of_pretext_rows_stand_in_their_places(tmp_path):
    task = as_they_load_it("mmrl_pretext")
    kinds = ("video", "text", "image", "video", "text")
    content = [{"type": kind, "text": "?" if kind == "text" else None} for kind in kinds]
    doc = {
        "prompt": [{"role": "user", "content": content}],
        "images": ["p"],
        "videos": [["a", "b"], ["c"]],
    }
    (turn,) = task["doc_to_messages"](doc)
    assert [part["type"] for part in turn["content"]] == list(kinds)
    shown = [part.get("url", part.get("text")) for part in turn["content"]]
    assert shown == [["a", "b"], "?", "p", ["c"], "?"]
    assert task["doc_to_visual"](doc) == ["p", "a", "b", "c"]
    assert task["doc_to_text"](doc) == "?\n?"


def test_numbers_of_tasks_that_were_asked_come_first(tmp_path):
    results = {
        "a": {"acc,none": 1, "alias": "a"},
        "z": {"acc,strict": 0.5, "acc_stderr,strict": 0.1},
    }
    file = tmp_path / "x_results.json"
    file.write_text(json.dumps({"results": results}))
    lines = [line.split() for line in numbers_of(file, ["z"])]
    assert lines == [["z", "acc", "0.5000"], ["a", "acc", "1.0000"]]


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("LMMS_EVAL_PYTHON"), reason="LMMS_EVAL_PYTHON names no environment"
)
def test_the_real_program_runs_our_task(tiny_folder, tmp_path, capsys):
    import av

    clip = tmp_path / "real.mp4"
    with av.open(str(clip), "w") as output:
        stream = output.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(12):
            grey = np.full((48, 64, 3), 20 * number, dtype=np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        output.mux(stream.encode())
    row = {"video": str(clip), "query": "it gets light", "span": [1.0, 2.0]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    evaluate(
        *(tiny_folder, "--with", "lmms-eval", "--tasks", "mmrl_spans"),
        *("--dataset", tmp_path / "rows.jsonl", "--output", tmp_path / "out"),
        *("--device", "cpu", "--min-pixels", "256", "--max-pixels", "4096"),
        *("--", "--gen_kwargs", "max_new_tokens=6"),
    )
    assert "mIoU" in capsys.readouterr().out
