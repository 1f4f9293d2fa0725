"""Close-ups: numbers are those of the update, pictures those of the branches, and nothing else changes."""

import dataclasses
import json

import pytest
import torch

from mmrl.perception.masking import PatchMask
from mmrl.report.pictures import is_picture
from mmrl.rollouts.noisy import NoisyRollout
from mmrl.training.closeups import (
    ANSWERS,
    FRAMES,
    MEDIA,
    TokenMaps,
    all_branches,
    keep_sample,
    shown_media,
    spelt_out,
)
from mmrl.training.tracking import Tracker
from mmrl.types import Batch, Media, Rollout, Scores, VisualBranch


def batch(groups, length=3):
    """A batch of these groups with rising numbers."""
    rows = len(groups)
    tokens = torch.zeros(rows, length, dtype=torch.long)
    answers = [
        Rollout(None, group, tokens[0], tokens[0], tokens[0].byte(), "", "eos")
        for group in groups
    ]
    numbers = torch.arange(rows * length).float().view(rows, length)
    ones = torch.ones(rows)
    return Batch(
        answers,
        torch.tensor(groups),
        tokens,
        tokens == 0,
        ones,
        numbers,
        tokens.byte(),
        {"raw": Scores(-numbers, entropy=2 * numbers), "ref": Scores(numbers)},
    )


def test_maps_hold_the_first_group_and_the_first_scores():
    maps = TokenMaps.of(batch([7, 3, 7]))
    assert maps.rows == [0, 2]
    # Scores of an update come by parts, in any order; branches are compared with the raw scores.
    later = Scores(torch.full((2, 3), -1.0))
    maps.take([2, 1], {"masked": later, "raw": later})
    found = maps.answer(2, 2)
    assert found["advantage"] == [6.0, 7.0] and found["entropy"] == [12.0, 14.0]
    assert found["logp"] == [-6.0, -7.0]
    assert found["dependence/masked"] == [-5.0, -6.0]
    assert set(found) == {"advantage", "entropy", "logp", "dependence/masked"}
    assert "dependence/masked" not in maps.answer(0, 3)


def test_who_does_not_write_keeps_nothing(tmp_path):
    """As all processes but one; and a process without answers has nothing to keep."""
    silent = Tracker(tmp_path, writes=False)
    answers = batch([1, 1]).rollouts
    keep_sample(silent, None, answers, TokenMaps(), {}, None)
    silent.close_up(1, lambda: {"prompt": "p"})
    silent.evaluated(1, answers, [0.0, 0.0])
    silent.refresh()
    keep_sample(Tracker(tmp_path), None, [], TokenMaps(), {}, None)
    assert not list(tmp_path.iterdir())
    nobody = dataclasses.replace(batch([1]), rollouts=[])
    assert TokenMaps.of(nobody) == TokenMaps()


def test_the_branch_of_a_rollout_function_is_shown_like_a_scored_one():
    noisy, masked = VisualBranch(PatchMask(0.3)), VisualBranch(PatchMask(0.6))
    found = all_branches({"masked": masked}, NoisyRollout(None, noisy, share=0.5))
    assert found == {"masked": masked, "noisy": noisy}


def test_maps_are_bounded_and_own_their_memory():
    whole = batch([1] * (ANSWERS + 5))
    maps = TokenMaps.of(whole)
    assert len(maps.rows) == ANSWERS
    kept = maps.maps["logp/raw"][0]
    assert kept.untyped_storage().nbytes() == kept.nbytes


def test_pictures_are_small_and_few():
    still = Media(torch.zeros(1, 3, 900, 600, dtype=torch.uint8))
    clip = Media(torch.zeros(50, 3, 60, 40, dtype=torch.uint8), torch.arange(50).double() / 2)
    shown = shown_media([still, clip, still, still, still])
    assert len(shown) == MEDIA and [len(frames) for frames in shown[:2]] == [1, FRAMES]
    assert [shown[1][0]["time"], shown[1][-1]["time"]] == [0.0, 24.5]
    assert all(is_picture(frame["uri"]) for frames in shown for frame in frames)
    assert len(json.dumps(shown)) < 30_000


def test_no_number_is_lost_where_a_branch_was_not_scored():
    maps = TokenMaps.of(dataclasses.replace(batch([1, 1]), scores={}))
    assert maps.answer(1, 3) == {"advantage": [3.0, 4.0, 5.0]}


@pytest.mark.parametrize("text", ["plain", "größer 你好 🙂!", "🙂"])
def test_characters_of_several_tokens_are_whole(text):
    """With one token per byte, as a vocabulary has for what it does not know."""

    def spell(ids):
        return bytes(ids).decode("utf-8", "replace")

    spelt = spelt_out(list(text.encode()), spell)
    assert "".join(spelt) == text and len(spelt) == len(text.encode())
    assert set(spelt) <= {"", *text}


def test_bytes_that_are_no_character_are_not_waited_for():
    spelt = spelt_out([0xFF, 0x41, 0xE4], lambda ids: bytes(ids).decode("utf-8", "replace"))
    assert len(spelt) == 3 and "".join(spelt) == "\ufffdA\ufffd"


@pytest.mark.parametrize("text", ["data:image/png;base64,AAAA", "data:image/jpeg;base64,A+/="])
def test_pixels_are_pictures(text):
    assert is_picture(text)
