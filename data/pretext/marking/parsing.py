"""Reading answers: one strict policy for all tasks, which never raises and never backtracks.

Policy. The last complete answer tag wins. A tag that is nested, not closed, or closed without being opened is an error
kind of its own. Unicode digits, dashes, spaces and full-width punctuation are normalised. Lists may be separated by
comma, space, semicolon, arrow or bar, or by nothing when at most nine single digits are expected. Intervals may carry a
unit of seconds. Any other prose inside the tag is an error unless `lenient`, which reads the last run that fits.
Numbers have at most nine digits before and after the point, without exponents; bodies are at most 2,000 characters.
Every pattern is a plain character scan (no nested quantifier), so the time is linear in the reply.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mmrl.data.pretext.surface import Surface, Tags
from mmrl.ground.answers import BOX, DECIMAL, after_thinking, closing_brace, normalise

ErrorKind = Literal[
    "missing", "nested", "unclosed", "unopened", "empty", "long", "malformed", "length", "range"
]

LONGEST_BODY = 2000
LONGEST_REPLY = 200_000

_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_SEPARATOR = re.compile(r"[,;|>\s]+")
_INTEGER = re.compile(r"[-+]?\d{1,9}")
_NUMBER = re.compile(DECIMAL)
_UNIT = r" ?(?:s|sec|secs|seconds|second)?\.?"
_INTERVAL = re.compile(
    rf"[\[(]? ?({DECIMAL}){_UNIT} ?(?:-|to|,|~) ?({DECIMAL}){_UNIT} ?[\])]?", re.IGNORECASE
)
_LETTER = re.compile(r"[\[(]?([A-Za-z])[\])]?[.:]?")


@dataclass(frozen=True)
class Parsed:
    """A well-formed answer; its value need not be right, nor even in range."""

    value: Any
    body: str
    """The text between the tags, normalised."""


@dataclass(frozen=True)
class ParseError:
    """Why a reply has no answer."""

    kind: ErrorKind
    where: str = ""
    """The first characters of what was read."""


def extract(text: str, surface: Surface | None = None) -> str | ParseError:
    """The body of the last answer of a reply, normalised, or why there is none."""
    surface = surface or Surface()
    if len(text) > LONGEST_REPLY:
        return ParseError("long", text[:40])
    if surface.thinking == "think":
        text = after_thinking(text)
    body = _EXTRACT[surface.tags](text)
    if isinstance(body, ParseError):
        return body
    if len(body) > LONGEST_BODY:
        return ParseError("long", body[:40])
    body = normalise(body)
    return body if body else ParseError("empty")


def integers(
    body: str, count: int | None = None, lenient: bool = False
) -> tuple[int, ...] | ParseError:
    """A list of integers. With `count` ≤ 9, bare digits such as 312 count as three entries.

    A list of another length than `count` is a "length" error."""
    text = _without_brackets(body)
    # The minus of an arrow is no sign.
    tokens = [token for token in _SEPARATOR.split(text.replace("->", ">")) if token]
    if lenient:
        tokens = _INTEGER.findall(text)
        if count and len(tokens) >= count:
            tokens = tokens[-count:]
    several_digits = count is not None and 1 < count <= 9
    if several_digits and len(tokens) == 1 and tokens[0].isdigit():
        tokens = list(tokens[0])
    if not tokens:
        return ParseError("empty")
    if not all(_INTEGER.fullmatch(token) for token in tokens):
        return ParseError("malformed", body[:40])
    if count is not None and len(tokens) != count:
        return ParseError("length", body[:40])
    return tuple(int(token) for token in tokens)


def numbers(
    body: str, count: int | None = None, lenient: bool = False
) -> tuple[float, ...] | ParseError:
    """A list of plain decimals (box corners, points)."""
    text = _without_brackets(body)
    tokens = [token for token in _SEPARATOR.split(text) if token]
    if lenient:
        tokens = _NUMBER.findall(text)
    if not tokens or not all(_NUMBER.fullmatch(token) for token in tokens):
        return ParseError("malformed" if tokens else "empty", body[:40])
    if count is not None and len(tokens) != count:
        return ParseError("length", body[:40])
    return tuple(float(token) for token in tokens)


def number(body: str, units: Sequence[str] = ()) -> float | ParseError:
    """One decimal, optionally followed by one of the units (case-insensitive)."""
    text = body.strip().rstrip(".").lower()
    for unit in sorted(units, key=len, reverse=True):
        if text.endswith(unit.lower()):
            text = text[: -len(unit)].strip()
            break
    return float(text) if _NUMBER.fullmatch(text) else ParseError("malformed", body[:40])


def interval(body: str, lenient: bool = False) -> tuple[float, float] | ParseError:
    """Start and end in seconds, start ≤ end: "3.0-4.5", "3 s to 4.5 s", "[3, 4.5]"."""
    body = " ".join(body.split())
    match = _INTERVAL.fullmatch(body)
    if match is None and lenient:
        found = list(_INTERVAL.finditer(body))
        match = found[-1] if found else None
    if match is None:
        return ParseError("malformed", body[:40])
    start, end = float(match[1]), float(match[2])
    return (start, end) if 0 <= start <= end else ParseError("range", body[:40])


def intervals(body: str, most: int = 32) -> tuple[tuple[float, float], ...] | ParseError:
    """Several intervals separated by semicolons, or by commas when each is written start-end. Sorted by start."""
    pieces = [body]
    if ";" in body:
        pieces = body.split(";")
    elif "-" in body or "to" in body.lower():  # else the comma is the one inside "3, 4.5"
        pieces = body.split(",")
    spans = [interval(piece) for piece in pieces if piece.strip()]
    if not spans:
        return ParseError("empty")
    if len(spans) > most:
        return ParseError("long", body[:40])
    good = [span for span in spans if not isinstance(span, ParseError)]
    if len(good) < len(spans):
        return ParseError("malformed", body[:40])
    return tuple(sorted(good))


def choice(body: str, options: Sequence[str]) -> str | ParseError:
    """One of the options; case and, for single letters, brackets or a full stop around it do not matter."""
    text = body.strip()
    match = _LETTER.fullmatch(text)
    bare = (match[1] if match else text.rstrip(".")).casefold()
    for option in options:
        if bare == option.casefold():
            return option
    return ParseError("range" if match else "malformed", body[:40])


def words(body: str, count: int | None = None) -> tuple[str, ...] | ParseError:
    """A list of lower-case words or short phrases, separated by comma, semicolon, bar or arrow."""
    text = _without_brackets(body)
    for separator in ("->", ">", ";", "|"):
        text = text.replace(separator, ",")
    pieces = [" ".join(piece.split()) for piece in text.split(",")]
    entries = tuple(piece.casefold() for piece in pieces if piece)
    if not entries:
        return ParseError("empty")
    if count is not None and len(entries) != count:
        return ParseError("length", body[:40])
    return entries


def _last_tag(text: str) -> str | ParseError:
    opened, body = -1, None
    for tag in _TAG.finditer(text):
        if not tag[1]:
            if opened >= 0:
                return ParseError("nested", text[opened : opened + 40])
            opened = tag.end()
        elif opened < 0:
            return ParseError("unopened", text[tag.start() : tag.start() + 40])
        else:
            body, opened = text[opened : tag.start()], -1
    if opened >= 0:
        return ParseError("unclosed", text[opened : opened + 40])
    return ParseError("missing", text[-40:]) if body is None else body


def _last_box(text: str) -> str | ParseError:
    start = text.rfind(BOX)
    if start < 0:
        return ParseError("missing", text[-40:])
    body = text[start + len(BOX) :]
    end = closing_brace(body, escapes=False)
    if end is None:
        return ParseError("unclosed", text[start : start + 40])
    # Is the box before this one still open where this one begins?
    outer = text.rfind(BOX, 0, start)
    if outer >= 0 and text.count("{", outer, start) > text.count("}", outer, start):
        return ParseError("nested", text[outer : outer + 40])
    return body[:end]


_EXTRACT: dict[Tags, Any] = {
    "answer": _last_tag,
    "boxed": _last_box,
    "plain": lambda text: text,
}


def _without_brackets(body: str) -> str:
    text = body.strip()
    enclosed = len(text) >= 2 and text[0] + text[-1] in ("[]", "()", "{}")
    return text[1:-1].strip() if enclosed else text
