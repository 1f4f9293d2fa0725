"""Prompts become exactly what the Hugging Face processors and models make of them, for both families."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmrl.ground.faults import BadRow
from mmrl.model.encoded import Encoded
from mmrl.model.patches import PixelBudget
from mmrl.model.processing import Processing, seconds_per_patch
from mmrl.types import Media, Prompt

GOLDEN = Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden")) / "vtg"
FPS = 2.0
IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def image(height: int, width: int, seed: int = 0) -> Media:
    rng = torch.Generator().manual_seed(seed)
    return Media(torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=rng))


def clip(frames: int, height: int, width: int, seed: int = 0) -> Media:
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8, generator=rng)
    return Media(pixels, torch.arange(frames, dtype=torch.float64) / FPS, frames / FPS)


def ask(*content: dict[str, str], media: tuple[Media, ...] = ()) -> Prompt:
    return Prompt("p", [{"role": "user", "content": list(content)}], media)


PROMPTS = {
    "one image": ask(IMAGE, text("What is at row 2 column 3 ?"), media=(image(48, 48),)),
    "several images": ask(
        IMAGE,
        IMAGE,
        IMAGE,
        text("?"),
        media=(image(48, 48), image(70, 33, 1), image(48, 48, 2)),
    ),
    "images between texts": ask(
        text("first "),
        IMAGE,
        text(" 12\n"),
        IMAGE,
        text("\nlast"),
        media=(image(20, 90), image(64, 64)),
    ),
    "video": ask(VIDEO, text("When ?"), media=(clip(6, 32, 48),)),
    "odd video": ask(text("look "), VIDEO, media=(clip(5, 40, 40),)),
    "two videos": ask(
        VIDEO, VIDEO, text("Which ?"), media=(clip(4, 32, 32), clip(7, 48, 32, 3))
    ),
    "mixed": ask(
        VIDEO,
        text("a"),
        IMAGE,
        text("b"),
        VIDEO,
        IMAGE,
        media=(clip(4, 32, 32), image(48, 48), clip(3, 16, 64), image(9, 9)),
    ),
    "text only": ask(text("How many are there ? <think> é 漢 </think>")),
    "multi-turn": Prompt(
        "p",
        [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": [IMAGE, text("What is it ?")]},
            {"role": "assistant", "content": "A red circle."},
            {"role": "user", "content": [text("And here ?"), IMAGE]},
        ],
        (image(48, 48), image(32, 64, 5)),
    ),
}


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(
        "tiny_folder" if request.param == "qwen2_5_vl" else "tiny3_folder"
    )


@pytest.fixture
def processing(folder: Path) -> Processing:
    return Processing.load(folder)


@pytest.fixture(scope="session")
def processing25(tiny_folder: Path) -> Processing:
    return Processing.load(tiny_folder)


@pytest.fixture(scope="session")
def processing3(tiny3_folder: Path) -> Processing:
    return Processing.load(tiny3_folder)


def library_call(processor: Any, prompt: Prompt) -> Any:
    """The full Hugging Face way: template, then one processor call with metadata of the sampled frames."""
    from transformers.video_utils import VideoMetadata

    rendered = processor.apply_chat_template(list(prompt.messages), add_generation_prompt=True)
    images = [medium.frames[0] for medium in prompt.media if not medium.is_video]
    videos = [medium.frames for medium in prompt.media if medium.is_video]
    metadata = [
        VideoMetadata(len(v), fps=FPS, frames_indices=list(range(len(v)))) for v in videos
    ]
    more: dict[str, Any] = (
        {"videos": videos, "video_metadata": metadata, "do_sample_frames": False}
        if videos
        else {}
    )
    return processor(text=[rendered], images=images or None, return_tensors="pt", **more)


def library_inputs(processing: Processing, encoded: Encoded) -> dict[str, Any]:
    """The encoded prompt as keyword arguments of the model."""
    inputs: dict[str, Any] = {
        "input_ids": encoded.ids[None],
        "mm_token_type_ids": encoded.types[None],
    }
    for kind, values, grids in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        shown = [patches for patches in encoded.visual if patches.kind == kind]
        if shown:
            inputs[values] = torch.cat([patches.values for patches in shown])
            inputs[grids] = torch.tensor([patches.grid for patches in shown])
    if encoded.seconds_per_grid and processing.family.model_type == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = list(encoded.seconds_per_grid)
    return inputs


@pytest.mark.parametrize("name", PROMPTS)
def test_everything_equals_the_processor(processing: Processing, name: str) -> None:
    encoded = processing.encode(PROMPTS[name])
    expected = library_call(processing.processor, PROMPTS[name])
    assert torch.equal(encoded.ids, expected["input_ids"][0])
    assert torch.equal(encoded.types, expected["mm_token_type_ids"][0])
    ours = library_inputs(processing, encoded)
    for key in ("image_grid_thw", "video_grid_thw"):
        assert (key in ours) == (key in expected) and (
            key not in ours or torch.equal(ours[key], expected[key])
        )
    for key in ("pixel_values", "pixel_values_videos"):
        if key in expected:
            torch.testing.assert_close(ours[key], expected[key], rtol=0, atol=1e-6)
    if "second_per_grid_ts" in expected:
        assert list(encoded.seconds_per_grid) == pytest.approx(
            expected["second_per_grid_ts"].tolist()
        )


@pytest.mark.parametrize("name", PROMPTS)
def test_positions_equal_the_model_except_after_timed_videos(
    folder: Path, processing: Processing, name: str
) -> None:
    from transformers import AutoModelForImageTextToText

    encoded = processing.encode(PROMPTS[name])
    model = AutoModelForImageTextToText.from_pretrained(folder)
    inputs = library_inputs(processing, encoded)
    wanted = (
        "input_ids",
        "mm_token_type_ids",
        "image_grid_thw",
        "video_grid_thw",
        "second_per_grid_ts",
    )
    library, _ = model.model.get_rope_index(
        **{key: inputs[key] for key in wanted if key in inputs}
    )
    timed = processing.family.model_type == "qwen2_5_vl" and any(
        medium.is_video for medium in PROMPTS[name].media
    )
    assert torch.equal(encoded.positions, library[:, 0]) != timed
    assert encoded.next_position == int(encoded.positions.max()) + 1
    for slots in encoded.slots:
        behind = encoded.positions[:, int(slots[-1]) + 1 :]
        assert int(behind.min()) > int(encoded.positions[:, slots].max())


def test_model_accepts_the_encoded_prompt(folder: Path, processing: Processing) -> None:
    from transformers import AutoModelForImageTextToText

    encoded = processing.encode(PROMPTS["mixed"])
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    inputs = library_inputs(processing, encoded)
    with torch.no_grad():
        logits = model(**inputs, position_ids=encoded.positions[:, None]).logits
    assert logits.shape[:2] == (1, len(encoded.ids)) and logits.isfinite().all()


@pytest.mark.parametrize("name", PROMPTS)
def test_slots_point_at_placeholders(processing: Processing, name: str) -> None:
    encoded, prompt = processing.encode(PROMPTS[name]), PROMPTS[name]
    assert len(encoded.slots) == len(encoded.visual) == len(prompt.media)
    for slots, patches, medium in zip(encoded.slots, encoded.visual, prompt.media, strict=True):
        kind = 2 if medium.is_video else 1
        assert len(slots) == patches.tokens and (encoded.types[slots] == kind).all()
        assert patches.kind == ("video" if medium.is_video else "image")
    every = torch.cat([*encoded.slots, torch.tensor([], dtype=torch.long)])
    assert torch.equal(every.sort().values, encoded.types.nonzero().flatten())
    assert encoded.text.count("<|image_pad|>") + encoded.text.count("<|video_pad|>") == len(
        prompt.media
    )
    assert len(encoded.seconds_per_grid) == sum(medium.is_video for medium in prompt.media)


CONTENT = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8", exclude_characters="|"), max_size=12).map(text),
        st.just(IMAGE),
        st.just(VIDEO),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@given(
    content=CONTENT,
    sides=st.lists(st.integers(1, 90), min_size=12, max_size=12),
    frames=st.integers(2, 5),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_random_prompts_equal_the_processor(
    family: str,
    content: list[Any],
    sides: list[int],
    frames: int,
    request: pytest.FixtureRequest,
) -> None:
    processing = request.getfixturevalue(
        "processing25" if family == "qwen2_5_vl" else "processing3"
    )
    shapes = list(zip(sides[::2], sides[1::2], strict=True))
    visual = [part["type"] for part in content if part["type"] != "text"]
    media = tuple(
        image(*shape) if kind == "image" else clip(frames, *shape)
        for kind, shape in zip(visual, shapes, strict=False)
    )
    prompt = ask(*content, media=media)
    encoded, expected = processing.encode(prompt), library_call(processing.processor, prompt)
    assert torch.equal(encoded.ids, expected["input_ids"][0])
    ours = library_inputs(processing, encoded)
    for key in ("pixel_values", "pixel_values_videos"):
        if key in expected:
            torch.testing.assert_close(ours[key], expected[key], rtol=0, atol=1e-6)


def test_stamps_show_the_real_times(processing3: Processing) -> None:
    pixels = clip(5, 32, 32).frames
    media = Media(pixels, torch.tensor([0.0, 0.4, 3.0, 3.2, 10.04]))
    decoded = processing3.tokenizer.decode(processing3.encode(ask(VIDEO, media=(media,))).ids)
    assert [piece.split(">")[0] for piece in decoded.split("<")[1:] if "seconds" in piece] == [
        "0.2 seconds",
        "3.1 seconds",
        "10.0 seconds",
    ]


def test_outer_pair_of_a_wrapping_template_is_kept(processing3: Processing) -> None:
    decoded = processing3.tokenizer.decode(processing3.encode(PROMPTS["video"]).ids)
    assert "user\n<|vision_start|><0.2 seconds><|vision_start|><|video_pad|>" in decoded
    assert "<|video_pad|><|vision_end|><|vision_end|>When ?" in decoded


@given(gaps=st.lists(st.floats(0, 30), max_size=12), start=st.floats(0, 1000))
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_last_stamp_lies_within_one_step_of_the_end(
    gaps: list[float], start: float, request: pytest.FixtureRequest
) -> None:
    processing = request.getfixturevalue("processing3")
    times = torch.tensor([start, *gaps], dtype=torch.float64).cumsum(0)
    stamps = processing.stamps(
        Media(torch.zeros(len(times), 3, 1, 1, dtype=torch.uint8), times)
    )
    assert len(stamps) == math.ceil(len(times) / 2)
    assert list(stamps) == sorted(stamps) and stamps[0] >= times[0] and stamps[-1] <= times[-1]
    assert float(times[-1]) - stamps[-1] <= max([*gaps, 0.0]) + 1e-6


def test_seconds_per_patch_is_twice_the_mean_spacing() -> None:
    pixels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    assert seconds_per_patch(
        Media(pixels, torch.tensor([1.0, 1.5, 2.0, 2.5])), 2
    ) == pytest.approx(1.0)
    assert seconds_per_patch(
        Media(pixels, torch.tensor([0.0, 0.1, 5.0, 6.0])), 2
    ) == pytest.approx(4.0)
    assert seconds_per_patch(Media(pixels[:1], torch.tensor([3.0])), 2) == 1.0
    assert seconds_per_patch(Media(pixels[:1]), 2) == 1.0


def test_timed_video_reads_tokens_per_second_from_the_config(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["tokens_per_second"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    for source, rate in ((tiny_folder, 2), (folder, 5)):
        encoded = Processing.load(source).encode(ask(VIDEO, media=(clip(6, 32, 32),)))
        time_axis = encoded.positions[0, encoded.slots[0]].unique()
        assert time_axis.diff().tolist() == [rate, rate]


def test_budget_shrinks_media_but_drops_nothing(folder: Path) -> None:
    prompt = ask(IMAGE, VIDEO, IMAGE, media=(image(160, 320), clip(4, 128, 128), image(16, 16)))
    free = Processing.load(folder).encode(prompt)
    tight = Processing.load(folder, PixelBudget(max_visual_tokens=80)).encode(prompt)
    assert sum(p.tokens for p in free.visual) == 200 + 128 + 1
    assert sum(p.tokens for p in tight.visual) <= 80
    assert [p.kind for p in tight.visual] == ["image", "video", "image"]
    (tall, wide), clip_size, smallest = (p.size for p in tight.visual)
    assert (
        abs(wide - 2 * tall) <= 16
        and clip_size[0] == clip_size[1] < 128
        and smallest == (16, 16)
    )
    dropped = int((free.types > 0).sum() - (tight.types > 0).sum())
    assert len(free.ids) - len(tight.ids) == dropped >= 329 - 80
    with pytest.raises(BadRow, match=r"'p'.*at least 4 visual tokens, max_visual_tokens is 3"):
        Processing.load(folder, PixelBudget(max_visual_tokens=3)).encode(prompt)


def test_over_long_prompts_are_refused(folder: Path) -> None:
    short = Processing.load(folder, PixelBudget(max_prompt_tokens=30))
    with pytest.raises(BadRow, match=r"'p'.*\(9 of them visual\), at most 30.*drop the row"):
        short.encode(ask(IMAGE, text("word " * 40), media=(image(48, 48),)))
    assert Processing.load(folder).max_prompt_tokens == 32768


def test_refusals_name_the_row(processing: Processing) -> None:
    with pytest.raises(BadRow, match="show 1 images or videos, but it has 2 media"):
        processing.encode(ask(IMAGE, media=(image(48, 48), image(48, 48))))
    with pytest.raises(BadRow, match=r"special token <\|image_pad\|>"):
        processing.encode(ask(text("see <|image_pad|>")))
    with pytest.raises(BadRow, match=r"medium 0 cannot be shown.*3 pixels.*200 times"):
        processing.encode(ask(IMAGE, media=(image(3, 700),)))


def test_one_pixel_media_are_enlarged(processing: Processing) -> None:
    encoded = processing.encode(ask(IMAGE, VIDEO, media=(image(1, 1), clip(1, 1, 1))))
    assert all(
        patches.tokens >= 1 and patches.values.isfinite().all() for patches in encoded.visual
    )


def test_rerender_with_the_same_pixels_is_identical(processing: Processing) -> None:
    prompt = PROMPTS["mixed"]
    encoded = processing.encode(prompt)
    for stage in ("original", "resized"):
        for old, new in zip(
            encoded.visual,
            processing.rerender(prompt, encoded, lambda f, _: f, stage),
            strict=True,
        ):
            assert (
                torch.equal(old.values, new.values)
                and old.key == new.key
                and old.grid == new.grid
            )


def test_rerender_shows_the_view_at_its_stage(processing: Processing) -> None:
    prompt = ask(IMAGE, VIDEO, media=(image(50, 70), clip(3, 40, 40)))
    encoded = processing.encode(prompt)
    seen: list[tuple[int, list[int]]] = []

    def blank(frames: Tensor, medium: int) -> Tensor:
        seen.append((medium, list(frames.shape)))
        return torch.zeros_like(frames)

    for stage in ("original", "resized"):
        dark = processing.rerender(prompt, encoded, blank, stage)
        assert all(patches.values.unique().numel() <= 3 for patches in dark)
        assert all(
            a.key != b.key and a.grid == b.grid
            for a, b in zip(dark, encoded.visual, strict=True)
        )
    sizes = [list(patches.size) for patches in encoded.visual]
    assert seen[:2] == [(0, [1, 3, 50, 70]), (1, [3, 3, 40, 40])]
    assert seen[2:] == [(0, [1, 3, *sizes[0]]), (1, [3, 3, *sizes[1]])]


def test_rerender_leaves_the_prompt_alone_and_uses_the_budget(folder: Path) -> None:
    processing = Processing.load(folder, PixelBudget(max_visual_tokens=6))
    prompt = ask(IMAGE, media=(image(80, 80),))
    before = prompt.media[0].frames.clone()
    encoded = processing.encode(prompt)
    (new,) = processing.rerender(prompt, encoded, lambda f, _: f.flip(-1))
    assert new.grid == encoded.visual[0].grid == (1, 4, 4) and torch.equal(
        prompt.media[0].frames, before
    )


@pytest.mark.parametrize(
    "spoil",
    [lambda f, _: f[..., :-1], lambda f, _: f.float(), lambda f, _: f[:0]],
    ids=["size", "dtype", "frames"],
)
def test_rerender_refuses_views_that_change_shape_or_dtype(
    processing: Processing, spoil: Any
) -> None:
    encoded = processing.encode(PROMPTS["one image"])
    with pytest.raises(ValueError, match=r"medium 0 of prompt 'p'.*must keep shape and dtype"):
        processing.rerender(PROMPTS["one image"], encoded, spoil)
    with pytest.raises(ValueError, match="'original' or 'resized'"):
        processing.rerender(PROMPTS["one image"], encoded, spoil, stage="later")  # type: ignore[arg-type]


def test_end_banned_and_padding_ids(processing: Processing) -> None:
    vocabulary = processing.tokenizer.get_vocab()
    assert processing.stop_ids == (vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"])
    names = ("vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
    assert set(processing.banned_ids) == {vocabulary[f"<|{name}|>"] for name in names}
    assert processing.pad_id == vocabulary["<|endoftext|>"]


@given(answer=st.text(st.characters(codec="utf-8", exclude_characters="|"), max_size=40))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_answers_survive_encoding(answer: str, request: pytest.FixtureRequest) -> None:
    import unicodedata

    processing = request.getfixturevalue("processing25")
    ids = processing.encode_answer(answer)
    assert ids.dtype == torch.long and int(ids[-1]) == processing.stop_ids[0]
    assert processing.decode(ids) == unicodedata.normalize(
        "NFC", answer
    )  # Qwen's tokenizer composes characters


def test_decode_keeps_tags_and_drops_ends(processing: Processing) -> None:
    answer = "<think> 1 2 </think><answer> red circle </answer>"
    ids = processing.encode_answer(answer).tolist()
    end, other = processing.stop_ids
    padding = [processing.pad_id] * 3
    assert processing.decode(torch.tensor([*padding, *ids, other, *padding])) == answer
    assert processing.decode([*ids[:-1], end, *ids]) == answer + "<|im_end|>" + answer
    assert (
        processing.decode(torch.tensor([], dtype=torch.long))
        == processing.decode([end, *padding])
        == ""
    )


def test_expert_answers_with_structure_are_refused(processing: Processing) -> None:
    with pytest.raises(BadRow, match="im_end"):
        processing.encode_answer("red<|im_end|>")


def test_wrong_folders_and_families_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist.*qwen2_5_vl, qwen3_vl"):
        Processing.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no model that can be read.*qwen2_5_vl, qwen3_vl"):
        Processing.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match=r"'llama'.*qwen2_5_vl.*families\.register.*own_parts"):
        Processing.load(tmp_path)
    shutil.copy(tiny_folder / "config.json", tmp_path)
    with pytest.raises(ValueError, match="processor"):
        Processing.load(tmp_path)


def test_missing_generation_config_leaves_the_model_ends(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "generation_config.json").unlink()
    processing = Processing.load(folder)
    assert processing.stop_ids[0] == processing.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_template_that_drops_pictures_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(template.replace("<|image_pad|>", ""))
    with pytest.raises(ValueError, match="one placeholder per visual part"):
        Processing.load(folder).encode(PROMPTS["one image"])


def test_small_pictures_are_cheap(processing25: Processing) -> None:
    """A whole `encode` of a 48 x 48 picture, positions included, costs about a third of the library's call."""
    prompt, processor = PROMPTS["one image"], processing25.processor

    def cost(call: Any) -> float:
        spans = []
        for _ in range(30):
            start = time.process_time()
            call()
            spans.append(time.process_time() - start)
        return sorted(spans)[10]

    library_call(processor, prompt), processing25.encode(prompt)
    assert cost(lambda: processing25.encode(prompt)) < 0.7 * cost(
        lambda: library_call(processor, prompt)
    )


def golden_video(key: str) -> list[dict[str, Any]]:
    files = [json.loads(path.read_text()) for path in sorted(GOLDEN.glob("*.json"))]
    cases = [
        case for content in files if isinstance(content, dict) for case in content.get(key, [])
    ]
    assert cases, f"no known case of {key} in {GOLDEN}"
    return cases


def test_golden_vtg_stamps(processing3: Processing) -> None:
    for case in golden_video("qwen3_timestamps"):
        times = torch.tensor(
            [index / case["fps"] for index in case["frames_indices"]], dtype=torch.float64
        )
        media = Media(torch.zeros(len(times), 3, 16, 16, dtype=torch.uint8), times)
        assert list(processing3.stamps(media)) == pytest.approx(
            case["timestamps"], abs=1e-12
        ), case
        decoded = processing3.tokenizer.decode(
            processing3.encode(ask(VIDEO, media=(media,))).ids
        )
        assert all(shown in decoded for shown in case["text"]) and decoded.count(
            " seconds>"
        ) == len(case["text"])


def test_golden_vtg_seconds_per_grid() -> None:
    """From the times of evenly spread frames; without fps there are no times, and we never assume 24."""
    for case in golden_video("sampled_fps"):
        if case["fps"] is None:
            continue
        count = case["n_sampled"] or case["total_frames"]
        times = (
            torch.arange(count, dtype=torch.float64)
            * case["total_frames"]
            / count
            / case["fps"]
        )
        media = Media(torch.zeros(count, 3, 1, 1, dtype=torch.uint8), times)
        assert seconds_per_patch(media, 2) == pytest.approx(
            case["second_per_grid"], abs=1e-9
        ), case


def test_golden_vtg_keys_are_known() -> None:
    files = [
        json.loads(path.read_text()) for path in sorted(GOLDEN.glob("transformers_video*.json"))
    ]
    known = {
        "library",
        "sample_frames",
        "qwen3_timestamps",
        "sampled_fps",
        "mrope",
        "qwen3_smart_resize",
    }
    unknown = sorted({key for content in files for key in content} - known)
    if unknown:
        pytest.skip(f"keys that no test reads: {unknown}")


def test_encoded_fields_cannot_be_replaced(processing: Processing) -> None:
    encoded = processing.encode(PROMPTS["text only"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        encoded.ids = encoded.types  # type: ignore[misc]
