"""Several data sets in one run, as a user gives them: two parquet files and a folder of pictures, with weights."""

from __future__ import annotations

import json
import math

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmrl.recipes import grpo, modomodo, recap
from mmrl.recipes.__main__ import main
from mmrl.recipes.shared.domains import (
    Mix,
    collected,
    is_several,
    objectives_of,
    read_domains,
    rewards_of,
)
from mmrl.recipes.shared.launch import launch, resolved
from mmrl.recipes.shared.opening import Data
from mmrl.recipes.shared.paying import RewardWeights
from mmrl.training.tracking import read_metrics

SMALL = [
    *("--run.steps", "2", "--run.prompts-per-step", "3", "--sampling.group-size", "2"),
    *("--sampling.max-tokens", "3", "--run.eval-prompts", "6", "--monitor.probe-every", "0"),
    *("--optim.schedule", "constant", "--run.save-every", "1", "--data.style", "answer"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """charts.parquet, "my boxes.parquet" and photos/ with metadata.jsonl."""
    folder = tmp_path_factory.mktemp("sets")
    (folder / "photos").mkdir()
    for number in range(12):
        picture = Image.new("RGB", (32, 32), (20 * number, 9, 90))
        picture.save(folder / "photos" / f"{number}.png")
    for name, count in (("charts", 12), ("my boxes", 9)):
        pictures = [{"path": f"photos/{n}.png", "bytes": None} for n in range(count)]
        told = {
            "question": [f"{name} {n}?" for n in range(count)],
            "answer": ["[1, 2, 3, 4]" if name == "my boxes" else f"{n}" for n in range(count)],
            "image": [one["path"] for one in pictures],
        }
        parquet.write_table(pa.table(told), folder / f"{name}.parquet")
    rows = [
        {"file_name": f"{n}.png", "question": f"photo {n}?", "answer": f"{n}"}
        for n in range(12)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "photos" / "metadata.jsonl").write_text(text)
    return folder


FLAGS = [
    *("--dataset", "charts=charts.parquet"),
    *("--dataset", "boxes=my boxes.parquet", "style=tag", "reward=iou=2", "reward=format"),
    *("--dataset", "photos=photos/", "heldout-rows=2", "limit=11"),
    *("--mix.weights", "charts=2", "boxes=1", "photos=1"),
]
CONFIG = """
arguments:
  dataset: |
    charts=charts.parquet
    # boxes are answered without a thought
    boxes='my boxes.parquet' style=tag reward=iou=2 reward=format

    photos=photos/ heldout-rows=2 limit=11
  mix: {weights: [charts=2, boxes=1, photos=1]}
"""


def asked(*argv):
    return resolved(modomodo.main, modomodo.PRESETS, ["embedded", *argv])


def domains_of(found):
    told = found.arguments
    return read_domains(told["dataset"], told["data"], told["reward"]), told["mix"]


def test_flags_and_a_file_say_the_same(tmp_path):
    (tmp_path / "mix.yaml").write_text("preset: embedded\n" + CONFIG)
    flags = asked(*FLAGS, "--data.style", "answer")
    file = resolved(
        modomodo.main, modomodo.PRESETS,
        ["--config", str(tmp_path / "mix.yaml"), "--data.style", "answer"],
    )  # fmt: skip
    assert domains_of(flags) == domains_of(file)
    domains, mix = domains_of(flags)
    assert [(one.name, one.dataset, one.data.style) for one in domains] == [
        ("charts", "charts.parquet", "answer"),
        ("boxes", "my boxes.parquet", "tag"),
        ("photos", "photos/", "answer"),
    ]
    assert domains[2].data.heldout_rows == 2 and domains[2].data.limit == 11
    assert domains[0].data.heldout_rows == 256 and domains[1].reward.own == ("iou=2", "format")
    assert mix.by_name() == {"charts": 2, "boxes": 1, "photos": 1}
    paid = rewards_of(domains, mix)
    assert paid.weights["boxes/iou"] == 2.0 and paid.weights["charts/accuracy"] == 2.0
    assert paid.main == {"boxes": "iou"} and paid.domains["charts"].gate == "format"
    # A list of lines is the same, too.
    listed = CONFIG.replace("dataset: |", "dataset:").replace("    charts=", "    - charts=")
    listed = listed.replace("    boxes='", "    - boxes='").replace(
        "    photos=", "    - photos="
    )
    (tmp_path / "list.yaml").write_text("preset: embedded\n" + listed)
    told = ["--config", str(tmp_path / "list.yaml"), "--data.style", "answer"]
    assert domains_of(resolved(modomodo.main, modomodo.PRESETS, told)) == domains_of(flags)
    # What is printed can be given back.
    (tmp_path / "again.yaml").write_text(flags.yaml())
    again = ["--config", str(tmp_path / "again.yaml")]
    assert resolved(modomodo.main, modomodo.PRESETS, again).arguments == flags.arguments


def test_check_plan_and_preview_see_every_data_set(place, tiny_folder, monkeypatch, capsys):
    monkeypatch.chdir(place)
    given = ["embedded", "--model", str(tiny_folder), *FLAGS, *SMALL]
    main(["check", "modomodo", *given, "--rows", "1"])
    said = capsys.readouterr().out
    # One row of each is held out: at most a tenth.
    assert "charts: 11 rows, 50.0% of the prompts" in said and "boxes: 8 rows, 25.0%" in said
    assert "photos: 10 rows, 25.0%" in said and "2 boxes/iou" in said
    main(["preview", "modomodo", *given, "--rows", "1", "--output", "page.html"])
    page = (place / "page.html").read_text()
    assert all(word in page for word in ("charts/", "boxes/", "photos/", "first of data sets"))
    capsys.readouterr()
    main(["plan", "modomodo", *given, "--machine", "80"])
    assert "It fits" in capsys.readouterr().out


def test_a_plan_looks_at_the_largest_pictures(tiny_folder, capsys):
    drawn = [
        "--dataset",
        "a=drawn:lookup?size_px=32",
        "--dataset",
        "b=drawn:lookup?size_px=480",
    ]
    both = []
    for flags in (drawn, [*drawn[2:], *drawn[:2]], drawn[:2]):
        main(["plan", "modomodo", "embedded", *flags, "--machine", "80"])
        both.append(capsys.readouterr().out)
    assert both[0] == both[1] != both[2]


def test_a_run_of_three_data_sets_and_its_evaluation(place, tiny_folder, monkeypatch, capsys):
    monkeypatch.chdir(place)
    given = ["embedded", "--model", str(tiny_folder), *FLAGS, *SMALL, "--run.output", "mixed"]
    launch(modomodo.main, modomodo.PRESETS, given)
    rows = read_metrics(place / "mixed")
    asked_of = [name for name in rows[-1] if name.startswith("domain/")]
    assert sum(rows[-1][name] for name in asked_of if name.endswith("/prompts")) == 3
    for name in ("charts", "boxes", "photos"):
        assert rows[-1][f"eval/{name}/answers"] == 1
        assert 0 <= rows[-1][f"eval/{name}/accuracy"] <= 1
    config = json.loads((place / "mixed" / "config.json").read_text())
    assert config["settings"]["domains"] == {"charts": 0.5, "boxes": 0.25, "photos": 0.25}
    capsys.readouterr()
    main(["eval", "mixed", "--samples", "2", "--ks", "1", "2"])
    said = capsys.readouterr().out
    assert "on 3 prompts" in said and "photos/answers   1" in said and "boxes/pass@2" in said
    # Other weights are another run.
    with pytest.raises(SystemExit, match="charts"):
        launch(
            modomodo.main,
            modomodo.PRESETS,
            [*given, "--mix.weights", "charts=1", "boxes=1", "photos=1"],
        )


def test_recap_goes_on_exactly_with_labels_and_windows(place, tiny_folder, monkeypatch):
    monkeypatch.chdir(place)
    flags = [*FLAGS[:7], *FLAGS[7:11], "learn=next-token", "--mix.ends", "never"]
    given = ["embedded", "--model", str(tiny_folder), *flags, *SMALL, "--recap.window", "1"]

    def run(folder, *steps):
        for count in steps:
            told = [*given, "--run.output", folder, "--run.steps", str(count)]
            launch(recap.main, recap.PRESETS, told)
        return read_metrics(place / folder), load_file(
            place / folder / "model" / "model.safetensors"
        )

    whole, end = run("whole", 5)
    parted, again = run("parted", 3, 5)
    assert all(torch.equal(end[name], again[name]) for name in end)
    logged = [name for name in whole[-1] if name.startswith(("recap/", "domain/", "loss/"))]
    for row, other in zip(whole[-2:], parted[-2:], strict=True):
        assert all(row.get(name) == other.get(name) for name in logged)
    weights = [v for k, v in whole[-1].items() if k.startswith("recap/weight_")]
    assert sum(weights) == pytest.approx(len(weights)) == pytest.approx(4)
    assert any(row.get("loss/next_token") for row in whole)
    assert any(row.get("label/count") for row in whole)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--dataset", "a.parquet"], None),
        (["--dataset=a.parquet", "--run.steps", "2"], None),
        (["--dataset", "my file.parquet"], None),
        (["--dataset", "a=x", "style=box"], "a=x style=box"),
        (["--dataset", "a=x y", "--dataset=b=z"], "'a=x y'\nb=z"),
        (["--dataset=a=x", "style=box", "--run.steps", "2", "--dataset", "b=y"], "a=x style=box\nb=y"),
    ],
)  # fmt: skip
def test_a_flag_that_comes_again_becomes_lines(given, expected):
    found = collected(given)
    if expected is None:
        assert found == given
    else:
        assert found[-2:] == ["--dataset", expected]
        assert [arg for arg in given if arg in ("--run.steps", "2")] == found[:-2]


def test_one_data_set_needs_no_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (one,) = read_domains("some/my rows (new).parquet", Data())
    assert one.name == "my-rows-new" and one.dataset == "some/my rows (new).parquet"
    assert read_domains("2024.parquet", Data())[0].name == "rows"
    (tmp_path / "year=2024").mkdir()
    assert not is_several("year=2024") and is_several("year=2025")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--dataset", "a.parquet", "--dataset", "b=b.parquet"], "has a name in front"),
        (["--dataset", "a=x", "--dataset", "a=y"], "names 'a' twice"),
        (["--dataset", "a=x", "weight=2"], "Weights are those of --mix.weights"),
        (["--dataset", "a=x", "stile=box"], "Perhaps you meant style="),
        (["--dataset", "a=x", "style=bax"], "style.*'bax'.*'box'"),
        (["--dataset", "a=x", "limit=many"], "limit.*whole number"),
        (["--dataset", "a=x", "limit=1", "limit=2"], "limit= is given 2 times"),
        (["--dataset", "a=x", "reward=accurasy"], "accurasy.*accuracy"),
        (["--dataset", "a=x", "reward=iou", "correct=format"], r"'format'.*\['iou'\]"),
        (["--dataset", "a=x", "prompt=nothing asked"], "never shows the question"),
        (["--dataset", "a=x", "learn=labels"], "learn= is one of"),
        (["--dataset", "a=x", "learn=next-token"], "modomodo learns from rewards alone"),
        (["--dataset", "a=x 'y", "--dataset", "b=z"], "x 'y"),
        (["--dataset", "a=x", "--dataset", "b=y", "--mix.weights", "a=1"], r"gives \['b'\] no"),
        (["--dataset", "a=x", "--dataset", "b=y", "--mix.weights", "a=1", "c=1"], r"\['c'\]"),
        (["--dataset", "a=x", "--dataset", "b=y", "--mix.weights", "a=0", "b=0"], "all 0"),
        (["--dataset", "a=x", "--dataset", "b=y", "--data.heldout", "t"], "a, b alike"),
        (["--dataset", "a=drawn:lookup", "suffix=x", "--dataset", "b=y"], "a=drawn:lookup.*drawn"),
        (["--dataset", "--dataset", "a=x", "b=y"], "needs a value"),
        (["--dataset", "a=x.parquet", "--dataset", "b=y.parquet"], "x.parquet"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_told_in_the_words_of_the_flag(
    flags, told, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=told):
        launch(modomodo.main, modomodo.PRESETS, ["embedded", *flags])


@pytest.mark.parametrize("weights", ["a", "a=", "a=x", "a=-1", "a=nan", "a=inf", "=1", "a b=1"])
def test_weights_are_pairs(weights):
    with pytest.raises(ValueError, match=r"--mix.weights has .*NAME=NUMBER"):
        Mix(weights=(weights,))
    with pytest.raises(ValueError, match="two weights"):
        Mix(weights=("a=1", "a=2"))


def test_a_recipe_of_one_data_set_names_those_of_several():
    for flags in (["--dataset", "a.parquet", "--dataset", "b.parquet"], ["--dataset", "a=b"]):
        with pytest.raises(
            SystemExit, match=r"several data sets.*mmrl modomodo and mmrl recap"
        ):
            launch(grpo.main, grpo.PRESETS, ["7b", *flags])


def test_objectives_are_the_parts_that_weigh_anything():
    text = "a=x\nb=y reward=iou=2 reward=format=0\nc=z learn=next-token reward=number"
    domains = read_domains(text, Data(), RewardWeights(accuracy=1.0, format=0.0))
    assert objectives_of(domains, ()) == ("accuracy", "iou")
    assert objectives_of(domains, ("format",)) == ("format",)
    with pytest.raises(ValueError, match=r"--recap.objectives has 'number'.*'iou'"):
        objectives_of(domains, ("number",))


def test_the_published_words_are_read():
    for recipe in (modomodo, recap):
        for preset in recipe.PRESETS:
            told = resolved(recipe.main, recipe.PRESETS, [preset]).arguments
            domains = read_domains(told["dataset"], told["data"], told["reward"])
            weights = rewards_of(domains, told["mix"]).weights
            assert (
                all(math.isfinite(weight) for weight in weights.values()) and len(domains) >= 3
            )
