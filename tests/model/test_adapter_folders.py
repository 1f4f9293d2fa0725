"""The folder of an adapter loads as it lies: with transformers, with peft, with mmrl, and where it is copied to."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmrl.model import tiny
from mmrl.model.adapter_folder import BASE_CONFIG, carries_base
from mmrl.model.load import LoRA
from mmrl.model.policy import Policy
from mmrl.model.released import config_of
from mmrl.training.model_card import model_card

IDS = torch.arange(5, 25)[None]


def numbers(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def loaded(folder):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module", params=["elsewhere", "by a relative path", "in the cache"])
def saved(request, tiny_folder, tmp_path_factory):
    """A trained adapter, its base, its numbers, and whether the base lies in mmrl's cache."""
    place = tmp_path_factory.mktemp("adapters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.chdir(place)
        base = place / "cache" / "mmrl" / "tiny" / "one"
        cached = request.param == "in the cache"
        if not cached:
            base = place / "base"
        shutil.copytree(tiny_folder, base)
        source = "base" if request.param == "by a relative path" else base
        policy = Policy.load(source, device="cpu", dtype="float32", lora=LoRA(rank=2))
        with torch.no_grad():
            for _, weight in policy.named_parameters():
                weight.add_(0.02)
        assert tiny.cache_folder() in base.parents or not cached
        policy.save(place / "adapter")
        yield place / "adapter", base, numbers(policy.model), cached


def test_transformers_loads_it_with_its_base(saved, monkeypatch, tmp_path):
    folder, base, expected, cached = saved
    monkeypatch.chdir(tmp_path)
    torch.testing.assert_close(numbers(loaded(folder)), expected)
    assert not torch.allclose(numbers(loaded(base)), expected), "the adapter counts"
    AutoProcessor.from_pretrained(folder)
    assert carries_base(folder) == cached != (folder / BASE_CONFIG).is_file()


def test_peft_lays_it_over_the_base_that_it_names(saved, monkeypatch, tmp_path):
    folder, base, expected, _ = saved
    monkeypatch.chdir(tmp_path)
    named = PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    assert named == str(base)
    torch.testing.assert_close(
        numbers(PeftModel.from_pretrained(loaded(named), str(folder))), expected
    )


def test_mmrl_trains_on_with_it_and_saves_it_as_it_was(saved, tmp_path):
    folder, _, expected, _ = saved
    policy = Policy.load(folder, device="cpu", dtype="float32")
    assert policy.has_adapter
    torch.testing.assert_close(numbers(policy.model), expected)
    policy.save(tmp_path / "again")
    torch.testing.assert_close(numbers(loaded(tmp_path / "again")), expected)
    assert carries_base(tmp_path / "again") == carries_base(folder)
    assert config_of(folder).model_type == "qwen2_5_vl"
    policy.save(tmp_path / "merged", merge=True)
    torch.testing.assert_close(numbers(loaded(tmp_path / "merged")), expected)


def test_one_with_a_base_of_the_cache_works_where_no_cache_is(saved, tmp_path, monkeypatch):
    folder, base, expected, cached = saved
    place = tmp_path / "copied"
    shutil.copytree(folder, place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    file = place / "adapter_config.json"
    settings = json.loads(file.read_text())
    settings["base_model_name_or_path"] = str(base / "gone")
    file.write_text(json.dumps(settings))
    (place / "mmrl-checksums.json").unlink()
    if not cached:
        with pytest.raises(OSError):
            loaded(place)
        return
    torch.testing.assert_close(numbers(loaded(place)), expected)
    policy = Policy.load(place, device="cpu", dtype="float32")
    torch.testing.assert_close(numbers(policy.model), expected)
    policy.save(tmp_path / "again")
    assert carries_base(tmp_path / "again"), "still without the cache it came from"


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("a/b", "downloaded under that name"),
        ("/models/b", "write the path or hub name of the same model into `base_model_name_or"),
        ("CACHE/x", "in this folder too, so it can be copied"),
    ],
)
def test_the_card_says_where_the_base_is(base, said):
    base = base.replace("CACHE", str(tiny.cache_folder()))
    card = model_card("n", {"policy": {"source": base, "lora": {"rank": 2}}}, {})
    assert said in card and "mmrl export RUN --merge" in card
    assert said not in model_card("n", {"policy": {"source": base}}, {})
