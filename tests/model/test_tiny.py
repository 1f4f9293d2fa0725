"""The tiny models load like released ones, are reproducible, and scale to benchmark sizes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.ground.checksums import LIST
from mmrl.model import tiny
from mmrl.model.families import tiny_parts

FAMILIES = ("qwen2_5_vl", "qwen3_vl")


def weights_hash(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(
        "tiny_folder" if request.param == "qwen2_5_vl" else "tiny3_folder"
    )


def test_loads_through_the_auto_classes(folder: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor, tokenizer = (
        AutoProcessor.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    assert 0.4e6 < sum(p.numel() for p in model.parameters()) < 0.8e6
    assert model.config.get_text_config().vocab_size == len(tokenizer)
    assert type(processor).__name__ in ("Qwen2_5_VLProcessor", "Qwen3VLProcessor")
    text = "What is at row 2 column 13 ? <think> é 漢 </think><answer> red circle </answer>"
    assert tokenizer(text).input_ids == processor.tokenizer(text).input_ids
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_generates_from_an_image_and_a_clip(folder: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.video_utils import VideoMetadata

    model, processor = (
        AutoModelForImageTextToText.from_pretrained(folder),
        AutoProcessor.from_pretrained(folder),
    )
    content = [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "Describe."}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    metadata = VideoMetadata(
        total_num_frames=6, fps=2.0, frames_indices=list(range(6)), duration=3.0
    )
    batch = processor(
        text=[text],
        images=[torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8)],
        videos=[torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )
    assert batch["image_grid_thw"].tolist() == [[1, 6, 6]] and batch[
        "video_grid_thw"
    ].tolist() == [[3, 4, 4]]
    out = model.generate(**batch, max_new_tokens=4, do_sample=False)
    assert 1 <= out.shape[1] - batch["input_ids"].shape[1] <= 4


def test_template_renders_chat_with_and_without_system(folder: Path) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    question = {
        "role": "user",
        "content": [{"type": "text", "text": "a "}, {"type": "image"}, {"type": "video"}],
    }
    turns = [
        {"role": "system", "content": "Be brief."},
        question,
        {"role": "assistant", "content": "yes"},
    ]
    assert processor.apply_chat_template(turns) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\na <|vision_start|><|image_pad|><|vision_end|><|vision_start|><|video_pad|><|vision_end|>"
        "<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    )
    assert processor.apply_chat_template([question], add_generation_prompt=True).endswith(
        "<|im_start|>assistant\n"
    )


def test_digits_are_single_tokens_and_tags_survive_skipping(tiny_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
    for tag in tiny.TAGS:
        assert len(tokenizer(tag).input_ids) == 1
        assert (
            tokenizer.decode(tokenizer(tag + "<|im_end|>").input_ids, skip_special_tokens=True)
            == tag
        )
    for word in ["red", "green", "blue", "yellow", "circle", "square", "triangle"]:
        assert len(tokenizer(" " + word).input_ids) == 1, word


def test_corpus_shapes_the_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = tiny.build(tmp_path / "model", corpus=["the jigsaw puzzle " * 3] * 40)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer(" jigsaw").input_ids) == 1


def test_generation_config_knows_both_end_tokens(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    saved = json.loads((folder / "generation_config.json").read_text())
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert saved["eos_token_id"] == ends and saved["pad_token_id"] == ends[1]


def test_seed_decides_the_weights_and_leaves_the_global_state(
    tiny_folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = tiny.build(tmp_path / "again")
    assert torch.equal(before, torch.random.get_rng_state())
    assert weights_hash(again) == weights_hash(tiny_folder)
    assert (again / "tokenizer.json").read_bytes() == (
        tiny_folder / "tokenizer.json"
    ).read_bytes()
    assert weights_hash(tiny.build(tmp_path / "other", seed=1)) != weights_hash(tiny_folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_benchmark_size_runs(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    size = tiny.TinySize(
        hidden=256,
        layers=4,
        heads=8,
        kv_heads=2,
        vision_hidden=128,
        vision_depth=4,
        vision_heads=4,
        vocab_size=8192,
    )
    model = AutoModelForImageTextToText.from_pretrained(
        tiny.build(tmp_path / "large", family, size)
    )
    assert model.get_output_embeddings().weight.shape == (8192, 256)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    ids = torch.tensor([[5, 6, 7]])
    logits = model(input_ids=ids, mm_token_type_ids=torch.zeros_like(ids)).logits
    assert logits.shape == (1, 3, 8192) and logits.isfinite().all()


def test_weights_are_drawn_with_the_named_spread(folder: Path) -> None:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            assert 0.07 < float(weight.detach().std()) < 0.09, name


@given(half=st.integers(4, 128))
@settings(max_examples=50, deadline=None)
def test_rotary_sections_cover_half_the_head(half: int) -> None:
    for share in (3 / 8, 5 / 16):
        sections = tiny_parts.sections(half, share)
        assert sum(sections) == half and min(sections) >= 1
    assert tiny_parts.sections(64, 3 / 8) == [16, 24, 24] and tiny_parts.sections(
        64, 5 / 16
    ) == [
        24,
        20,
        20,
    ]


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"hidden": 90, "heads": 4}, "hidden / heads"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads"),
        ({"vision_hidden": 60, "vision_heads": 2}, "vision_hidden"),
        ({"vocab_size": 0}, "vocab_size"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict[str, int], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        tiny.TinySize(**fields)


def test_too_small_vocabulary_and_unknown_family_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tokenizer has"):
        tiny.build(tmp_path / "small", size=tiny.TinySize(vocab_size=100))
    with pytest.raises(ValueError, match="qwen3_vl"):
        tiny.build(tmp_path / "other", family="llama")  # type: ignore[arg-type]


def test_cached_folder_is_reused_and_keyed_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = tiny.cached()
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert tiny.cached() == first and (first / "model.safetensors").stat().st_mtime_ns == stamp
    assert first.is_relative_to(tmp_path / "mmrl")
    others = {
        tiny.cached(seed=1),
        tiny.cached(corpus=("x y",)),
        tiny.cached(size=tiny.TinySize(layers=2)),
    }
    assert len(others | {first}) == 4
    assert [place.name for place in first.parent.iterdir() if place.name.startswith(".")] == []


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(place: Path) -> None:
        (place / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(ValueError, match=r"cannot be written to \(disk full\).*XDG_CACHE_HOME"):
        tiny.publish(tmp_path / "model", fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["flipped", "cut", "gone", "no list"])
def test_a_damaged_entry_of_the_cache_is_made_again(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[int] = []

    def make(place: Path) -> None:
        made.append(1)
        (place / "weights").write_bytes(bytes(range(100)))

    folder = tiny.publish(tmp_path / "model", make)
    assert tiny.publish(folder, make) == folder and len(made) == 1
    file = folder / "weights"
    if how == "flipped":
        file.write_bytes(bytes([255, *range(1, 100)]))
    elif how == "cut":
        file.write_bytes(b"")
    else:
        (file if how == "gone" else folder / LIST).unlink()
    capsys.readouterr()
    tiny.publish(folder, make)
    assert len(made) == 2 and file.read_bytes() == bytes(range(100))
    assert "in the cache is damaged" in capsys.readouterr().err
    assert [place.name for place in tmp_path.iterdir()] == ["model"]


def test_a_cache_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(ValueError, match=r"cannot be written to .*set XDG_CACHE_HOME"):
            tiny.publish(folder, lambda place: None)


def _publish_slowly(folder: Path, number: int, barrier: Any) -> None:
    def make(place: Path) -> None:
        (place / "winner").write_text(str(number))
        barrier.wait(30)

    tiny.publish(folder, make)
    assert (folder / "winner").read_text() in ("0", "1")


def test_two_processes_may_build_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    workers = [
        context.Process(target=_publish_slowly, args=(tmp_path / "model", n, barrier))
        for n in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert [place.name for place in tmp_path.iterdir()] == ["model"]


def test_module_imports_no_heavy_library() -> None:
    script = "import sys, mmrl.model.tiny;"
    script += "print([m for m in ('torch', 'transformers', 'tokenizers') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
