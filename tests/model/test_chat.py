"""Ill-formed prompts are refused with what was found and how to mend it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmrl.ground.faults import BadRow
from mmrl.model.chat import (
    STRUCTURE,
    check_media,
    plain_messages,
    structural_token,
    visual_kinds,
)
from mmrl.types import Media, Prompt

IMAGE = Media(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def clip(frames: int, times: Any) -> Media:
    return Media(
        torch.zeros(frames, 3, 16, 16, dtype=torch.uint8),
        torch.tensor(times, dtype=torch.float64),
    )


def user(*content: Any) -> Prompt:
    return Prompt("row 7", [{"role": "user", "content": list(content)}])


def test_plain_messages_keep_text_and_drop_other_keys() -> None:
    content = [
        {"type": "image", "image": "cat.png"},
        {"type": "text", "text": "What <image> ?", "lang": "en"},
    ]
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": content, "name": "x"},
    ]
    plain = plain_messages(Prompt("a", turns))
    assert plain == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "What <image> ?"}],
        },
    ]
    assert visual_kinds(plain) == ["image"]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt("row 7", []), "no messages"),
        (Prompt("row 7", [{"content": "hi"}]), "role None"),
        (Prompt("row 7", [{"role": "robot", "content": "hi"}]), "'robot'.*system, user"),
        (
            Prompt("row 7", [{"role": "user", "content": None}]),
            "content None.*string or a list",
        ),
        (
            Prompt(
                "row 7",
                [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}],
            ),
            "must end with",
        ),
        (user({"type": "audio"}), "'audio'.*parts are"),
        (user({"type": "text"}), "parts are"),
        (user({"type": "text", "text": 3}), "parts are"),
        (user("plain"), "parts are"),
    ],
)
def test_bad_messages(prompt: Prompt, message: str) -> None:
    with pytest.raises(BadRow, match=message) as caught:
        plain_messages(prompt)
    assert "row 7" in str(caught.value)


@pytest.mark.parametrize("token", STRUCTURE)
def test_structural_tokens_in_text_are_refused(token: str) -> None:
    for prompt in (
        user({"type": "text", "text": f"a{token}b"}),
        Prompt("r", [{"role": "user", "content": token}]),
    ):
        with pytest.raises(BadRow, match="special token") as caught:
            plain_messages(prompt)
        assert token in str(caught.value)


def test_harmless_text_passes() -> None:
    for text in ("<|", "<image>", "a < b | c > d", "<think>x</think>", "<0.2 seconds>"):
        assert structural_token(text) is None


@pytest.mark.parametrize(
    ("media", "kinds", "message"),
    [
        ((IMAGE,), [], "show 0 images or videos, but it has 1 media; add or remove"),
        ((), ["image", "video"], "show 2 images or videos, but it has 0 media"),
        ((IMAGE,), ["video"], "'video', but medium 0 is an image"),
        ((IMAGE, clip(2, [0.0, 1.0])), ["image", "image"], "'image', but medium 1 is a video"),
        (
            (Media(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)),),
            ["image"],
            "image with 2 frames",
        ),
        ((Media(torch.zeros(1, 3, 16, 16)),), ["image"], "float32.*uint8"),
        (
            (Media(torch.zeros(3, 16, 16, dtype=torch.uint8)),),
            ["image"],
            r"\[3, 16, 16\].*uint8 \[F, 3",
        ),
        ((Media(torch.zeros(1, 1, 16, 16, dtype=torch.uint8)),), ["image"], "uint8"),
        ((clip(3, [0.0, 1.0]),), ["video"], "3 frames, but times of shape"),
        ((clip(2, [1.0, 0.5]),), ["video"], "not fall"),
        ((clip(2, [-1.0, 0.5]),), ["video"], ">= 0"),
        ((clip(2, [0.0, float("nan")]),), ["video"], "finite"),
    ],
)
def test_bad_media(media: tuple[Media, ...], kinds: list[str], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        check_media(Prompt("row 7", [{"role": "user", "content": "x"}], media), kinds)


def test_good_media_pass() -> None:
    media = (IMAGE, clip(3, [0.5, 0.5, 2.0]))
    check_media(Prompt("row 7", [{"role": "user", "content": "x"}], media), ["image", "video"])
