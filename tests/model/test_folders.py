"""Model folders: whatever is wrong with one is said in a paragraph, before anything is trained or lost."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmrl.ground.checksums import LIST, damage, seal
from mmrl.model.folders import ModelError, written
from mmrl.model.load import LoRA
from mmrl.model.policy import Policy

INFINITE = (float("nan"), float("inf"), -float("inf"))


def load(folder, **rest):
    return Policy.load(folder, device="cpu", dtype="float32", **rest)


@pytest.fixture
def model(tiny_folder, tmp_path):
    """A model as others publish it: no checksums."""
    place = tmp_path / "model"
    shutil.copytree(tiny_folder, place)
    (place / LIST).unlink(missing_ok=True)
    return place


@pytest.fixture(scope="module")
def saved_adapter(tiny_folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("adapters") / "adapter"
    load(tiny_folder, lora=LoRA(rank=2)).save(place)
    return place


@pytest.fixture
def adapter(saved_adapter, tmp_path):
    place = tmp_path / "adapter"
    shutil.copytree(saved_adapter, place)
    (place / LIST).unlink()
    return place


def cut(file):
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


SPOILT = {
    "gone": Path.unlink,
    "cut": cut,
    "empty": lambda file: file.write_text(""),
    "a list": lambda file: file.write_text("[]"),
}
NEEDED = {
    "config.json": "is no model that can be read",
    "model.safetensors": "cannot be loaded",
    "processor_config.json": "no usable processor",
    "tokenizer.json": "no usable processor|the tokenizer gives",
    "chat_template.jinja": "the chat template cannot be used",
}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("file", NEEDED)
def test_a_file_that_is_gone_or_damaged_is_named_with_a_remedy(model, file, how):
    SPOILT[how](model / file)
    with pytest.raises(ValueError, match=NEEDED[file]) as caught:
        load(model)
    said = str(caught.value)
    assert str(model) in said and "\n" not in said
    assert "opy" in said or "give a folder" in said, "there is a remedy"


@pytest.mark.parametrize("how", ["cut", "empty", "a list"])
@pytest.mark.parametrize("file", ["generation_config.json", "tokenizer_config.json"])
def test_a_file_that_may_be_absent_may_not_be_damaged(model, file, how):
    SPOILT[how](model / file)
    with pytest.raises(ValueError, match=r"cannot be read .*copy it again|no usable processor"):
        load(model)


def edited(file, change):
    """Change the tensors of a file."""
    tensors = load_file(file)
    change(tensors, sorted(tensors)[5])
    save_file(tensors, file, metadata={"format": "pt"})


def first_is(value):
    def change(tensors, name):
        tensors[name].view(-1)[0] = value

    return change


def test_missing_weights_are_not_drawn_at_random(model):
    edited(model / "model.safetensors", lambda tensors, name: tensors.pop(name))
    with pytest.raises(ModelError, match=r"lacks weights: model\.\S+ \(1 in all\).*again"):
        load(model)


def test_weights_of_another_shape_are_not_drawn_at_random(model):
    def shorter(tensors, name):
        tensors[name] = tensors[name][:1].clone()

    edited(model / "model.safetensors", shorter)
    with pytest.raises(ModelError, match=r"lacks weights: \S+ \(of another shape\)"):
        load(model)


@pytest.mark.parametrize("value", INFINITE)
def test_weights_that_are_not_finite_are_not_loaded(model, value):
    edited(model / "model.safetensors", first_is(value))
    with pytest.raises(ModelError, match=r"not finite, for example model\..* \(1 of \d+\)"):
        load(model)


@pytest.mark.parametrize("value", INFINITE)
@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_weights_that_are_not_finite_are_not_delivered(tiny_folder, tmp_path, value, lora):
    policy = load(tiny_folder, lora=lora)
    policy.save(tmp_path / "model")
    before = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    with torch.no_grad():
        policy.parameters()[3].view(-1)[0] = value
    with pytest.raises(ModelError, match="The policy holds weights that are not finite"):
        policy.save(tmp_path / "model")
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}


# Adapters.


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize(
    "file", ["adapter_model.safetensors", "adapter_config.json", "base_config.json"]
)
def test_a_damaged_adapter_is_named(adapter, file, how):
    SPOILT[how](adapter / file)
    with pytest.raises(ValueError, match=r"cannot be loaded|is no model that can be read") as e:
        load(adapter)
    assert str(adapter) in str(e.value) and "\n" not in str(e.value)


def rename(tensors, _):
    for name in [*tensors]:
        tensors[name.replace("language_model", "text")] = tensors.pop(name)


ALIEN = {
    "of other layers": (rename, r"does not fit .*lacks (\d+) of \1 weights and has \1 others"),
    "one is missing": (lambda tensors, name: tensors.pop(name), r"lacks 1 of \d+ weights"),
    "not finite": (first_is(float("nan")), "not finite"),
}


@pytest.mark.parametrize("kind", ALIEN)
def test_an_alien_adapter_is_refused(adapter, kind):
    change, told = ALIEN[kind]
    edited(adapter / "adapter_model.safetensors", change)
    with pytest.raises(ModelError, match=told):
        load(adapter)


def named_base(adapter, base):
    file = adapter / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"base_model_name_or_path": str(base)}))


def test_an_adapter_of_another_family_is_refused(adapter, tiny3_folder):
    named_base(adapter, tiny3_folder)
    with pytest.raises(
        ModelError, match=r"trained on a qwen2_5_vl model, but .* is a qwen3_vl"
    ):
        load(adapter)


def test_an_adapter_whose_base_is_gone_is_refused(adapter, tmp_path):
    named_base(adapter, tmp_path / "none")
    with pytest.raises(ModelError, match=r"none cannot be loaded"):
        load(adapter)


# Checksums, and writing in one go.


@pytest.mark.parametrize("how", ["bit", *SPOILT])
def test_a_model_of_ours_that_a_disk_has_changed_is_not_used(saved_adapter, tmp_path, how):
    place = tmp_path / "adapter"
    shutil.copytree(saved_adapter, place)
    load(place)
    file = place / "adapter_model.safetensors"
    if how == "bit":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    else:
        SPOILT[how](file)
    with pytest.raises(
        ModelError, match=r"is damaged: adapter_model\.safetensors .*delete mmrl-"
    ):
        load(place)


def write(folder, **files):
    with written(folder) as draft:
        for name, text in files.items():
            (draft / name).write_text(text)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_a_model_is_replaced_and_what_is_not_its_own_stays(tmp_path):
    place = tmp_path / "model"
    write(place, weights="old", adapter_config="old")
    (place / "notes.txt").write_text("mine")
    write(place, weights="new", more="new")
    assert names(place) == [LIST, "more", "notes.txt", "weights"] and damage(place) == ""
    assert (place / "weights").read_text() == "new" and names(tmp_path) == ["model"]


@pytest.mark.parametrize("moment", range(4))
def test_a_kill_while_a_model_is_replaced_never_leaves_a_false_one(
    tmp_path, monkeypatch, moment
):
    """Whatever the moment: the old model, the new one, or a folder that says that it is not whole."""
    import os

    place = tmp_path / "model"
    write(place, first="old", second="old")

    class Killed(BaseException):
        pass

    count, real = 0, os.replace

    def replace(*args):
        nonlocal count
        if count == moment:
            raise Killed
        count += 1
        return real(*args)

    monkeypatch.setattr(os, "replace", replace)
    with contextlib.suppress(Killed):
        write(place, first="new", second="new")
    texts = {(place / name).read_text() for name in ("first", "second")}
    assert damage(place) or texts in ({"old"}, {"new"})
    assert bool(damage(place)) == (moment < 3)


@pytest.mark.parametrize("where", ["inside", "seal", "mkdir"])
def test_a_full_disk_leaves_the_old_model_and_no_draft(tmp_path, monkeypatch, where):
    from mmrl.model import folders

    place = tmp_path / "model"
    write(place, weights="old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if where == "seal":
        monkeypatch.setattr(folders, "seal", full)
    if where == "mkdir":
        monkeypatch.setattr(Path, "mkdir", full)
    told = r"could not be written to .*No space left.*Free space"
    with pytest.raises(ModelError, match=told), written(place) as draft:
        (draft / "weights").write_text("new")
        if where == "inside":
            full()
    monkeypatch.undo()
    assert (place / "weights").read_text() == "old" and damage(place) == ""
    assert names(tmp_path) == ["model"]


def test_the_draft_of_a_process_that_was_killed_is_swept_and_that_of_a_living_one_stays(
    tmp_path,
):
    import os

    for number in (2**22 + 1, os.getppid()):  # no process has the first number
        (tmp_path / f".writing-model-{number}").mkdir()
    write(tmp_path / "model", weights="new")
    assert names(tmp_path) == [f".writing-model-{os.getppid()}", "model"]


def test_a_file_in_the_place_of_the_folder_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="could not be written to"):
        write(tmp_path / "file" / "model", weights="new")
    with pytest.raises(ModelError, match="could not be written to"):
        write(tmp_path / "file", weights="new")


def test_a_list_that_is_torn_or_of_another_kind_is_damage(tmp_path):
    (tmp_path / "weights").write_text("x")
    seal(tmp_path)
    assert damage(tmp_path) == ""
    for text in ("", "{", "[]", '{"weights": 3}', '{"weights": {"bytes": 1}}'):
        (tmp_path / LIST).write_text(text)
        assert "cannot be read" in damage(tmp_path)
