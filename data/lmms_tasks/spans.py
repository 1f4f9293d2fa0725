"""When something happens in a clip, for lmms-eval: rows of `spans.jsonl` and our measure of an answer.

A row has `video` (a path), `query` or the whole `question`, `spans` in seconds (or `span`, one of them), and may have
`duration`. The first span of an answer counts, as in `mmrl.data.grounding.metrics`; one that cannot be read is worth 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.data.grounding.metrics import THRESHOLDS, Answered, score_answer
from mmrl.data.grounding.questions import SPAN_TEMPLATE, clean_query, span_answer
from mmrl.data.grounding.spans import Spans, as_spans

Doc = Mapping[str, Any]


def visuals(doc: Doc) -> list[str]:
    """The clip, for models that take media first and text afterwards."""
    return [doc["video"]]


def question(doc: Doc, kwargs: Any = None) -> str:
    """The whole text of the question."""
    return doc.get("question") or SPAN_TEMPLATE.replace("{query}", clean_query(doc["query"]))


def messages(doc: Doc, kwargs: Any = None) -> list[dict[str, Any]]:
    """The chat, for models that take one."""
    parts = [{"type": "video", "url": doc["video"]}, {"type": "text", "text": question(doc)}]
    return [{"role": "user", "content": parts}]


def target(doc: Doc) -> str:
    """The true answer in words."""
    return span_answer(_truth(doc))


def score(doc: Doc, results: Sequence[Any]) -> dict[str, float]:
    """mIoU and R1@m of one answer, in percent."""
    answered = Answered(str(results[0]), _truth(doc), duration=doc.get("duration"))
    iou = score_answer(answered)
    recalls = {f"R1@{m}": 100.0 * (iou >= m) for m in THRESHOLDS}
    return {"mIoU": 100 * iou, **recalls}


def _truth(doc: Doc) -> Spans:
    return as_spans(doc.get("spans") or [doc["span"]])
