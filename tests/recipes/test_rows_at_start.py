"""What a command line says about its rows before it trains on them."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from mmrl.recipes.papo import PRESETS, main
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
