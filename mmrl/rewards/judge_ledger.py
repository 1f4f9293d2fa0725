"""What has been asked and what it has cost: a cache keyed by content, and a budget, in one SQLite file.

SQLite writes atomically and may be shared by several processes. With a file, the budget counts everything that was
ever spent through it, so that a run that is stopped and continued does not spend twice; without one, it counts from the
start of the process.

An answer that a disk has changed is asked again. A file whose pages do not hold together is refused, since it also
holds what was spent; a disk that takes no more is said once, and what is spent then counts in this process.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TABLES = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS digests (key TEXT PRIMARY KEY, digest TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS spent (id INTEGER PRIMARY KEY, tokens_in INTEGER, tokens_out INTEGER, money REAL);
INSERT OR IGNORE INTO spent VALUES (0, 0, 0, 0.0);
"""


@dataclass(frozen=True)
class Budget:
    """What may be spent; None is without limit. A request that might pass a limit is not sent."""

    tokens: int | None = None
    """Prompt and answer tokens together."""
    money: float | None = None
    """In the currency of the prices."""
    price_in: float = 0.0
    """Price of a million prompt tokens."""
    price_out: float = 0.0
    """Price of a million answer tokens."""

    def __post_init__(self) -> None:
        if self.money is not None and self.price_in == self.price_out == 0.0:
            raise ValueError(
                "Budget.money has no effect without prices; set price_in and price_out."
            )

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """The price of a request."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    def allows(self, tokens: int, money: float) -> bool:
        """May so much be spent in all?"""
        within = self.tokens is None or tokens <= self.tokens
        return within and (self.money is None or money <= self.money)


@dataclass(frozen=True)
class Spent:
    """What has been spent."""

    tokens_in: int = 0
    tokens_out: int = 0
    money: float = 0.0


class Ledger:
    """The cache and the sum of what was spent. Raises ValueError if the file cannot be used."""

    def __init__(self, file: Path | None) -> None:
        # One connection for all threads: judges answer on a loop's thread, metrics are read on the trainer's.
        self._lock = threading.Lock()
        self._file, self._warned, self._unbooked = file, False, Spent()
        try:
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                file or ":memory:", timeout=30.0, check_same_thread=False
            )
            _refuse_other_database(self._database, file)
            self._database.executescript(_TABLES)
            _refuse_damaged_database(self._database, file)
        except (sqlite3.Error, OSError) as error:
            raise ValueError(
                f"The judge's cache {file} cannot be used ({error}); name a writable file."
            ) from error

    def find(self, key: str) -> str | None:
        """The answer to a request, if it was stored and no disk has changed it since."""
        asked = "SELECT text, digest FROM answers LEFT JOIN digests USING (key) WHERE key = ?"
        try:
            with self._lock:
                row = self._database.execute(asked, (key,)).fetchone()
        except sqlite3.Error as error:
            self._warn(error)
            return None
        # An entry of an earlier version has no digest.
        if row is None or row[1] not in (None, _digest(key, row[0])):
            return None
        return row[0]

    def store(self, key: str, text: str) -> None:
        """Keep an answer. What the disk does not take is asked again another time."""
        self._write(
            ("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, text)),
            ("INSERT OR REPLACE INTO digests VALUES (?, ?)", (key, _digest(key, text))),
        )

    def spend(self, tokens_in: int, tokens_out: int, money: float) -> None:
        """Book a request. What the disk does not take counts for this process at least."""
        update = "UPDATE spent SET tokens_in = tokens_in + ?, tokens_out = tokens_out + ?, money = money + ?"
        if not self._write((update, (tokens_in, tokens_out, money))):
            left = self._unbooked
            self._unbooked = Spent(
                left.tokens_in + tokens_in, left.tokens_out + tokens_out, left.money + money
            )

    def spent(self) -> Spent:
        """The sum of all requests. Raises ValueError if it can no longer be read: nobody may spend then."""
        try:
            with self._lock:
                row = self._database.execute("SELECT tokens_in, tokens_out, money FROM spent")
                tokens_in, tokens_out, money = row.fetchone()
        except (sqlite3.Error, TypeError) as error:
            raise ValueError(
                f"The judge's cache {self._file} is damaged ({error}), so nobody knows what has been spent; restore it "
                "from a copy, or name another file and lower the budget by what was spent."
            ) from error
        left = self._unbooked
        return Spent(
            tokens_in + left.tokens_in, tokens_out + left.tokens_out, money + left.money
        )

    def _write(self, *statements: tuple[str, tuple[Any, ...]]) -> bool:
        """Carry out all statements or none; False if the disk does not take them, which is said once."""
        try:
            # The connection as a context is a transaction: committed at the end, rolled back on an error.
            with self._lock, self._database:
                for statement, values in statements:
                    self._database.execute(statement, values)
        # A lone surrogate in an answer cannot be stored either.
        except (sqlite3.Error, UnicodeError) as error:
            self._warn(error)
            return False
        return True

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            warnings.warn(
                f"The judge's cache {self._file} cannot be used any more ({error}): answers are asked anew. Free space "
                "there, or name another file.",
                stacklevel=3,
            )
        self._warned = True

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _refuse_damaged_database(database: sqlite3.Connection, file: Path | None) -> None:
    """Raise ValueError for a database whose pages do not hold together, or that does not know what was spent."""
    (found, *_) = database.execute("PRAGMA quick_check(1)").fetchone()
    booked = database.execute("SELECT tokens_in, tokens_out, money FROM spent").fetchone()
    if (
        found != "ok"
        or booked is None
        or not all(isinstance(each, int | float) for each in booked)
    ):
        reason = str(found).splitlines()[-1]
        raise ValueError(
            f"The judge's cache {file} is damaged ({reason}), and with it the sum of what was spent; restore it from "
            "a copy, or name another file and lower the budget by what was spent."
        )


def _digest(key: str, text: str) -> str:
    """Of an answer, with the request that it belongs to."""
    content = f"{key} {text}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(content).hexdigest()


def _refuse_other_database(database: sqlite3.Connection, file: Path | None) -> None:
    """Raise ValueError for a database that holds the tables of others."""
    rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    others = sorted({name for (name,) in rows} - {"answers", "digests", "spent"})
    if others:
        raise ValueError(
            f"The judge's cache {file} is a database of something else (it holds {', '.join(others[:3])}); name "
            "another file."
        )


def request_key(content: Mapping[str, Any]) -> str:
    """A hash of everything that an answer depends on."""
    # Sorted and without spaces: equal requests have equal bytes, however they were put together.
    text = json.dumps(
        content,
        sort_keys=True,
        ensure_ascii=False,
        separators=(",", ":"),
        default=str,
    )
    # A model may write half a surrogate pair, which strict UTF-8 refuses.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
