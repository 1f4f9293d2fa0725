"""What has been asked and what it has cost: a cache keyed by content, and a budget, in one SQLite file.

SQLite writes atomically and may be shared by several processes. With a file, the budget counts everything that was
ever spent through it, so that a run that is stopped and continued does not spend twice; without one, it counts from the
start of the process.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TABLES = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL);
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
        try:
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                file or ":memory:", timeout=30.0, check_same_thread=False
            )
            _refuse_other_database(self._database, file)
            self._database.executescript(_TABLES)
        except (sqlite3.Error, OSError) as error:
            raise ValueError(
                f"The judge's cache {file} cannot be used ({error}); name a writable file."
            ) from error

    def find(self, key: str) -> str | None:
        """The answer to a request, if it was stored."""
        with self._lock:
            row = self._database.execute(
                "SELECT text FROM answers WHERE key = ?", (key,)
            ).fetchone()
        return None if row is None else row[0]

    def store(self, key: str, text: str) -> None:
        """Keep an answer."""
        # The connection as a context is a transaction: committed at the end, rolled back on an error.
        with self._lock, self._database:
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, text))

    def spend(self, tokens_in: int, tokens_out: int, money: float) -> None:
        """Book a request."""
        update = "UPDATE spent SET tokens_in = tokens_in + ?, tokens_out = tokens_out + ?, money = money + ?"
        with self._lock, self._database:
            self._database.execute(update, (tokens_in, tokens_out, money))

    def spent(self) -> Spent:
        """The sum of all requests."""
        with self._lock:
            row = self._database.execute("SELECT tokens_in, tokens_out, money FROM spent")
            return Spent(*row.fetchone())

    def close(self) -> None:
        """Close the file."""
        self._database.close()


def _refuse_other_database(database: sqlite3.Connection, file: Path | None) -> None:
    """Raise ValueError for a database that holds the tables of others."""
    rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    others = sorted({name for (name,) in rows} - {"answers", "spent"})
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
