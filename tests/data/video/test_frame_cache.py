"""The frame cache and the quarantine file."""

from __future__ import annotations

import gc
import os
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrl.data.video.frame_cache import STALE, WHOLE, FrameCache, file_key
from mmrl.ground.faults import BadMedia
from mmrl.ground.quarantine import Quarantine

FRAMES = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
SECONDS = np.array([0.0, 0.5])


def test_entries_come_back_and_writing_to_them_changes_nothing(tmp_path: Path) -> None:
    cache = FrameCache(tmp_path)
    parameters = {"content": "a", "size": (4, 5), "indices": [0, 15]}
    assert cache.get(parameters) is None
    cache.put(parameters, FRAMES, SECONDS)
    for _ in range(2):
        found = cache.get(parameters)
        assert found is not None
        np.testing.assert_array_equal(found[0], FRAMES)
        np.testing.assert_array_equal(found[1], SECONDS)
        found[0][:] = 7
    assert cache.get({**parameters, "size": (5, 4)}) is None
    assert (cache.counts["hits"], cache.counts["misses"]) == (2, 2)
    assert FrameCache(tmp_path).get(parameters) is not None, "another process finds it"


def test_limit_holds_and_the_least_used_goes_first(tmp_path: Path) -> None:
    cache = FrameCache(tmp_path)
    for name in "abc":
        cache.put({"n": name}, FRAMES, SECONDS)
    cache.limit = sum(f.stat().st_size for f in tmp_path.iterdir())
    for age, name in enumerate("cba"):
        os.utime(cache._path({"n": name}), (time.time() - 100 * (age + 1),) * 2)
    assert cache.get({"n": "a"}) is not None, "using an entry makes it young"
    for name in "de":
        cache.put({"n": name}, FRAMES, SECONDS)
        assert sum(f.stat().st_size for f in tmp_path.iterdir()) <= cache.limit
    kept = {name for name in "abcde" if cache.get({"n": name}) is not None}
    assert "b" not in kept and {"a", "e"} <= kept and cache.counts["evicted"] >= 1


def test_too_large_entries_are_refused_and_counted(tmp_path: Path) -> None:
    cache = FrameCache(tmp_path, limit=10)
    cache.put({"n": 1}, FRAMES, SECONDS)
    assert cache.counts["refused"] == 1 and not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="must be positive"):
        FrameCache(tmp_path, limit=0)


def test_damaged_and_foreign_entries_are_misses(tmp_path: Path) -> None:
    cache = FrameCache(tmp_path)
    cache.put({"n": 1}, FRAMES, SECONDS)
    path = cache._path({"n": 1})
    path.write_bytes(path.read_bytes()[:-50])
    assert cache.get({"n": 1}) is None
    cache.put({"n": 2}, FRAMES, SECONDS)
    cache._path({"n": 2}).rename(path)
    assert cache.get({"n": 1}) is None, "stored parameters are compared"


ENTRY_DAMAGES = {
    "pixel": lambda data: data[:-7] + bytes([data[-7] ^ 1]) + data[-6:],
    "cut": lambda data: data[:-5],
    "header": lambda data: data[1:],
    "number": lambda data: b"123\n" + data,
    "list": lambda data: b"[1]\n" + data,
    "null": lambda data: data.replace(b"[2, 3, 4, 5]", b"[null, 3, 4, 5]"),
    "huge": lambda data: data.replace(b"[2, 3, 4, 5]", b"[2000000000000000000, 3, 4, 5]"),
    "bytes": lambda data: b"\xff\xfe\x00",
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", ENTRY_DAMAGES)
def test_a_damaged_entry_is_never_used_and_heals(damage: str, tmp_path: Path) -> None:
    cache, parameters = FrameCache(tmp_path), {"n": 1}
    cache.put(parameters, FRAMES, SECONDS)
    path = cache._path(parameters)
    data = path.read_bytes()
    path.write_bytes(ENTRY_DAMAGES[damage](data))
    assert path.read_bytes() != data
    assert cache.get(parameters) is None and cache.counts["damaged"] == 1
    cache.put(parameters, FRAMES, SECONDS)
    found = cache.get(parameters)
    assert found is not None
    np.testing.assert_array_equal(found[0], FRAMES)


def test_a_folder_in_the_place_of_an_entry_heals(tmp_path: Path) -> None:
    cache, parameters = FrameCache(tmp_path), {"n": 1}
    cache._path(parameters).mkdir()
    assert cache.get(parameters) is None
    cache.put(parameters, FRAMES, SECONDS)
    assert cache.get(parameters) is not None


def test_a_full_disk_is_said_once_and_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FrameCache(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match=r"cannot be kept in .*No space left") as said:
        for number in range(3):
            cache.put({"n": number}, FRAMES, SECONDS)
    assert len(said) == 1 and cache.counts["unwritable"] == 3
    assert [*tmp_path.iterdir()] == []
    assert cache.get({"n": 0}) is None
    monkeypatch.undo()
    cache.put({"n": 0}, FRAMES, SECONDS)
    assert cache.get({"n": 0}) is not None


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"decoded frames.*cannot be made.*name another"):
        FrameCache(tmp_path / "file" / "cache")


def test_abandoned_writes_are_swept(tmp_path: Path) -> None:
    cache = FrameCache(tmp_path)
    old, young = tmp_path / ".new-old", tmp_path / ".new-young"
    for file in (old, young):
        file.write_bytes(b"x")
    os.utime(old, (time.time() - 2 * STALE,) * 2)
    cache.put({"n": 1}, FRAMES, SECONDS)
    assert not old.exists() and young.exists()


@pytest.mark.parametrize("size", [100, WHOLE + 100])
def test_key_follows_the_content(size: int, tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for file in (a, b):
        file.write_bytes(b"\1" * size)
        os.utime(file, (1000, 1000))
    assert file_key(a) == file_key(b)
    b.write_bytes(b"\1" * (size - 1) + b"\2")
    assert file_key(a) != file_key(b)


def test_quarantine_remembers_for_the_back_end_and_the_state_of_the_file(
    tmp_path: Path,
) -> None:
    clip, record = tmp_path / "a.mp4", tmp_path / "q" / "bad.jsonl"
    clip.write_bytes(b"x")
    bad = BadMedia(str(clip), "timeout", "60 s")
    first = Quarantine(record)
    first.remember(bad, "pyav")
    first.remember(bad, "pyav")
    assert len(record.read_text().splitlines()) == 1
    again = Quarantine(record)
    with pytest.raises(BadMedia, match=r"timeout \(60 s; in quarantine\)") as caught:
        again.check(str(clip), "pyav")
    assert caught.value.reason == "timeout"
    again.check(str(clip), "decord")
    clip.write_bytes(b"xy")
    again.check(str(clip), "pyav")


def test_quarantine_keeps_nothing_alive(tmp_path: Path) -> None:
    clip = tmp_path / "a.mp4"
    clip.write_bytes(b"x")
    quarantine = Quarantine()

    def fail() -> weakref.ref[np.ndarray]:
        frames = FRAMES.copy()
        try:
            raise BadMedia(str(clip), "timeout")
        except BadMedia as bad:
            quarantine.remember(bad)
        return weakref.ref(frames)

    held = fail()
    gc.collect()
    assert held() is None and len(quarantine.entries) == 1


def test_missing_files_are_not_remembered_and_odd_lines_are_passed_over(
    tmp_path: Path, caplog: Any
) -> None:
    record = tmp_path / "bad.jsonl"
    record.write_text('{"key": 1}\nno json\n')
    quarantine = Quarantine(record)
    quarantine.remember(BadMedia(str(tmp_path / "none.mp4"), "missing file"))
    assert not quarantine.entries and caplog.text.count("not an entry") == 2
