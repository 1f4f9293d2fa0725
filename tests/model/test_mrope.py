"""Our M-RoPE positions against transformers' `get_rope_index`, the golden values and the stated rule for videos."""

from __future__ import annotations

import json
import math
import os
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmrl.model.mrope import Block, mrope_positions

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "vtg"
TRANSFORMERS_OVERLAP = "expected_transformers_5_23_0"

TEXT = st.integers(0, 6)
SIDE = st.integers(1, 7)


@cache
def rope_index(family: str) -> Any:
    """The model class's own method, on a config without weights."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen3VLConfig, Qwen3VLModel

    config, kind = (
        (Qwen2_5_VLConfig(), Qwen2_5_VLModel)
        if family == "qwen2_5_vl"
        else (Qwen3VLConfig(), Qwen3VLModel)
    )
    config.vision_config.tokens_per_second = 2

    class Stand:
        get_vision_position_ids = kind.get_vision_position_ids
        get_rope_index = kind.get_rope_index

    stand = Stand()
    stand.config = config  # type: ignore[attr-defined]
    return stand


def types_of(length: int, blocks: list[Block], kind: int) -> Tensor:
    types = torch.zeros(length, dtype=torch.long)
    for block in blocks:
        types[block.start : block.start + block.tokens] = kind
    return types


def layout(
    pieces: list[tuple[int, tuple[int, int, int]]], tail: int, step: float = 1.0
) -> tuple[int, list[Block]]:
    """Blocks with so many text tokens before each, and the length with `tail` text tokens behind."""
    blocks, length = [], 0
    for text, grid in pieces:
        blocks.append(Block(length + text, grid, step))
        length += text + blocks[-1].tokens
    return length + tail, blocks


def theirs(family: str, length: int, blocks: list[Block], kind: int, **more: Any) -> Tensor:
    grids = torch.tensor([[t, 2 * h, 2 * w] for t, h, w in (block.grid for block in blocks)])
    name = "image_grid_thw" if kind == 1 else "video_grid_thw"
    types = types_of(length, blocks, kind)[None]
    ids = torch.ones_like(types)
    return rope_index(family).get_rope_index(
        ids, types, **{name: grids if blocks else None}, **more
    )[0][:, 0]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@given(
    pieces=st.lists(
        st.tuples(st.integers(1, 6), st.tuples(st.just(1), SIDE, SIDE)), max_size=5
    ),
    tail=st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_images_and_text_equal_the_library(family: str, pieces: list[Any], tail: int) -> None:
    length, blocks = layout(pieces, tail)
    assert torch.equal(mrope_positions(length, blocks), theirs(family, length, blocks, 1))


@given(
    pieces=st.lists(
        st.tuples(st.integers(1, 6), st.tuples(st.just(1), SIDE, SIDE)), min_size=1, max_size=6
    ),
    tail=TEXT,
)
@settings(max_examples=60, deadline=None)
def test_stamped_video_equals_the_library(pieces: list[Any], tail: int) -> None:
    """Qwen3-VL: each temporal patch is a block of its own, and the library's rows are one per video."""
    side = pieces[0][1]
    pieces = [(text, side) for text, _ in pieces]
    length, blocks = layout(pieces, tail)
    types = types_of(length, blocks, 2)[None]
    grid = torch.tensor([[len(blocks), 2 * side[1], 2 * side[2]]])
    expected = rope_index("qwen3_vl").get_rope_index(
        torch.ones_like(types), types, video_grid_thw=grid
    )[0][:, 0]
    assert torch.equal(mrope_positions(length, blocks), expected)


@given(
    text=TEXT,
    grid=st.tuples(st.integers(1, 20), SIDE, SIDE),
    seconds=st.floats(0.02, 20),
    tail=st.integers(1, 5),
)
@settings(max_examples=100, deadline=None)
def test_timed_video_follows_the_rule(
    text: int, grid: tuple[int, int, int], seconds: float, tail: int
) -> None:
    """The block as in the library; the text behind it above every position of the block, unlike the library's."""
    length, blocks = layout([(text, grid)], tail, step=2 * seconds)
    ours = mrope_positions(length, blocks)
    library = theirs("qwen2_5_vl", length, blocks, 2, second_per_grid_ts=[seconds])
    end = text + blocks[0].tokens
    assert torch.equal(ours[:, :end], library[:, :end])
    block = ours[:, text:end]
    assert torch.equal(ours[:, end:], (block.max() + 1 + torch.arange(tail)).expand(3, -1))
    overlaps = int(library[:, end].max()) <= int(block.max())
    assert torch.equal(ours, library) == (not overlaps)
    if int(block[0].max()) - text >= max(grid[1:]):
        assert overlaps


def test_library_overlaps_for_a_ten_second_clip() -> None:
    """The documented negative example: 5 temporal patches of 2 seconds, 2 positions a second."""
    length, blocks = layout([(3, (5, 2, 2))], 1, step=4.0)
    assert int(mrope_positions(length, blocks)[0, -1]) == 3 + 16 + 1
    assert (
        int(theirs("qwen2_5_vl", length, blocks, 2, second_per_grid_ts=[2.0])[0, -1]) == 3 + 2
    )


def test_positions_by_hand() -> None:
    blocks = [Block(2, (1, 2, 3)), Block(9, (2, 1, 2), step=1.5)]
    expected = [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 6, 7, 7, 8],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 6, 6, 6, 8],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 6, 7, 8],
    ]
    assert mrope_positions(14, blocks).tolist() == expected
    assert mrope_positions(3, []).tolist() == [[0, 1, 2]] * 3


def test_results_do_not_share_memory() -> None:
    blocks = [Block(0, (1, 2, 2))]
    first = mrope_positions(6, blocks)
    first += 100
    assert int(mrope_positions(6, blocks).min()) == 0


@pytest.mark.parametrize("length", [3, 5])
def test_blocks_outside_the_prompt_are_caught(length: int) -> None:
    with pytest.raises(AssertionError):
        mrope_positions(length, [Block(2, (1, 2, 2))])
    with pytest.raises(AssertionError, match="overlaps"):
        mrope_positions(20, [Block(2, (1, 2, 2)), Block(5, (1, 1, 1))])


def golden_mrope() -> dict[str, list[dict[str, Any]]]:
    found = [json.loads(path.read_text()) for path in sorted(GOLDEN.glob("*.json"))]
    cases: dict[str, list[dict[str, Any]]] = {}
    for content in (content for content in found if isinstance(content, dict)):
        for family, listed in content.get("mrope", {}).items():
            cases.setdefault(family, []).extend(listed)
    return cases


def test_golden_vtg_mrope_of_timed_video() -> None:
    """Qwen2.5-VL: the block as in 5.23, the text behind it above the block; differs from 5.23 where that overlaps."""
    cases = golden_mrope().get("qwen2_5_vl", [])
    assert cases, f"no known case in {GOLDEN}"
    differing = 0
    for case in cases:
        merge = case["spatial_merge"]
        t, h, w = case["grid_thw"]
        seconds = 1.0 if case["second_per_grid"] is None else case["second_per_grid"]
        pieces = [(case["text_before"], (t, h // merge, w // merge))]
        length, blocks = layout(pieces, case["text_after"], case["tokens_per_second"] * seconds)
        ours = mrope_positions(length, blocks)
        library = torch.tensor(case[TRANSFORMERS_OVERLAP]["position_ids"])
        end = length - case["text_after"]
        assert torch.equal(ours[:, :end], library[:, :end]), case
        if not case["text_after"]:
            continue
        assert int(ours[0, end]) == int(ours[:, :end].max()) + 1
        overlaps = int(library[0, end]) <= int(library[:, :end].max())
        differing += overlaps
        assert torch.equal(ours, library) != overlaps, case
        older = case.get("expected_transformers_4_57_1")
        whole_seconds = math.floor(seconds) == seconds
        if older is not None and whole_seconds:  # 4.57 is right but for truncating the seconds
            assert ours.tolist() == older["position_ids"], case
    assert differing, "no case shows the overlap of 5.23"


def test_golden_vtg_mrope_of_stamped_video() -> None:
    cases = golden_mrope().get("qwen3_vl", [])
    assert cases, f"no known case in {GOLDEN}"
    for case in cases:
        merge, stamp = case["spatial_merge"], case["timestamp_tokens_per_patch"]
        t, h, w = case["grid_thw"]
        patch = (1, h // merge, w // merge)
        pieces = [(case["text_before"] + stamp if i == 0 else stamp, patch) for i in range(t)]
        length, blocks = layout(pieces, case["text_after"])
        ours = mrope_positions(length, blocks)
        assert ours.tolist() == case["expected"]["position_ids"], case
        assert int(ours.max()) + 1 - length == case["expected"]["delta"]


def test_golden_vtg_mrope_families_are_known() -> None:
    unknown = sorted(set(golden_mrope()) - {"qwen2_5_vl", "qwen3_vl"})
    if unknown:
        warnings.warn(
            f"golden mrope cases of families that we do not have: {unknown}", stacklevel=1
        )
        pytest.skip(f"unknown families {unknown}")
