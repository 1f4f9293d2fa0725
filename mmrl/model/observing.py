"""What a tool answers, as tokens that go on behind those of an answer.

    … </call> | <|im_end|> <|im_start|>user  words <picture> words  <|im_end|> <|im_start|>assistant | the model again

The signs of the turn are those that the checkpoint's chat template writes between an answer and the next one; they are
found once, from a chat whose texts are known (`Frame.of`). Nothing that was sampled is tokenised again.

A tool's words are not to be trusted: signs of the template in them are taken apart (`harmless`). Words beyond a limit
are cut; a picture never is, whose size the pixel budget bounds, and its marks stay with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from mmrl.ground.faults import BadRow, encodable
from mmrl.model.answer_media import observed
from mmrl.model.processing import Processing
from mmrl.types import Media, Prompt

Side = Literal["left", "right", "middle"]
SAID, FIRST, SECOND = "What-was-said", "What-comes-first", "What-comes-second"
"""Words of the known chat. No template changes them."""


@dataclass(frozen=True)
class Frame:
    """What stands around an observation and its media, as text."""

    head: str
    tail: str
    picture: str
    """With the family's placeholder; "" if the family reads none."""
    clip: str

    @classmethod
    def of(cls, processing: Processing, role: str) -> Frame:
        """As the chat template writes it for turns of this role; "raw": nothing but the marks of media.

        Raises ValueError for a template that has no such turns.
        """
        sees = processing.family.sees
        picture = _mark(processing, "image") if "image" in sees else ""
        clip = _mark(processing, "video") if "video" in sees else ""
        if role == "raw":
            return cls("", "", picture, clip)
        asked = {"role": "user", "content": "A question."}
        said = {"role": "assistant", "content": SAID}
        turn = {"role": role, "content": [{"type": "text", "text": FIRST}]}
        text = _rendered(processing, Prompt("a turn of a tool", [asked, said, turn]), role)
        head, tail = _around(text, SAID, FIRST, role), text.rpartition(FIRST)[2]
        return cls(head, tail, picture, clip)


def observation(
    processing: Processing,
    frame: Frame,
    parts: Sequence[str | Media],
    most: int,
    side: Side,
) -> tuple[int, ...]:
    """Ids of words and media in their order, within the frame; of the words' ids `most` at most.

    Raises `BadRow` for a medium that cannot be shown to the model.
    """
    words = [_ids(processing, harmless(p, processing)) for p in parts if isinstance(p, str)]
    count = sum(map(len, words))
    stays = kept(count, most, side)
    found = _ids(processing, frame.head)
    at, spoken = 0, iter(words)
    for part in parts:
        if isinstance(part, str):
            ids = next(spoken)
            found += [token for place, token in enumerate(ids, at) if stays(place)]
            at += len(ids)
        else:
            mark = frame.clip if part.is_video else frame.picture
            if not mark:
                kind = "clips" if part.is_video else "pictures"
                raise BadRow(f"{processing.family.name} reads no {kind}.")
            found += observed(processing, mark, (part,)).tolist()
    return (*found, *_ids(processing, frame.tail))


def kept(count: int, most: int, side: Side) -> Callable[[int], bool]:
    """Which of `count` places stay if `most` may: the first ("right" is cut off), the last, or both ends."""
    if count <= most:
        first, last = count, 0
    elif side == "right":
        first, last = most, 0
    elif side == "left":
        first, last = 0, most
    else:
        first, last = most - most // 2, most // 2
    return lambda place: place < first or place >= count - last


def harmless(text: str, processing: Processing) -> str:
    """The text without signs of the chat template: a space is put into each; and without half characters."""
    text = encodable(text)
    signs = {*processing.family.structure, *map(processing.spell, _ends(processing))}
    for sign in sorted(signs, key=len, reverse=True):
        if len(sign) > 1:
            text = text.replace(sign, f"{sign[0]} {sign[1:]}")
    return text


def _ends(processing: Processing) -> list[list[int]]:
    return [[number] for number in (*processing.stop_ids, processing.pad_id)]


def _ids(processing: Processing, text: str) -> list[int]:
    return list(processing.encoder.encode(text).ids)


def _mark(processing: Processing, kind: Literal["image", "video"]) -> str:
    """How a picture or clip stands in a user's turn."""
    frames = torch.zeros(2 if kind == "video" else 1, 3, 64, 64, dtype=torch.uint8)
    times = torch.arange(2.0, dtype=torch.float64) if kind == "video" else None
    said = [{"type": "text", "text": FIRST}, {"type": kind}, {"type": "text", "text": SECOND}]
    message = {"role": "user", "content": said}
    prompt = Prompt("a picture of a tool", [message], (Media(frames, times),))
    return _around(_rendered(processing, prompt, "user"), FIRST, SECOND, "user")


def _rendered(processing: Processing, prompt: Prompt, role: str) -> str:
    try:
        return processing.render(prompt)
    except BadRow as error:
        raise ValueError(_no_turns(role)) from error


def _around(text: str, before: str, behind: str, role: str) -> str:
    """What stands between two words."""
    if text.count(before) != 1 or text.count(behind) != 1:
        raise ValueError(_no_turns(role))
    return text.partition(before)[2].partition(behind)[0]


def _no_turns(role: str) -> str:
    return (
        f"The chat template of this checkpoint has no turns of the role {role!r} behind an answer; let observations "
        "stand as another one, or as they are (--use.turns user or raw)."
    )
