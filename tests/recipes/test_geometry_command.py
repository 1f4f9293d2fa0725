"""`mmrl geometry RUN`: runs of all weights and adapters, several files, two runs, and what it says of others."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrl import LoRA
from mmrl.model.policy import Policy
from mmrl.model.weight_files import WeightFiles
from mmrl.recipes.__main__ import main


def moved_copy(folder, target, seed, entries=0.5):
    """The same model with a share of the entries of its matrices changed."""
    shutil.copytree(folder, target)
    rng = torch.Generator().manual_seed(seed)
    weights = load_file(target / "model.safetensors")
    for name, weight in weights.items():
        if weight.ndim > 1:
            on = torch.rand(weight.shape, generator=rng) < entries
            weights[name] = torch.where(on, weight * 1.5 + 0.01, weight)
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    """What a run leaves behind, as far as this command reads it."""

    def made(seed):
        place = tmp_path_factory.mktemp("runs") / f"run{seed}"
        place.mkdir()
        moved_copy(tiny_folder, place / "model", seed)
        config = {"settings": {"policy": {"source": str(tiny_folder)}}}
        (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return place

    return made


def rows_of(folder):
    return json.loads((folder / "geometry.json").read_text(encoding="utf-8"))


def test_a_run_is_compared_with_its_start_and_two_runs_with_each_other(run, capsys):
    mine, other = run(1), run(2)
    main(["geometry", str(mine), "--against", str(other)])
    told = capsys.readouterr()
    assert "all matrices" in told.err and "jaccard_chance" in told.err
    found = rows_of(mine / "geometry")
    matrices = [row for row in found["parameters"] if len(row["shape"]) > 1]
    assert 0.4 < found["summary"]["all matrices"]["unchanged"] < 0.6
    for row in matrices:
        if row["shape"][0] * row["shape"][1] > 500:
            assert row["jaccard"] == pytest.approx(row["jaccard_chance"], abs=0.15)
            assert row["drift"] > 0.05
    pictures = {file.stem for file in (mine / "geometry").glob("*.svg")}
    assert pictures == {"unchanged", "angle_left", "angle_right", "drift", "principal", "low"}
    text = (mine / "geometry" / "drift.svg").read_text(encoding="utf-8")
    assert "layers.*.self_attn.q_proj.weight, layer 0" in text and text.endswith("</svg>\n")


def in_two_files(folder, target):
    """The same weights in two files with an index, under names with another wrapper."""
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    table, halves = {}, ({}, {})
    for place, (name, weight) in enumerate(sorted(weights.items())):
        short = name.replace("model.language_model.", "model.").replace(
            "model.visual.", "visual."
        )
        halves[place % 2][short] = weight
        table[short] = f"model-0000{place % 2 + 1}-of-00002.safetensors"
    for number, half in enumerate(halves, 1):
        save_file(half, target / f"model-0000{number}-of-00002.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": table}
    (target / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return target


def test_folders_of_several_files_and_of_other_wrappers_are_read(tiny_folder, tmp_path):
    split = in_two_files(tiny_folder, tmp_path / "split")
    one, two = WeightFiles(tiny_folder), WeightFiles(split)
    assert one.names() == two.names() and len(one.names()) > 20
    assert all(torch.equal(one.read(name), two.read(name)) for name in one.names())
    main(["geometry", str(split), "--before", str(tiny_folder)])
    found = rows_of(split / "geometry")
    assert found["summary"]["all matrices"]["unchanged"] == 1.0
    assert all(row["principal"] is None for row in found["parameters"])


def test_an_adapter_counts_with_what_it_adds(tiny_folder, tmp_path):
    lora = LoRA(rank=2, alpha=8)
    policy = Policy.load(tiny_folder, device="cpu", dtype="float32", lora=lora)
    with torch.no_grad():
        for number, p in enumerate(policy.parameters()):
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
    policy.save(tmp_path / "adapter")
    policy.save(tmp_path / "merged", merge=True)
    adapter, merged = WeightFiles(tmp_path / "adapter"), WeightFiles(tmp_path / "merged")
    assert adapter.names() == merged.names()
    gaps = [
        (adapter.read(name).float() - merged.read(name).float()).abs().max().item()
        for name in merged.names()
    ]
    start = WeightFiles(tiny_folder)
    changed = [n for n in merged.names() if not torch.equal(merged.read(n), start.read(n))]
    assert max(gaps) < 1e-6 and changed


def test_what_cannot_be_compared_says_why(tiny_folder, run, tmp_path, capsys):
    for argv, why in (
        ([str(tmp_path)], "without config.json"),
        ([str(tiny_folder)], "no folder of a finished run"),
        ([str(tiny_folder), "--before", str(tmp_path)], "no weights that can be read"),
        ([str(run(3)), "--against", str(tmp_path)], "no folder of a finished run"),
    ):
        with pytest.raises(SystemExit, match=why):
            main(["geometry", *argv])
    with pytest.raises(SystemExit):
        main(["geometry", str(run(4)), "--geometry.rank", "0"])
    assert "1 to 16,384" in capsys.readouterr().err
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(tiny_folder / "config.json", other)
    save_file({"a": torch.ones(2)}, other / "model.safetensors")
    with pytest.raises(SystemExit, match="share 0 of"):
        main(["geometry", str(other), "--before", str(tiny_folder)])
