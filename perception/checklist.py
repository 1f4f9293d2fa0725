"""Perception sub-questions (PEARL, arXiv 2511.18437): build them, ask them, mark the answers.

A row's column `checklist` lists K short questions about what must be *seen* to solve it, each with an answer that a
rule can check: [{"q": question, "a": answer, "type": "number" | "choice" | "short_text" | "bool"}]. One perception
prompt holds the picture and all K questions; the model answers with a numbered list, without reasoning. For answer i

    R_p^i = (1/K) * (number of sub-questions answered right),

and the mean over the group opens PEARL's fidelity gate (`mmrl.objectives.pearl`). PEARL has its lists written by a
large model; `questions_about` makes them by rule from labelled objects.

Our choices, since neither training code nor lists are published:
1. An answer that is no numbered list has all sub-answers wrong; a number given twice with different answers is wrong.
2. Graders are as strict as those of main answers (`mmrl.rewards.answers`); "bool" wants exactly one of yes and no.
3. `leaks` finds lists whose answers stand in the question itself, which would pay for seeing without looking.
4. A row without a list has no perception prompt; it is then trained by plain GRPO (factor 1, gate open).

No torch.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

from mmrl.ground.require import require
from mmrl.rewards.answers import (
    named_choice,
    plain,
    read_number,
    same_choice,
    same_number,
    same_text,
)

if TYPE_CHECKING:
    from mmrl.types import Prompt, Rollout

Kind = Literal["number", "choice", "short_text", "bool"]
MARKER = "checklist_of"
"""Column of a perception prompt: the id of the prompt that its questions belong to."""
INSTRUCTION = """Answer these questions about what can be seen. Do not explain.
Reply with a numbered list: one line per question, its number, a full stop, and a short answer."""

_LINE = re.compile(r"^[ \t]*(\d{1,3})[.):][ \t]*(.*?)[ \t]*$", re.MULTILINE)
_YES_NO = re.compile(r"\b(yes|no|true|false)\b")


@dataclass(frozen=True)
class Check:
    """One sub-question."""

    question: str
    """What to look for."""
    answer: str
    """What is to be seen."""
    kind: Kind = "short_text"
    """How answers are compared."""

    def __post_init__(self) -> None:
        kinds = get_args(Kind)
        require(self, kind=(self.kind in kinds, f"one of {', '.join(kinds)}"))
        if not self.question.strip() or not self.answer.strip():
            raise ValueError(
                f"a check needs a question and an answer; got {self.question!r} and {self.answer!r}."
            )
        # Said when the row is read: an answer that no grader understands could never be hit.
        readers = {"number": read_number, "choice": named_choice, "bool": _truth}
        reader = readers.get(self.kind, plain)
        if reader(self.answer) is None:
            raise ValueError(
                f"a check of kind {self.kind!r} has the answer {self.answer!r}, which cannot be read as one."
            )


def checks_of(extra: Mapping[str, Any], prompt_id: str = "") -> tuple[Check, ...]:
    """The sub-questions of a row, from its column `checklist` (a list or its JSON); none if it is absent or empty."""
    stated = extra.get("checklist")
    if stated is None or not len(stated):
        return ()
    try:
        rows = json.loads(stated) if isinstance(stated, str) else stated
        return tuple(_check_of(row) for row in rows)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"prompt {prompt_id!r}: the column checklist must be a list of {{'q': question, 'a': answer, 'type': "
            f"{' | '.join(get_args(Kind))}}}; found {str(stated)[:120]!r} ({error})."
        ) from error


def _check_of(row: Mapping[str, Any]) -> Check:
    return Check(str(row["q"]), str(row["a"]), row.get("type", "short_text"))


def question_text(checks: Sequence[Check]) -> str:
    """The text that asks all sub-questions at once."""
    questions = [f"{place}. {check.question}" for place, check in enumerate(checks, start=1)]
    return "\n".join([INSTRUCTION, "", *questions])


def perception_prompt(prompt: Prompt) -> Prompt | None:
    """The prompt that asks the checklist of this one about the same media; None if it has none."""
    checks = checks_of(prompt.extra, prompt.id)
    if not checks:
        return None
    parts = [
        {"type": part["type"]}
        for message in prompt.messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] in ("image", "video")
    ]
    content = [*parts, {"type": "text", "text": question_text(checks)}]
    return replace(
        prompt,
        id=f"{prompt.id}#checklist",
        messages=({"role": "user", "content": content},),
        answer=[check.answer for check in checks],
        extra={"checklist": prompt.extra["checklist"], MARKER: prompt.id},
    )


def marks(text: str, checks: Sequence[Check]) -> tuple[float, ...]:
    """1 or 0 for each sub-question, by the numbered list in the text."""
    given: dict[int, str] = {}
    spoiled: set[int] = set()
    for index, answer in _LINE.findall(text):
        place = int(index)
        # Two answers to one question would hedge; the same answer twice is harmless.
        if place in given and plain(given[place]) != plain(answer):
            spoiled.add(place)
        given[place] = answer
    marked: list[float] = []
    for place, check in enumerate(checks, start=1):
        answered = place in given and place not in spoiled
        marked.append(float(answered and is_right(given[place], check)))
    return tuple(marked)


def is_right(answer: str, check: Check) -> bool:
    """Whether a short answer is the one that is to be seen."""
    answer = answer.strip().rstrip(".")
    if check.kind == "number":
        return same_number(answer, check.answer)
    if check.kind == "choice":
        return same_choice(answer, check.answer)
    if check.kind == "bool":
        # An answer without yes or no is None, and so must not equal anything.
        return _truth(answer) is not None and _truth(answer) == _truth(check.answer)
    return bool(answer) and same_text(answer, check.answer)


def perception_accuracy(rollout: Rollout) -> float | None:
    """R_p: the share of sub-questions answered right; None for an answer to anything but a perception prompt."""
    if MARKER not in rollout.prompt.extra:
        return None
    checks = checks_of(rollout.prompt.extra, rollout.prompt.id)
    return sum(marks(rollout.text, checks)) / len(checks)


def leaks(checks: Sequence[Check], question: str) -> tuple[Check, ...]:
    """The sub-questions whose answer stands, as words, in the text of the question or of another sub-question."""
    texts = [question, *(check.question for check in checks)]
    leaking: list[Check] = []
    for check in checks:
        if check.kind == "bool":  # yes and no occur in any text
            continue
        others = [text for text in texts if text != check.question]
        if any(_mentions(text, check.answer) for text in others):
            leaking.append(check)
    return tuple(leaking)


def questions_about(objects: Sequence[Mapping[str, Any]], most: int = 6) -> tuple[Check, ...]:
    """Counting questions and one relation, made from labelled boxes [{"label": name, "bbox_2d": [x0, y0, x1, y1]}].

    Labels are asked in the order in which they first occur; at most `most` questions.
    """
    # Counter keeps the order of first occurrence, which makes the list the same in every run.
    counts = Counter(str(entry["label"]) for entry in objects)
    checks: list[Check] = []
    for name, count in counts.items():
        checks.append(Check(f"How many of these are there: {name}?", str(count), "number"))
    # "The cup" means something only if there is one.
    single = [entry for entry in objects if counts[str(entry["label"])] == 1]
    for first, second in pairwise(single):
        left, right = _centre(first), _centre(second)
        if left != right:
            asked = f"Is the centre of the {first['label']} further left than that of the {second['label']}?"
            checks.append(Check(asked, "yes" if left < right else "no", "bool"))
    return tuple(checks[:most])


def _centre(entry: Mapping[str, Any]) -> float:
    """Horizontal centre of a labelled box."""
    box = entry["bbox_2d"]
    return (box[0] + box[2]) / 2


def _truth(text: str) -> bool | None:
    """True for yes, False for no, None unless exactly one of them is said."""
    said = {word in ("yes", "true") for word in _YES_NO.findall(text.lower())}
    return said.pop() if len(said) == 1 else None


def _mentions(text: str, answer: str) -> bool:
    """Whether the answer occurs in the text as whole words."""
    word = re.escape(answer.strip().lower())
    # Not \b, which finds no edge beside an answer that ends in a sign, such as "50%".
    return re.search(rf"(?<!\w){word}(?!\w)", text.lower()) is not None
