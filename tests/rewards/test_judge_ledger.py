"""The judge's file under a bad disk: no wrong answer, no forgotten spending, no traceback."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from mmrl.rewards.judge_ledger import Ledger, Spent


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A closed file of fifty answers."""
    place = tmp_path_factory.mktemp("ledger") / "judge.sqlite"
    ledger = Ledger(place)
    for number in range(50):
        ledger.store(f"key{number}", f"answer number {number} " + "x" * 100)
    ledger.spend(10, 20, 0.5)
    ledger.close()
    assert list(place.parent.iterdir()) == [place], "it is one file"
    return place.read_bytes()


@pytest.fixture
def file(written: bytes, tmp_path: Path) -> Path:
    place = tmp_path / "judge.sqlite"
    place.write_bytes(written)
    return place


def test_an_answer_that_a_disk_has_changed_is_asked_again_and_heals(file: Path) -> None:
    data = file.read_bytes()
    place = data.index(b"answer number 7 ")
    file.write_bytes(data[:place] + b"Answer" + data[place + 6 :])
    ledger = Ledger(file)
    assert ledger.find("key7") is None
    assert str(ledger.find("key8")).startswith("answer number 8 ")
    ledger.store("key7", "yes")
    assert ledger.find("key7") == "yes" and ledger.spent() == Spent(10, 20, 0.5)


def test_an_answer_under_the_key_of_another_is_not_used(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("UPDATE answers SET text = 'swapped' WHERE key = 'key3'")
    assert Ledger(file).find("key3") is None


def test_a_file_of_an_earlier_version_is_read(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("DROP TABLE digests")
    ledger = Ledger(file)
    assert str(ledger.find("key3")).startswith("answer number 3 ")
    assert ledger.spent() == Spent(10, 20, 0.5)


@pytest.mark.parametrize("how", ["cut", "page", "header", "text", "folder", "spent"])
def test_a_damaged_file_is_refused_with_a_remedy(file: Path, how: str) -> None:
    data = file.read_bytes()
    if how == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif how == "page":
        file.write_bytes(data[:4096] + b"\x7f" * 8192 + data[12288:])
    elif how == "header":
        file.write_bytes(b"\x00" * 100 + data[100:])
    elif how == "text":
        file.write_text("not a database, but long enough to be read as one " * 50)
    elif how == "folder":
        file.unlink()
        file.mkdir()
    else:
        with sqlite3.connect(file) as database:
            database.execute("UPDATE spent SET money = 'much'")
    with pytest.raises(
        ValueError, match=r"The judge's cache .*(name a writable|restore it from)"
    ):
        Ledger(file)


def test_a_disk_that_takes_no_more_is_said_once_and_spending_still_counts(file: Path) -> None:
    ledger = Ledger(file)
    ledger._database.execute("PRAGMA query_only = ON")  # every write fails, as on a full disk
    with pytest.warns(UserWarning, match=r"judge's cache .* cannot be used any more") as said:
        for _ in range(3):
            ledger.store("new", "answer")
            ledger.spend(1, 2, 0.25)
    assert len(said) == 1
    assert ledger.find("new") is None and ledger.spent() == Spent(13, 26, 1.25)
