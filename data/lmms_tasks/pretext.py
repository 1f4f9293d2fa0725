"""Pretext tasks for lmms-eval: rows as `mmrl pretext export` writes them, paid as in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmrl.data.pretext.stream.scoring import score_row

Doc = Mapping[str, Any]


def messages(doc: Doc, kwargs: Any = None) -> list[dict[str, Any]]:
    """The row's chat with its media in their places; a clip is the list of its frames."""
    images, clips = iter(doc["images"] or ()), iter(doc["videos"] or ())
    chat: list[dict[str, Any]] = []
    for message in doc["prompt"]:
        parts: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "text":
                parts.append({"type": "text", "text": part["text"]})
            else:
                medium = next(images if part["type"] == "image" else clips)
                parts.append({"type": part["type"], "url": medium})
        chat.append({"role": message["role"], "content": parts})
    return chat


def visuals(doc: Doc) -> list[Any]:
    """Pictures and frames in order, for models that take media first and text afterwards."""
    frames = [frame for clip in doc["videos"] or () for frame in clip]
    return [*(doc["images"] or ()), *frames]


def question(doc: Doc, kwargs: Any = None) -> str:
    """The texts of the chat, one below the other."""
    parts = [part for message in doc["prompt"] for part in message["content"]]
    return "\n".join(part["text"] for part in parts if part["type"] == "text")


def target(doc: Doc) -> str:
    """The true answer."""
    return doc["solution"]


def score(doc: Doc, results: Sequence[Any]) -> dict[str, float]:
    """The reward of one answer, and whether it is right."""
    found = score_row(str(results[0]), doc)
    return {"reward": found.reward, "accuracy": float(found.correct)}
