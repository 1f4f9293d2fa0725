"""VMR (arXiv 2511.02463): a request with a preferred and a rejected answer becomes a choice that can be checked.

    (request, chosen, rejected)  ->  the request, both answers as options in random order, "which one is better?"

The reward is that of any choice: the letter of the chosen answer is right. Which letter that is depends on the seed and
the row's id alone. With more than two options k - 1 rejected answers are drawn where a row has more of them.

A row that would teach something else raises `Fault`, whose reason is counted:

    no answer to compare     a column is missing or empty, or has fewer rejected answers than are asked for
    equal answers            two options are the same but for case, spaces and punctuation
    answers of unlike length the longest option has more than `ratio` times the characters of the shortest (length cue)
    answers too long         an option has more than `longest` characters
    answers with marks       an option has a line that looks like the head of an option, and would be taken for one

`choice_audit` looks for what these rules do not see. Departures: no official code; the template and the bounds are
ours. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrl.ground.faults import Fault, shown
from mmrl.ground.require import require
from mmrl.ground.seeds import philox

LETTERS = "ABCDEFGH"
TEMPLATE = """Answers to one request follow, each under its letter. Compare them and decide which one is best.

Request:
{question}

{options}

Which option is best? Answer with its letter."""
BARE = "{question} {options}"
"""For the tiny embedded model."""
_HEAD = re.compile(
    r"^\W*option\s+[a-h]\b\W*$|^\W*option\s+[a-h]\s*:", re.IGNORECASE | re.MULTILINE
)


@dataclass(frozen=True)
class VMR:
    """How rows with preferred answers become choices."""

    chosen: str = "chosen"
    """Column with the preferred answer: a text, or a chat that ends with it."""
    rejected: str = "rejected"
    """Column with the answer that lost, or a list of several."""
    options: int = 2
    """Answers to choose among, 2 to 8."""
    longest: int = 8000
    """Most characters of an answer; rows with longer ones are left out."""
    ratio: float = 3.0
    """The longest answer may have so many times the characters of the shortest; else length alone would tell."""
    bare: bool = False
    """The request and the answers alone, without the words around them; for a model that was taught the form."""

    def __post_init__(self) -> None:
        require(
            self,
            chosen=(bool(self.chosen.strip()), "the name of a column"),
            rejected=(bool(self.rejected.strip()), "the name of a column"),
            options=(2 <= self.options <= len(LETTERS), f"2 to {len(LETTERS)}"),
            longest=(self.longest >= 1, "at least 1"),
            ratio=(self.ratio >= 1, "at least 1"),
        )


@dataclass(frozen=True)
class Choice:
    """A row that was converted."""

    text: str
    """What is asked."""
    options: tuple[str, ...]
    """The answers by letter: A, B, …"""
    answer: str
    """The letter of the chosen one."""

    @property
    def chosen(self) -> str:
        """The preferred answer, found by its letter."""
        return self.options[LETTERS.index(self.answer)]


def choice_of(
    question: str, row: Mapping[str, Any], name: str, vmr: VMR, seed: int = 0
) -> Choice:
    """The choice that a row with this question and id becomes. Raises `Fault`."""
    draws = philox("choice", seed, name)
    chosen = response(row.get(vmr.chosen), vmr.chosen)
    lost = [response(one, vmr.rejected) for one in several(row.get(vmr.rejected))]
    if len(lost) < vmr.options - 1:
        found = f"column {vmr.rejected!r} has {len(lost)} answers for {vmr.options} options"
        raise Fault("no answer to compare", found, "Ask for fewer options, or drop the row.")
    picked = sorted(draws.permutation(len(lost))[: vmr.options - 1])
    answers = [chosen, *(lost[place] for place in picked)]
    refuse_cues(answers, vmr)
    order = draws.permutation(len(answers)).tolist()
    options = tuple(answers[place] for place in order)
    return Choice(asked(question, options, vmr.bare), options, LETTERS[order.index(0)])


def refuse_cues(answers: Sequence[str], vmr: VMR) -> None:
    """Raise `Fault` for answers that cannot be compared, or of which something beside their content would tell."""
    plain = [re.sub(r"\W+", "", answer).casefold() or answer for answer in answers]
    lengths = [len(answer) for answer in answers]
    if len(set(plain)) < len(plain):
        raise Fault("equal answers", f"two of {shown(list(answers))}", "Drop the row.")
    if max(lengths) > vmr.longest:
        found = f"{max(lengths)} characters, above {vmr.longest}"
        raise Fault("answers too long", found, "Raise the bound (longest), or drop the row.")
    if max(lengths) > vmr.ratio * min(lengths):
        found = f"{min(lengths)} to {max(lengths)} characters, more than {vmr.ratio:g} times"
        raise Fault(
            "answers of unlike length", found, "Raise the bound (ratio), or drop the row."
        )
    marked = [answer for answer in answers if _HEAD.search(answer)]
    if marked:
        raise Fault(
            "answers with marks", f"heads of options in {shown(marked[0])}", "Drop the row."
        )


def asked(question: str, options: Sequence[str], bare: bool = False) -> str:
    """What is asked of the model."""
    if bare:
        listed = " ".join(
            f"{letter} {text}" for letter, text in zip(LETTERS, options, strict=False)
        )
        template = BARE
    else:
        listed = "\n\n".join(
            f"Option {letter}:\n{text}" for letter, text in zip(LETTERS, options, strict=False)
        )
        template = TEMPLATE
    # The question first and by halves: what looks like a field in it or in an option stays.
    before, _, rest = template.partition("{question}")
    middle, _, after = rest.partition("{options}")
    return f"{before}{question.strip()}{middle}{listed}{after}"


def response(cell: Any, column: str) -> str:
    """The answer in a cell: a text, a turn, or the last turn of a chat. Raises `Fault` if there is none."""
    found = cell
    if isinstance(found, list | tuple) and found and isinstance(found[-1], Mapping):
        found = found[-1]
    if isinstance(found, Mapping):
        found = found.get("content", found.get("value"))
    if isinstance(found, list | tuple):
        found = "".join(
            str(part.get("text", "")) for part in found if isinstance(part, Mapping)
        )
    if not isinstance(found, str) or not found.strip():
        told = f"column {column!r} holds {shown(cell)}"
        raise Fault("no answer to compare", told, "Give a text or a chat, or drop the row.")
    return found.strip()


def several(cell: Any) -> list[Any]:
    """The rejected answers of a cell: several texts or chats, or the only one."""
    if not isinstance(cell, list | tuple):
        return [cell]
    # A list of turns is one chat.
    is_chat = bool(cell) and isinstance(cell[0], Mapping)
    return [cell] if is_chat else list(cell)
