"""Folders that mmrl writes: the marker, what overwriting deletes, places that are refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmrl.ground import outputs
from mmrl.ground.outputs import (
    MARKER,
    Kind,
    OutputError,
    alone,
    claim,
    clear,
    marker_of,
    prepare,
    refuse_file,
    write_whole,
)

OURS = (
    "config.json",
    "metrics.jsonl",
    "model/config.json",
    "model/*.safetensors",
    "steps/step-*/state",
    "logs/**",
)
RUN = Kind("run", "--run.output", "--run.overwrite", OURS)
SET = Kind("data set", "--output", "--overwrite", ("data/*.parquet",))


def filled(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def left(folder):
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    return sorted(name for name in names if name != MARKER)


def test_overwriting_deletes_what_is_ours_and_names_the_rest(tmp_path, capsys):
    folder = tmp_path / "run"
    first = claim(folder, RUN)
    ours = ("config.json", "metrics.jsonl", "model/config.json", "model/a.safetensors")
    ours += ("steps/step-3/state", "logs/deep/er/events", "logs/x")
    filled(folder, *ours)
    aliens = ["model/notes.txt", "photo.png", "steps/step-3/mine", "other/config.json"]
    filled(folder, *aliens)
    (folder / "empty").mkdir()
    second = clear(folder, RUN)
    assert left(folder) == sorted(
        ["empty", "model", "other", "steps", "steps/step-3", *aliens]
    ), "nothing of ours, and everything else"
    said = capsys.readouterr().err
    assert "files that are not ours, which stay" in said and "model/notes.txt" in said
    assert marker_of(folder) == second and second.id != first.id


def test_links_are_removed_and_what_they_lead_to_stays(tmp_path):
    claim(tmp_path / "run", RUN)
    filled(tmp_path / "disk", "step-1/state", "mine")
    (tmp_path / "run" / "steps").symlink_to(tmp_path / "disk")
    (tmp_path / "run" / "mine").symlink_to(tmp_path / "disk")
    (tmp_path / "run" / "config.json").symlink_to(tmp_path / "disk")
    clear(tmp_path / "run", RUN)
    assert left(tmp_path / "run") == ["mine"]
    assert left(tmp_path / "disk") == ["mine", "step-1", "step-1/state"]


@pytest.mark.parametrize(
    "held",
    [["photo.png"], ["config.json"], ["config.json", "model.safetensors"], ["model/x"]],
    ids=["photographs", "a config", "a model", "a folder of that name"],
)
def test_a_folder_without_marker_is_never_emptied(tmp_path, held):
    filled(tmp_path / "theirs", *held)
    before = left(tmp_path / "theirs")
    with pytest.raises(OutputError, match=r"theirs, but that is no folder of a run of mmrl"):
        clear(tmp_path / "theirs", RUN)
    assert left(tmp_path / "theirs") == before and marker_of(tmp_path / "theirs") is None


def test_names_that_would_be_written_over_are_refused_and_others_are_no_matter(tmp_path):
    filled(tmp_path / "model", "config.json", "model.safetensors")
    for door in (prepare, claim):
        with pytest.raises(OutputError, match=r"holds config\.json, but no \.mmrl\.json.*lost"):
            door(tmp_path / "model", RUN)
    filled(tmp_path / "photos", "a.png")
    prepare(tmp_path / "photos", RUN)
    assert left(tmp_path / "photos") == ["a.png"]
    marker = claim(tmp_path / "photos", RUN)
    assert claim(tmp_path / "photos", RUN) == marker, "the same folder, the same id"


def test_another_kind_of_folder_is_refused(tmp_path):
    claim(tmp_path / "set", SET)
    for door in (prepare, claim, clear):
        with pytest.raises(OutputError, match="the folder of a data set, not of a run"):
            door(tmp_path / "set", RUN)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "run"}', "5"])
def test_a_damaged_marker_is_named(tmp_path, text):
    (tmp_path / MARKER).write_text(text)
    filled(tmp_path, "config.json")
    for door in (prepare, claim, clear):
        with pytest.raises(OutputError, match=r"\.mmrl\.json is damaged"):
            door(tmp_path, RUN)
    assert (tmp_path / "config.json").is_file()


def test_a_run_of_an_earlier_version_is_continued_not_overwritten(tmp_path):
    config = {"settings": {}, "environment": {"mmrl": "0.9"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(OutputError, match="no folder of a run of mmrl"):
        clear(tmp_path, RUN)
    assert claim(tmp_path, RUN, "abc").id == "abc" and marker_of(tmp_path).id == "abc"


PLACES = {
    "empty": ("", "working"),
    "dot": (".", "working"),
    "up": ("..", "contains the working"),
    "root": ("/", "contains the working"),
    "home": ("~", "home"),
    "home in full": (str(Path.home()), "home"),
    "above home": (str(Path.home().parent), "home|contains the working"),
    "a detour": ("x/..", "working"),
}


@pytest.mark.parametrize("place", PLACES)
def test_home_root_and_the_working_folder_are_no_outputs(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, why = PLACES[place]
    with pytest.raises(OutputError, match=rf"--run\.output is .*({why})"):
        prepare(Path(name), RUN)
    assert left(tmp_path) == []


def test_a_link_to_the_working_folder_is_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "real")
    with pytest.raises(OutputError, match="which is the working folder"):
        prepare(tmp_path / "link", RUN)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=r"cannot be written to .*--run\.output"):
            prepare(place, RUN)
    prepare(tmp_path / "new" / "deep", RUN)
    assert list((tmp_path / "new" / "deep").iterdir()) == []


def test_two_processes_never_write_the_same_folder(tmp_path):
    lock = "import fcntl, os;"
    lock += f"fcntl.flock(os.open({str(tmp_path)!r}, os.O_RDONLY), fcntl.LOCK_EX); print(1, flush=True)"
    with (
        alone(tmp_path),
        pytest.raises(OutputError, match="Another process is writing"),
        alone(tmp_path),
    ):
        pass
    other = subprocess.Popen([sys.executable, "-c", f"{lock}; input()"], stdin=-1, stdout=-1)
    other.stdout.readline()
    with (
        pytest.raises(
            OutputError, match=r"Another process is writing to .*another --run\.output"
        ),
        alone(tmp_path),
    ):
        pass
    other.kill()
    other.wait()
    with alone(tmp_path):
        assert not list(tmp_path.iterdir())


def test_a_file_of_others_is_not_replaced(tmp_path):
    theirs, empty = tmp_path / "train.jsonl", tmp_path / "empty"
    theirs.write_text('{"question": "?"}\n')
    empty.touch()
    ours = outputs.refuse_file
    for fine in (empty, tmp_path / "absent"):
        ours(fine, lambda text: False, "report")
    ours(theirs, lambda text: "question" in text, "report")
    with pytest.raises(OutputError, match=r"train\.jsonl is there and is no report.*--json"):
        refuse_file(theirs, lambda text: False, "report", "--json")
    for folder in (tmp_path, Path("")):
        with pytest.raises(OutputError, match="a folder; name a file"):
            refuse_file(folder, lambda text: True, "report")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "finished.json"
    write_whole(file, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            write_whole(file, "new")
    assert file.read_text() == "old"
    write_whole(file, "new")
    assert file.read_text() == "new" and len(list(tmp_path.iterdir())) == 1
