"""Temporary folders: gone at the end, after kill -9 by the next start, and never a living process's."""

import os
import signal
import subprocess
import sys
import tempfile

import pytest

from mmrl.ground import scratch

MAKES = "from mmrl.ground.scratch import scratch_folder, draft_beside; from pathlib import Path; import sys, os\n"
ENDS = {
    "end": "pass",
    "error": "raise RuntimeError",
    "exit": "sys.exit(3)",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(scratch, "_own", [])
    return tmp_path


def started(code, place):
    return subprocess.Popen(
        [sys.executable, "-c", MAKES + code],
        env={**os.environ, "TMPDIR": str(place)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@pytest.mark.parametrize("end", ENDS)
def test_it_is_gone_at_every_end(place, end):
    process = started(f"(scratch_folder() / 'clip.mp4').write_text('x'); {ENDS[end]}", place)
    process.communicate(timeout=60)
    assert list(place.rglob("*.mp4")) == [] and list(place.glob("mmrl-*/*")) == []


def test_what_a_killed_process_left_goes_at_the_next_start_and_a_living_ones_stays(place):
    waits = "(scratch_folder() / 'clip.mp4').write_text('x'); print(1, flush=True); input()"
    dead, living = started(waits, place), started(waits, place)
    for process in (dead, living):
        process.stdout.readline()
    assert len(list(place.rglob("*.mp4"))) == 2
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    mine = scratch.scratch_folder()
    (kept,) = place.rglob("*.mp4")
    assert f"{living.pid}-" in kept.parent.name and mine.is_dir()
    assert scratch.scratch_folder() == mine, "one folder per process"
    living.communicate("\n", timeout=60)
    assert list(place.rglob("*.mp4")) == []
    scratch.remove_scratch()
    assert not mine.exists()


def test_a_fork_leaves_its_parents_folder_alone(place):
    folder = scratch.scratch_folder()
    child = os.fork()
    if not child:
        scratch.remove_scratch()
        os._exit(0 if scratch.scratch_folder() == folder else 1)
    assert os.waitpid(child, 0)[1] == 0 and folder.is_dir()
    scratch.remove_scratch()


def test_a_temporary_folder_is_inside_it(place):
    with scratch.temporary_folder("warm") as folder:
        assert folder.parent == scratch.scratch_folder() and folder.is_dir()
    assert not folder.exists()
    scratch.remove_scratch()


def test_drafts_of_dead_processes_are_swept_and_others_left(place):
    target = place / "deep" / "model"
    makes = f"d = draft_beside(Path({str(target)!r})); p = d.__enter__(); (p / 'half').write_text('x');"
    dead, living = started(makes + "print(1, flush=True); input()", place), None
    living = started(makes + "print(1, flush=True); input()", place)
    for process in (dead, living):
        process.stdout.readline()
    dead.kill()
    dead.wait()
    alien = target.parent / ".model.mine"
    alien.mkdir()
    with scratch.draft_beside(target) as draft:
        (draft / "whole").write_text("x")
        halves = [half.parent.name for half in target.parent.glob(".model.draft-*/half")]
        assert len(halves) == 1 and f"-{living.pid}-" in halves[0]
        draft.rename(target)
    assert (target / "whole").is_file() and alien.is_dir()
    living.communicate("\n", timeout=60)


def test_another_users_folder_is_not_trusted(place):
    trap = place / "elsewhere"
    trap.mkdir()
    (place / f"mmrl-{os.getuid()}").symlink_to(trap)
    folder = scratch.scratch_folder()
    assert trap not in folder.parents and list(trap.iterdir()) == []
    scratch.remove_scratch()
