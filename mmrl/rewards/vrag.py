"""VRAG-RL's rewards (arXiv 2505.22019): pages in the right order, the pattern of an answer, and a judged answer.

    r = 0.7·r_Ans + 0.1·r_Pat + 0.2·r_Ret        0 where r_Pat is 0
    r_Ret = DCG / IDCG      DCG = Σ_i (2^{s_i} - 1) / log2(i + 1)    IDCG = Σ_{i ≤ |D|} 1 / log2(i + 1)

s_i is 1 where the i-th retrieved page is among the reference pages D. As parts of `Rewards(gate="pattern")`.

Source: the released code (github.com/Alibaba-NLP/VRAG, commit 24f8d055); weights are those of its training.
Departures
1. A page counts once, however often it was retrieved; there repetitions pay, up to more than 1 (`repeats=True`).
2. What was retrieved is what the tool showed (`Rollout.calls`), not what names are found in the text.
3. `verdict` of a judge: a reply that says both, or that says it in other words, is none, where there both is "true"
   (`official=True`), and an outage never pays 0 (`judged.py`).
4. Without a judge: equal up to case and spaces, or ANLS of at least 0.5; ours, to be named apart from the judge's.

No torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar

from mmrl.ground.answers import tagged
from mmrl.ground.require import require
from mmrl.rewards.answers import matches, references, same_wording
from mmrl.rewards.contract import Reward
from mmrl.rewards.judge_prompts import Asked, judge_prompt
from mmrl.rewards.judged import Judged
from mmrl.rewards.judged_answer import LONGEST, asked
from mmrl.rewards.parts import needs_tags

if TYPE_CHECKING:
    from mmrl.types import Rollout

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
LONGEST_ANSWER = 500
"""Characters of an answer that are compared letter by letter."""
_TURN = re.compile(r"<\|im_start\|>user.*?<\|im_end\|>", re.DOTALL)
_JUDGED = re.compile(r"<judge>(.*?)</judge>", re.DOTALL)


def ndcg(retrieved: Sequence[str], relevant: Sequence[str], *, repeats: bool = False) -> float:
    """r_Ret in [0, 1]; 0 where nothing is relevant. With `repeats` a page counts each time: it may exceed 1."""
    pages = list(retrieved) if repeats else list(dict.fromkeys(retrieved))
    wanted = set(relevant)
    gained = sum(_discount(place) for place, page in enumerate(pages) if page in wanted)
    ideal = sum(map(_discount, range(len(wanted))))
    return gained / ideal if ideal else 0.0


def pattern(text: str) -> float:
    """r_Pat: 1 if an `<answer>` and a `<search>` are there, each closed, outside of the user's turns; else 0."""
    own = _TURN.sub("", text)
    has = [re.search(rf"<{tag}>.*?</{tag}>", own, re.DOTALL) for tag in ("answer", "search")]
    return float(all(has))


def verdict(reply: str, *, official: bool = False) -> bool | None:
    """What a judge says within `<judge>`; None if it says nothing that can be read."""
    found = _JUDGED.search(reply)
    said = found[1].lower() if found else ""
    if official:
        return True if "true" in said else False if "false" in said else None
    return {"true": True, "false": False}.get(said.strip())


def anls(prediction: str, gold: Sequence[str]) -> float:
    """1 minus the smallest edit distance to a reference, over the longer one's length; in [0, 1], case counts."""
    return max((_likeness(prediction, one) for one in gold), default=0.0)


@needs_tags("<search>", "</search>", "<answer>", "</answer>")
def answer_pattern(rollout: Rollout) -> float:
    """`pattern` of what the policy wrote."""
    return pattern(rollout.text)


@dataclass(frozen=True)
class Retrieval(Reward):
    """`ndcg` of the pages that searches showed, in their order."""

    column: str = "reference_pages"
    """Column with the names of the reference pages: a list, or a name; rows of VRAG-RL (`meta_info`) need none."""
    repeats: bool = False
    """Let a page that is retrieved again pay again, as in the official code."""
    key: str = "page"
    """Where a call notes the page that it showed (`Call.found`)."""

    def __post_init__(self) -> None:
        require(self, column=(bool(self.column.strip()), "the name of a column"))

    def __call__(self, rollout: Rollout) -> float:
        pages = [call.found.get(self.key) for call in rollout.calls if call.valid]
        shown = [page_name(str(page)) for page in pages if page is not None]
        return ndcg(
            shown, reference_pages(rollout.prompt.extra, self.column), repeats=self.repeats
        )


@dataclass(frozen=True)
class NearAnswer(Reward):
    """1 if the last `<answer>` is a reference up to case and spaces, or near one by its letters (ANLS); else 0."""

    least: float = 0.5
    """Smallest ANLS of a right answer; 1: it must be equal."""

    needs_tags: ClassVar[tuple[str, ...]] = ("<answer>", "</answer>")

    def __post_init__(self) -> None:
        require(self, least=(0 < self.least <= 1, "in (0, 1]"))

    def __call__(self, rollout: Rollout) -> float:
        said, wanted = tagged(rollout.text), references(rollout.prompt.answer)
        if said is None or matches(said, wanted, same_wording):
            return float(said is not None)
        # Short answers and numbers are right or wrong: a digit of them changes what they say.
        if not said or any(character.isdigit() for character in said):
            return 0.0
        small = said.casefold()[:LONGEST_ANSWER]
        likeness = anls(small, [one.casefold()[:LONGEST_ANSWER] for one in wanted])
        return float(likeness >= self.least)


@dataclass(frozen=True)
class JudgedPage(Judged):
    """1 if a judge finds the answer right; further information in it does no harm. An async reward."""

    judge_prompts: ClassVar[tuple[str, ...]] = ("page_answer",)

    async def __call__(self, rollout: Rollout) -> float:
        said = tagged(rollout.text)
        # The official code asks with a text that wants a no.
        if not said:
            return 0.0
        where = f"prompt {rollout.prompt.id!r}"
        return float(await self.ask(_request(rollout.prompt, said), verdict, where))


def reference_pages(extra: Mapping[str, Any], column: str) -> list[str]:
    """Names of a row's reference pages. Raises ValueError for a row without them."""
    given = extra.get(column)
    if isinstance(given, str):
        given = [given]
    if isinstance(given, Sequence):
        return [page_name(str(page)) for page in given]
    meta = extra.get("meta_info")
    if isinstance(meta, Mapping) and {"file_name", "reference_page"} <= meta.keys():
        file = PurePath(str(meta["file_name"])).name.removesuffix(".pdf")
        return [f"{file}_{page}" for page in meta["reference_page"]]
    raise ValueError(
        f"A row has no column {column!r} with the names of its reference pages, nor meta_info with file_name and "
        f"reference_page; it has {sorted(extra)}."
    )


def page_name(path: str) -> str:
    """The name of a page without folder and without the ending of a picture."""
    file = PurePath(path)
    return file.stem if file.suffix.lower() in PICTURES else file.name


def _request(prompt: Any, answer: str) -> Asked:
    return judge_prompt("page_answer").filled(
        question=asked(prompt.messages)[:LONGEST],
        reference="\n".join(references(prompt.answer))[:LONGEST],
        answer=answer[:LONGEST],
    )


def _discount(place: int) -> float:
    """1 / log2(i + 1) of place i - 1."""
    return 1 / math.log2(place + 2)


def _likeness(one: str, other: str) -> float:
    longer = max(len(one), len(other))
    return 1 - _edits(one, other) / longer if longer else 1.0


def _edits(one: str, other: str) -> int:
    """Fewest letters to put in, take out or change (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for down, letter in enumerate(one, 1):
        above, row = row, [down]
        for right, another in enumerate(other, 1):
            change = above[right - 1] + (letter != another)
            row.append(min(change, above[right] + 1, row[right - 1] + 1))
    return row[-1]
