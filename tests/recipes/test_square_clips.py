"""Families that show every frame in equal squares keep no limit per frame, and say so before anything is decoded."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mmrl.model.families import family_of
from mmrl.model.released import config_of
from mmrl.recipes.shared.clip_data import Clips, refuse_token_limits


def policy(name):
    config = config_of(name)
    return SimpleNamespace(
        family=family_of(config.model_type), base=SimpleNamespace(config=config)
    )


@pytest.mark.parametrize(
    ("clips", "said"),
    [
        (
            Clips(),
            r"256 tokens: 448 frames take 114,688, .*total-tokens 14,336.*max-frames 56 ",
        ),
        (
            Clips(num_frames=9, max_tokens=2048),
            r"256 tokens: 9 frames take 2,304, .*max-tokens 2,048",
        ),
        (
            Clips(max_frame_tokens=64),
            r"256 tokens, more than --clips.max-frame-tokens 64; set that",
        ),
    ],
)
def test_limits_that_squares_cannot_keep_are_refused(clips, said):
    with pytest.raises(ValueError, match=f"InternVL shows every frame in {said}"):
        refuse_token_limits(clips, policy("OpenGVLab/InternVL3-8B-hf"))
    refuse_token_limits(clips, policy("Qwen/Qwen2.5-VL-7B-Instruct"))


def test_limits_that_are_kept_pass():
    refuse_token_limits(Clips(max_frames=56), policy("OpenGVLab/InternVL3-8B-hf"))
