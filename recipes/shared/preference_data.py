"""Pairs of responses as questions for a model that learns to judge (MSRL), and the drawn ones of the embedded preset.

Rows hold the better response as their answer and the worse one in the column `rejected`; a row with two pictures or
clips and no such column is a pair of these, of which the first is better. `caption` says what is to be seen, and
`task_type` is one of image-understanding, image-generation, video-understanding and video-generation. Which response is
shown first is drawn for each row; held-out pairs are asked in both orders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from mmrl.data.drawn.drawn import Drawn
from mmrl.data.drawn.scenes import NAMES
from mmrl.ground.faults import BadRow
from mmrl.ground.seeds import philox
from mmrl.rewards.judge_prompts import judge_prompt
from mmrl.rewards.judged_answer import asked
from mmrl.rewards.preference import (
    CAPTION,
    REJECTED,
    TASK,
    TwoResponses,
    responses_of,
)
from mmrl.types import Prompt, Prompts

Shown = Literal["text", "captioned", "visual"]
"""What a judge sees of pictures: there are none, their captions, they themselves."""
RATIONALE = "target"
"""Column with what a good judge wrote about a pair, tags included."""
FOR_MEDIA = "Of the two responses one picture or clip each is shown, in this order. "


class Pairs(Prompts):
    """A question for each pair of responses; with `both` each is asked in both orders, one behind the other."""

    def __init__(
        self, rows: Prompts, shown: Shown, seed: int, *, both: bool = False, bare: bool = False
    ) -> None:
        self.shown: Shown = shown
        self.rows, self.seed = rows, seed
        self.both, self.bare = both, bare
        self.size = None if rows.size is None else rows.size * (1 + both)

    def __getitem__(self, index: int) -> Prompt:
        place, second = divmod(index, 2) if self.both else (index, 0)
        row = self.rows[place]
        pair = responses_of(row)
        if pair is None:
            raise BadRow(
                f"{row.id}: the row is no pair of responses; it needs a better one as its answer and a worse one in "
                f"the column {REJECTED!r}, or two pictures or clips of which the first is better."
            )
        if philox("order of responses", self.seed, row.id).random() < 0.5:
            pair = pair.other_way()
        if second:
            pair = pair.other_way()
        asked_in = f"{row.id}:{'ba' if pair.swapped else 'ab'}"
        return self._asked(replace(row, id=asked_in), pair)

    def drain(self) -> Mapping[str, int]:
        """What the rows counted."""
        return self.rows.drain()

    def _asked(self, row: Prompt, pair: TwoResponses) -> Prompt:
        """The row's question about its responses."""
        media = row.media if self.shown == "visual" else ()
        of_media = row.extra.get(REJECTED) is None
        if of_media and pair.swapped:
            media = media[::-1]
        if of_media and self.shown != "visual":
            raise BadRow(
                f"{row.id}: pictures as responses can be compared in the visual stages only."
            )
        fields = {"question": asked(row.messages), "first": pair.first, "second": pair.second}
        if self.shown == "captioned":
            fields[CAPTION] = self._caption(row)
        if of_media:
            fields["question"] = FOR_MEDIA + fields["question"]
            fields |= {"first": "the first one shown", "second": "the second one shown"}
        messages = _bare(fields) if self.bare else _full(self.shown, fields)
        *before, last = messages
        kinds = [{"type": "video" if medium.is_video else "image"} for medium in media]
        said = [*kinds, {"type": "text", "text": last["content"]}]
        return replace(
            row, messages=[*before, {**last, "content": said}], media=media, answer=pair.letter
        )

    def _caption(self, row: Prompt) -> str:
        caption = row.extra.get(CAPTION)
        if not isinstance(caption, str) or not caption.strip():
            raise BadRow(f"{row.id}: the column {CAPTION!r} does not say what is to be seen.")
        return caption


class Interleaved(Prompts):
    """So many new rows, then an old one, and so on: an old share of 1 / (1 + new) in every stretch."""

    def __init__(self, new: Prompts, old: Prompts, ratio: int) -> None:
        self.new, self.old, self.ratio = new, old, ratio
        whole = None if new.size is None else new.size + -(-new.size // ratio)
        self.size = whole

    def __getitem__(self, index: int) -> Prompt:
        stretch, place = divmod(index, self.ratio + 1)
        if place < self.ratio:
            at = stretch * self.ratio + place
            return self.new[at if self.new.size is None else at % self.new.size]
        return self.old[stretch if self.old.size is None else stretch % self.old.size]

    def drain(self) -> Mapping[str, int]:
        """What both counted."""
        found = dict(self.new.drain())
        for name, count in self.old.drain().items():
            found[name] = found.get(name, 0) + count
        return found


class Told(Prompts):
    """Rows with the texts that they are to be answered with (`extra["target"]`), by place; others are left out."""

    def __init__(self, rows: Prompts, targets: Mapping[int, str]) -> None:
        self.rows, self.targets = rows, [*targets.items()]
        self.size = len(self.targets)

    def __getitem__(self, index: int) -> Prompt:
        place, text = self.targets[index]
        row = self.rows[place]
        return replace(row, extra={**row.extra, RATIONALE: text})


class DrawnPairs(Prompts):
    """Look-ups with a right and a wrong response, a caption, and a rationale with the letter of the better one."""

    def __init__(self, lookups: Drawn) -> None:
        self.lookups, self.size = lookups, lookups.size

    def __getitem__(self, index: int) -> Prompt:
        row = self.lookups[index]
        others = [name for name in NAMES if name != row.answer]
        wrong = others[int(philox("wrong response", row.id).integers(len(others)))]
        told = {
            REJECTED: wrong,
            CAPTION: ", ".join(row.extra["cells"]),
            TASK: "image-understanding",
        }
        return replace(row, extra={**row.extra, **told})


class Rationales(Prompts):
    """Pairs with what to write about them: the rows' own texts, or for drawn ones what the cell holds."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs, self.size = pairs, pairs.size

    def __getitem__(self, index: int) -> Prompt:
        prompt = self.pairs[index]
        text = prompt.extra.get(RATIONALE)
        if isinstance(self.pairs.rows, DrawnPairs):
            text = drawn_rationale(prompt, self.pairs.rows.lookups[index].answer)
        elif not isinstance(text, str) or not text.strip():
            raise BadRow(f"{prompt.id}: the column {RATIONALE!r} holds no rationale to learn.")
        return replace(prompt, extra={**prompt.extra, RATIONALE: text})

    def drain(self) -> Mapping[str, int]:
        """What the pairs counted."""
        return self.pairs.drain()


def drawn_rationale(prompt: Prompt, right: str) -> str:
    """The thought that says what the cell holds, and the letter."""
    return f"<think> {right} </think> <answer> {prompt.answer} </answer>"


def order_consistency(file: Path) -> float | None:
    """Share of held-out pairs that the last evaluation in `eval.jsonl` judged alike in both orders; None: no pair.

    A pair counts if the same response is preferred both times, right or wrong.
    """
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
    last = max((row["step"] for row in rows), default=0)
    scores: dict[str, dict[str, float]] = {}
    for row in rows:
        name, colon, order = str(row["prompt"]).rpartition(":")
        if row["step"] == last and colon and order in ("ab", "ba"):
            scores.setdefault(name, {})[order] = row["score"]
    pairs = [one for one in scores.values() if len(one) == 2]
    same = sum(one["ab"] == one["ba"] for one in pairs)
    return same / len(pairs) if pairs else None


def _full(shown: Shown, fields: Mapping[str, str]) -> Sequence[dict[str, Any]]:
    return judge_prompt(f"preference_{shown}").filled(**fields)


def _bare(fields: Mapping[str, str]) -> Sequence[dict[str, Any]]:
    """Few words, for a model that was taught the form."""
    seen = f"{fields[CAPTION]}. " if CAPTION in fields else ""
    text = f"{seen}{fields['question']} A: {fields['first']} B: {fields['second']}"
    return [{"role": "user", "content": text}]
