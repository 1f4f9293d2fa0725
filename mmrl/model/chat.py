"""Is this prompt well formed? Messages reduced to plain parts, and media checked against them, before any work is done.

Text that contains a structural token of the family (`<|im_start|>`, `<|image_pad|>`, ...) is refused: tokenised as
ordinary text it would be another question, taken literally it would forge turns or pictures. `<image>` is ordinary text
here; loaders turn it into parts. Every refusal is a `BadRow` that names the prompt, what was found and how to mend it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmrl.ground.faults import BadRow, encodable, is_broken
from mmrl.model.families.family import TURNS, VISION_TOKENS
from mmrl.types import Prompt

STRUCTURE = (*TURNS, *VISION_TOKENS)
"""Structural tokens of the Qwen-VL families."""
ROLES = ("system", "user", "assistant", "tool")
VISUAL = ("image", "video")


def bad_row(prompt: Prompt, what: str) -> BadRow:
    """The error for this prompt."""
    return BadRow(encodable(f"Prompt {prompt.id!r}: {what}."))


def structural_token(text: str, structure: Sequence[str] = STRUCTURE) -> str | None:
    """The first of the structural tokens that occurs in the text, if any."""
    # A cheap look first: texts can be long, and hardly any has one.
    if "<" not in text:
        return None
    return next((token for token in structure if token in text), None)


def plain_messages(
    prompt: Prompt, structure: Sequence[str] = STRUCTURE
) -> list[dict[str, Any]]:
    """The messages with nothing but a role and a content: a string, or parts of type text, image or video.

    Raises `BadRow`, also for a text with one of the tokens `structure`.
    """
    if not prompt.messages:
        raise bad_row(prompt, "it has no messages; a prompt needs at least one user message")
    messages = []
    for turn, message in enumerate(prompt.messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise bad_row(
                prompt, f"message {turn} has the role {role!r}; roles are {', '.join(ROLES)}"
            )
        if isinstance(content, str):
            part = {"type": "text", "text": content}
            plain: Any = _plain_part(prompt, turn, part, structure)["text"]
        elif isinstance(content, Sequence):
            plain = [_plain_part(prompt, turn, part, structure) for part in content]
        else:
            raise bad_row(
                prompt,
                f"message {turn} has the content {content!r}; give a string or a list of parts",
            )
        messages.append({"role": role, "content": plain})
    # The template opens the assistant's turn itself; a last one of its own would be a half-written answer.
    if messages[-1]["role"] == "assistant":
        raise bad_row(
            prompt,
            "the last message is the assistant's; a prompt must end with a user or tool message",
        )
    return messages


def visual_kinds(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """ "image" or "video" for each visual part of plain messages, in order."""
    kinds: list[str] = []
    for message in messages:
        if isinstance(message["content"], str):
            continue
        for part in message["content"]:
            if part["type"] in VISUAL:
                kinds.append(part["type"])
    return kinds


def check_media(prompt: Prompt, kinds: Sequence[str]) -> None:
    """Do the media match the visual parts in number and kind, and are they uint8 frames with sane times?"""
    if len(kinds) != len(prompt.media):
        raise bad_row(
            prompt,
            f"its messages show {len(kinds)} images or videos, but it has {len(prompt.media)} media; add or remove "
            "{'type': 'image'} or {'type': 'video'} parts until both are equal",
        )
    for index, medium in enumerate(prompt.media):
        kind, frames, times = kinds[index], medium.frames, medium.times
        # No conversion of floats or grey pictures: their range cannot be told from the numbers.
        if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8:
            found = f"{frames.dtype} {list(frames.shape)}"
            raise bad_row(
                prompt, f"medium {index} is {found}; frames must be uint8 [F, 3, H, W] (RGB)"
            )
        if (kind == "video") != medium.is_video:
            found = (
                "a video (it has times)" if medium.is_video else "an image (it has no times)"
            )
            raise bad_row(
                prompt,
                f"visual part {index} is of type {kind!r}, but medium {index} is {found}; change one",
            )
        if times is not None:
            _check_times(prompt, index, times, len(frames))
        elif len(frames) != 1:
            raise bad_row(
                prompt,
                f"medium {index} is an image with {len(frames)} frames; give one frame, or times",
            )


def _check_times(prompt: Prompt, index: int, times: Tensor, frames: int) -> None:
    if times.shape != (frames,):
        raise bad_row(
            prompt,
            f"medium {index} has {frames} frames, but times of shape {list(times.shape)}; give one each",
        )
    # Equal neighbours are allowed: a clip of an odd number of frames may repeat its last one.
    rising = (times.diff() >= 0).all()
    if not (rising and times.isfinite().all() and (times >= 0).all()):
        raise bad_row(
            prompt,
            f"medium {index} has the times {times.tolist()}; they must be finite, >= 0 and not fall",
        )


def _plain_part(
    prompt: Prompt, turn: int, part: Any, structure: Sequence[str]
) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in VISUAL:
        # Nothing else is kept: templates of checkpoints react to keys such as "image" or "min_pixels".
        return {"type": str(kind)}
    text = part.get("text") if kind == "text" else None  # type: ignore[union-attr]
    if not isinstance(text, str):
        known = "{'type': 'text', 'text': ...}, {'type': 'image'} and {'type': 'video'}"
        raise bad_row(prompt, f"message {turn} has the part {part!r}; parts are {known}")
    if is_broken(text):
        raise bad_row(
            prompt,
            f"message {turn} holds half of a surrogate pair (half an emoji), which no tokenizer takes; mend the text",
        )
    if found := structural_token(text, structure):
        raise bad_row(
            prompt,
            f"message {turn} contains the special token {found} as text; remove it, or use an image or video part "
            "where a picture is meant",
        )
    return {"type": "text", "text": text}
