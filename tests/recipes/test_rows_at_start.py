"""What a command line says about its rows before it trains on them."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from mmrl.recipes.papo import PRESETS, main
from mmrl.recipes.shared.clip_data import Clips, read_annotations
from mmrl.recipes.shared.launch import launch
from mmrl.recipes.shared.opening import Data, open_data

COLUMNS = ("image_file", "img_path", "photo")


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (32, 32), (255, 0, 0)).save(tmp_path / "a.png")
    Image.new("RGB", (32, 32), (0, 0, 255)).save(tmp_path / "b.png")
    return tmp_path


def written(folder, rows):
    name = folder / "rows.jsonl"
    name.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(name)


def rows(column, question="What colour?"):
    return [{"question": question, column: name, "answer": "x"} for name in ("a.png", "b.png")]


@pytest.mark.parametrize("column", COLUMNS)
def test_placeholders_without_media_end_a_recipe_with_the_flag(folder, column, capsys):
    name = written(folder, rows(column, "<image>What colour?"))
    with pytest.raises(SystemExit) as ended:
        launch(
            main, PRESETS, ["embedded", "--dataset", name, "--run.output", str(folder / "o")]
        )
    assert f"--data.columns images={column} " in str(ended.value)
    assert not (folder / "o" / "metrics.jsonl").exists()


@pytest.mark.parametrize("column", COLUMNS)
def test_unread_columns_are_named_and_the_flag_maps_them(folder, column, capsys):
    name = written(folder, rows(column))
    train, _ = open_data(name, Data(), 0)
    assert train[0].media == () and f"images={column} " in capsys.readouterr().err
    train, _ = open_data(name, Data(columns=(f"images={column}",)), 0)
    assert len(train[0].media) == 1
    assert capsys.readouterr().err == "rows.jsonl: 2 prompts (2 pictures)\n"


def test_several_columns_and_none(folder, capsys):
    two = [{**row, "left": "a.png", "right": "b.png"} for row in rows("unused")]
    name = written(folder, two)
    data = Data(columns=("images=right", "images=left", "question=question"))
    media = open_data(name, data, 0)[0][0].media
    blue, red = (medium.frames[0, :, 0, 0].tolist() for medium in media)
    assert (blue, red) == ([0, 0, 255], [255, 0, 0])
    assert open_data(name, Data(columns=("images=",)), 0)[0][0].media == ()
    with pytest.raises(ValueError, match=r"--data\.columns names two columns for 'question'"):
        open_data(name, Data(columns=("question=a", "question=b")), 0)
    with pytest.raises(ValueError, match=r"--data\.columns has 'question'; write pairs"):
        open_data(name, Data(columns=("question",)), 0)


def test_rows_about_spans_are_counted_too_and_those_that_flags_leave_out(folder, capsys):
    (folder / "a.mp4").write_bytes(b"decoded in its turn")
    lengths = (10, 10, 700)
    spans = [
        {"video": "a.mp4", "query": "a dog jumps", "span": [1, 2], "duration": seconds}
        for seconds in lengths
    ]
    name = written(folder, [*spans, {**spans[0], "span": [1, 20]}])
    read_annotations(name, None, Data(), Clips(seconds=(0, 100)))
    first, *faults = capsys.readouterr().err.splitlines()
    assert first.startswith(
        "rows.jsonl: 2 questions about 1 clip, 1 more are not wanted by --clips.seconds"
    )
    assert "left out: 1 ×" in faults[0]
    with pytest.raises(
        ValueError, match=r"no usable row, 3 more are not wanted by --clips\.seconds"
    ):
        read_annotations(name, None, Data(), Clips(seconds=(0, 1)))


def test_frames_that_no_limit_allows_are_refused_before_any_row_is_read():
    """Else every row would be called bad, one after the other, once the model is loaded."""
    with pytest.raises(ValueError, match=r"max_frame_tokens.*--clips\.min-tokens"):
        Clips(max_frame_tokens=8)
    assert Clips(max_frame_tokens=8, min_tokens=None).max_frame_tokens == 8
