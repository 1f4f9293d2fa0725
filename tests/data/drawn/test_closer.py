"""Drawn tasks that want a closer look: nothing is left at half the size, all is there in the crop."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmrl.data.drawn.closer import Closer, closer_texts, render_hidden
from mmrl.data.drawn.scenes import NAMES
from mmrl.data.rows.sources import load_prompts
from mmrl.ground.calls import Action
from mmrl.recipes.shared.opening import Data, open_data
from mmrl.recipes.shared.tool_boxes import Pages
from mmrl.tools.crop import Crop
from mmrl.tools.tool import Trajectory
from mmrl.tools.toolbox import ToolUse


def smaller(picture, factor):
    """As the processors of the model families shrink pictures."""
    frames = torch.from_numpy(picture)[None].float()
    size = [side // factor for side in picture.shape[1:]]
    kind = {"mode": "bicubic", "antialias": True}
    return torch.nn.functional.interpolate(frames, size=size, **kind).round()[0]


def filled(code, cell=32):
    return render_hidden(np.full((2, 2), code, dtype=np.int8), cell)


@pytest.mark.parametrize("cell", [32, 48])
@pytest.mark.parametrize("factor", [2, 4])
def test_all_shapes_look_alike_where_the_picture_is_shown_smaller(cell, factor):
    shown = torch.stack([smaller(filled(code, cell), factor) for code in range(len(NAMES))])
    # One level of 255 from rounding; the background's rows and columns are told apart by sixty.
    assert (shown.amax(0) - shown.amin(0)).max() <= 1
    assert shown[0].amax() - shown[0].amin() > 50


def test_in_its_own_size_every_shape_is_another():
    pictures = [filled(code).astype(float) for code in range(len(NAMES))]
    for one in range(len(pictures)):
        for other in range(one):
            assert abs(pictures[one] - pictures[other]).mean() > 3


def test_a_crop_of_the_evidence_shows_the_answer():
    prompt = Closer("zoom", seed=3)[5]
    (box,) = prompt.extra["evidence"]["boxes"]
    halved = SimpleNamespace(plans=lambda _: [SimpleNamespace(size=(32, 32))])
    shown = [number / 2 for number in box]
    way = Trajectory(prompt, media=list(prompt.media))
    seen = Crop(plans=halved, padding=0).act(Action("crop_image", {"bbox_2d": shown}), way)
    row, column = prompt.extra["row"] - 1, prompt.extra["column"] - 1
    code = NAMES.index(prompt.answer)
    whole = filled(code)[:, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
    assert np.array_equal(seen.media[0].frames[0].numpy(), whole)


@pytest.mark.parametrize("task", ["zoom", "pages"])
def test_prompts_are_the_same_each_time_and_splits_share_no_scene(task):
    rows, again = Closer(task, seed=1), Closer(task, seed=1)
    assert rows[7].messages == again[7].messages and rows[7].extra == again[7].extra
    assert rows[7].answer in rows[7].extra["cells"] and rows[7].answer != "nothing"
    train = {tuple(Closer(task, "train")[i].extra["cells"]) for i in range(40)}
    assert not train & {tuple(Closer(task, "heldout")[i].extra["cells"]) for i in range(40)}
    spoken = " ".join(closer_texts())
    text = rows[7].messages[0]["content"]
    text = text if isinstance(text, str) else text[1]["text"]
    assert set(text.split()) <= set(spoken.split())


def test_pages_are_found_by_their_captions_and_are_those_of_the_question():
    rows = Closer("pages", seed=2)
    search, crop = Pages().toolbox(SimpleNamespace(plans=None), ToolUse(), rows).tools
    for index in range(6):
        prompt = rows[index]
        (page,) = prompt.extra["reference_pages"]
        way = Trajectory(prompt)
        action = search.parse(f"<search>{page.rpartition(':')[2]} page</search>")
        told = search.act(action, way)
        assert told.found["page"] == page and prompt.extra["cells"] == rows.cells_of(page)
        assert torch.equal(told.media[0].frames, rows.page(page).frames)
        found = [search.act(action, way).found["page"] for _ in range(4)]
        assert (
            sorted(found[:3]) == sorted(set(prompt.extra["pages"]) - {page})
            and found[3] is None
        )
    assert (
        crop.parse("<bbox>[0, 0, 16, 16]</bbox>") and crop.parse("<search>a</search>") is None
    )


def test_they_are_named_and_opened_like_other_drawn_tasks():
    assert load_prompts("drawn:zoom?cells=3", limit=4, seed=9) == Closer(
        "zoom", "train", 9, 4, 3
    )
    train, heldout = open_data("drawn:pages", Data(style="tag"), 5)
    assert train == Closer("pages", seed=5) and heldout == Closer("pages", "heldout", 5)
    assert len(Closer(size=3)) == len(list(Closer(size=3))) == 3
    for wrong, name in (
        ("zoom?side=3", "side"),
        ("zoom?cells=x", "cells"),
        ("zoom?cells=1", "cells"),
    ):
        with pytest.raises(ValueError, match=name):
            load_prompts(f"drawn:{wrong}")
    with pytest.raises(TypeError, match=r"Closer\.size"):
        len(Closer())
    with pytest.raises(IndexError, match="outside drawn:zoom"):
        Closer(size=3)[3]


def test_pages_of_a_table(tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    row = '{{"id": "{}", "image": "{}", "caption": "costs of 2021"}}\n'
    table = tmp_path / "pages.jsonl"
    table.write_text(row.format("deck_1", "a.png"))
    for index in ("bm25", "trigrams"):
        library = Pages(str(table), index).library(Closer("zoom"))(None)
        assert library.index.search("2021", 3) == ["deck_1"]
        assert library.picture("deck_1").frames.shape == (1, 3, 6, 8)
    wrong = {
        "stands there twice": row.format("a", "a.png") * 2,
        "caption": '{"id": "a", "image": "a.png"}\n',
    }
    wrong["cannot be read"] = row.format("a", "b.png")
    for why, text in wrong.items():
        table.write_text(text)
        with pytest.raises(ValueError, match=rf"--pages\.file.*{why}"):
            Pages(str(table)).library(Closer("zoom"))
    with pytest.raises(ValueError, match=r"--pages\.file is empty"):
        Pages().library(Closer("zoom"))
