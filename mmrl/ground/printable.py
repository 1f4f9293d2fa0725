r"""What reaches a terminal: text of rows, answers, judges and rewards without power over the screen.

A question, a model's answer or the body of a server's reply may hold any character. Some of them are orders to a
terminal (escape sequences that clear the screen, set its title or fill the clipboard, a carriage return that hides the
line before), some turn the reading direction round, and half a surrogate pair cannot be printed at all. `printable`
writes them as `\u001b`, which is also how JSON writes them; line ends and tabs stay, and so do all letters, signs and
emoji. Nothing here changes what is stored: files hold the text as it came.

`show` and `tell` are the only places that print (`tests/ground/test_printable.py` looks), and loggers come from
`logger`.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_ORDERS = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and line feed
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the direction of writing
    "\u2028\u2029"  # line ends to some terminals, none to others
    "\ufff9-\ufffb\U000e0000-\U000e007f"  # annotations and tags, which carry text that nobody sees
    "\ud800-\udfff"  # halves of surrogate pairs: no encoding takes them
    "]"
)

_hushed: list[bool] = []


def printable(text: str) -> str:
    r"""The text with every character that orders a terminal about written out, as `\u001b`."""
    # A file from Windows ends its lines so; the carriage return is part of the line end.
    return _ORDERS.sub(_written_out, text.replace("\r\n", "\n"))


def hush() -> None:
    """From now on this process says only why it ends: another one speaks for the run."""
    _hushed.append(True)
    logging.getLogger("mmrl").setLevel(logging.ERROR)


def hushed() -> bool:
    """Does another process speak?"""
    return bool(_hushed)


def show(text: str = "") -> None:
    """One result, to stdout."""
    if not hushed():
        _write(text, sys.stdout)


def tell(text: str, *, always: bool = False) -> None:
    """One message, to stderr, so that the output of a command can be piped; `always`: also where hushed."""
    if always or not hushed():
        _write(text, sys.stderr)


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """End quietly where the reader of a pipe has gone (`| head`), with the status a shell gives for it (141)."""
    try:
        try:
            yield
        finally:
            # What is still held back would fail at the interpreter's end, where nobody can catch it.
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + getattr(signal, "SIGPIPE", 13))


def logger(name: str) -> logging.Logger:
    """The logger of this name, whose messages are printable."""
    found = logging.getLogger(name)
    found.addFilter(_made_printable)  # the same filter is added once
    return found


def _write(text: str, stream: TextIO) -> None:
    # A terminal that knows no emoji gets them written out as well, instead of an error in the middle of a run.
    kind = stream.encoding or "utf-8"
    print(
        printable(text).encode(kind, "backslashreplace").decode(kind), file=stream, flush=True
    )


def _made_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True


def _written_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
