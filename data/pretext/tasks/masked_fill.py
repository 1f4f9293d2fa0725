"""Masked-then-fill (MR-RLVR, arXiv 2511.17473): parts of a worked solution are hidden. Fill them in.

Answer: one entry per mask, "1: 42; 2: a + b". Reward: mean over masks of 1 for an equivalent entry (numbers within
1e-6; expressions that agree for every value of their letters), else half the similarity of an expression's text if
that is at least 1/2, else 0. Missing masks earn 0, further ones are ignored, of a repeated number the first entry
counts.

Departures (the paper's details are not public): numbers are right or wrong, since 41 is not nearly 42; no separate pay
for the form; a span that is visible elsewhere and the last result are never hidden; solutions are drawn calculations.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from typing import Any, ClassVar

from numpy.random import Generator

from mmrl.data.pretext.contract import (
    Draft,
    Evidence,
    Knob,
    Knobs,
    Proposal,
    RawMedia,
    Reject,
    Score,
    Task,
    Truth,
    Visual,
)
from mmrl.data.pretext.craft.draws import shuffled_numbers
from mmrl.data.pretext.craft.worked_steps import LEAST, MOST, Step, calculation
from mmrl.data.pretext.marking.parsing import ParseError
from mmrl.data.pretext.marking.rewards import edit
from mmrl.data.pretext.tasks.step_reorder import drawn_page
from mmrl.ground.answers import DECIMAL
from mmrl.ground.seeds import Streams

SPANS = ("values", "expressions", "mixed")
LONGEST = 60
"""Characters of an expression that is looked at."""
MOST_ENTRIES = 50
"""Entries of an answer that are looked at."""
_ENTRY = re.compile(r"\[?(?:mask[ _]?)?(\d{1,2})\]? ?[:=] ?(.*)", re.IGNORECASE)
_NUMBER = re.compile(DECIMAL)
_TOKEN = re.compile(r"\d{1,6}|[A-Za-z]|[-+*()]")


class MaskedFillTask(Task):
    name = "masked-fill"
    kinds = ("none",)
    knobs: ClassVar = {
        "steps": Knob(5, (4, 5, 6, 8), help="Steps of the solution, 4 to 12."),
        "masks": Knob(2, (1, 2, 3), help="Hidden spans, at most steps − 2."),
        "spans": Knob("values", ("values", "mixed"), help="What is hidden.", allowed=SPANS),
        "show": Knob(
            "text",
            help="Solution as text or as a picture of a page.",
            allowed=("text", "picture"),
        ),
    }
    wordings = (
        "Parts of this calculation are hidden.{steps} Fill in every mask.",
        "What stands in place of the masks in this worked solution?{steps}",
        "Restore the hidden parts of the solution.{steps} Give the content of each mask.",
    )
    hint = 'one entry per mask as "number: content", separated by semicolons'

    def propose(self, media: RawMedia, knobs: Knobs, rng: Streams) -> Proposal:
        count, masks = int(knobs["steps"]), int(knobs["masks"])
        if not (4 <= count <= 12 and 1 <= masks <= count - 2):
            raise ValueError(
                f"masked-fill: {masks} masks in {count} steps; use 4 to 12 steps and masks ≤ steps − 2."
            )
        steps = calculation(count, rng.selection)
        if steps is None:
            return Reject("values-out-of-range")
        kinds = _kinds(str(knobs["spans"]), masks)
        # Neither the first step nor the last: the final result is what the text leads to.
        chosen = sorted(shuffled_numbers(count - 2, rng.selection)[:masks])
        hidden = dict(zip(chosen, kinds, strict=True))
        lines, answer = masked_lines(steps, hidden)
        if any(_visible(span, lines) for span in answer):
            return Reject("span-visible-elsewhere")
        drawn = knobs["show"] == "picture"
        return Draft(
            visuals=(Visual(drawn_page(lines, rng.appearance)),) if drawn else (),
            truth={"answer": answer},
            key=tuple(answer),
            fields={"steps": "" if drawn else "\n" + "\n".join(lines) + "\n"},
            evidence=(Evidence(0),) if drawn else (),
        )

    def read(self, body: str, truth: Truth) -> Any | ParseError:
        entries: dict[int, str] = {}
        lines = [line.strip() for line in body.replace("\n", ";").split(";")]
        lines = [line for line in lines if line][:MOST_ENTRIES]
        for line in lines:
            match = _ENTRY.fullmatch(line)
            if match:
                # Of a repeated number the first entry counts, so that a list of tries earns nothing.
                entries.setdefault(int(match[1]), match[2].strip())
        # A single mask needs no number.
        if not entries and len(truth["answer"]) == len(lines) == 1:
            entries[1] = lines[0]
        return entries if entries else ParseError("malformed", body[:40])

    def verify(self, value: Any, truth: Truth) -> Score:
        answer = truth["answer"]
        given = [value.get(place, "") for place in range(1, len(answer) + 1)]
        parts = [span_score(entry, wanted) for entry, wanted in zip(given, answer, strict=True)]
        right = all(part == 1.0 for part in parts)
        filled = sum(parts) / len(parts)
        key = tuple(answer) if right else tuple(" ".join(entry.split()) for entry in given)
        return Score(filled, right, {"filled": filled}, key)

    def format(self, truth: Truth) -> str:
        return "; ".join(f"{place}: {span}" for place, span in enumerate(truth["answer"], 1))

    def guess(self, truth: Truth, rng: Generator) -> str:
        values = rng.integers(LEAST, MOST + 1, size=len(truth["answer"]))
        return self.format({"answer": [int(value) for value in values]})

    def chance(self, knobs: Knobs) -> float:
        kinds = _kinds(str(knobs["spans"]), int(knobs["masks"]))
        # A number is never equivalent to an expression with letters.
        if "expression" in kinds:
            return 0.0
        return float(MOST - LEAST + 1) ** -len(kinds)

    def chance_reward(self, knobs: Knobs) -> float:
        kinds = _kinds(str(knobs["spans"]), int(knobs["masks"]))
        return kinds.count("value") / len(kinds) / (MOST - LEAST + 1)


def masked_lines(
    steps: Sequence[Step], hidden: Mapping[int, str]
) -> tuple[list[str], list[str]]:
    """The lines with [MASK_1], [MASK_2], … at the hidden spans, and what they hide; put back, it restores the text."""
    lines, answer = [], []
    for index, step in enumerate(steps):
        text = step.text
        if index in hidden:
            # A given quantity has no expression, only a value.
            hides_expression = hidden[index] == "expression" and step.sign
            span = step.expression if hides_expression else str(step.value)
            answer.append(span)
            # From the right: the value stands behind the last sign of equality.
            head, _, tail = text.rpartition(f"= {span}")
            text = f"{head}= [MASK_{len(answer)}]{tail}"
        lines.append(text)
    return lines, answer


def span_score(entry: str, wanted: str) -> float:
    """1 if equivalent; half the similarity of texts for expressions that are alike; else 0."""
    entry = entry.strip().strip("$").rstrip(".").strip()
    if _NUMBER.fullmatch(wanted):
        if not _NUMBER.fullmatch(entry):
            return 0.0
        return float(abs(float(entry) - float(wanted)) <= 1e-6)
    if len(entry) > LONGEST:
        return 0.0
    if equivalent_expressions(entry, wanted):
        return 1.0
    alike = edit(_spaceless(entry), _spaceless(wanted))
    return 0.5 * alike if alike >= 0.5 else 0.0


def equivalent_expressions(first: str, second: str) -> bool:
    """Do two expressions of +, −, × and letters agree at three generic points? Equal texts always do."""
    one, other = _tree(first), _tree(second)
    if one is None or other is None:
        return _spaceless(first) == _spaceless(second)
    for seed in (1, 2, 3):
        value = _value(one, seed)
        if value is None or value != _value(other, seed):
            return False
    return True


def _kinds(spans: str, masks: int) -> list[str]:
    """What each mask hides; "mixed" starts with a value and takes turns."""
    cycles = {
        "values": ("value",),
        "expressions": ("expression",),
        "mixed": ("value", "expression"),
    }
    return list(islice(cycle(cycles[spans]), masks))


def _visible(span: str, lines: Sequence[str]) -> bool:
    """Does the span stand anywhere in the lines as a whole?"""
    pattern = re.compile(rf"(?<![\w]){re.escape(span)}(?![\w])")
    return any(pattern.search(line) for line in lines)


def _spaceless(text: str) -> str:
    """Without spaces, and with one sign for all ways to write a product."""
    clean = "".join(text.split())
    for times in ("×", "\\times", "\\cdot", "·"):
        clean = clean.replace(times, "*")
    return clean


def _tree(text: str) -> ast.expr | None:
    """The parsed expression; None unless it is made of at most 32 numbers, single letters, brackets and + - *."""
    clean = _spaceless(text)
    found = _TOKEN.findall(clean)
    # Checked before parsing: nothing else of Python's grammar reaches the parser, and it cannot nest deeply.
    if not found or "".join(found) != clean or len(found) > 32:
        return None
    # "2if" is no expression, and Python would warn about it on the terminal.
    if re.search(r"\d[A-Za-z]", clean):
        return None
    try:
        return ast.parse(clean, mode="eval").body
    except SyntaxError:
        return None


def _value(tree: ast.expr, seed: int) -> int | None:
    """The value at a point where every letter has a large number of its own; None if there is anything but sums,
    differences and products."""
    if isinstance(tree, ast.Constant) and type(tree.value) is int:
        return tree.value
    if isinstance(tree, ast.Name) and len(tree.id) == 1:
        # Large and far from each other, so that two different polynomials of this size do not agree by chance.
        return 1009 * seed + 7919 * ord(tree.id) ** 2 % 100_003
    if not isinstance(tree, ast.BinOp) or type(tree.op) not in _OPERATIONS:
        return None
    first, second = _value(tree.left, seed), _value(tree.right, seed)
    if first is None or second is None:
        return None
    return _OPERATIONS[type(tree.op)](first, second)


_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}
