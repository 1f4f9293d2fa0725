"""Released shapes with random weights, so that speed and memory can be measured without a download.

The numbers are those of the published config.json files; tokenizer and processor are the tiny models' own, with the
released patch size. `small` keeps the structure (windows, deep levels, tied or not) at a width that a CPU runs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from mmrl.data.drawn.drawn import Drawn, tokenizer_texts
from mmrl.model import tiny
from mmrl.model.families import family_of
from mmrl.model.load import LoRA, add_lora, freeze_parts
from mmrl.model.policy import Policy
from mmrl.model.processing import PixelBudget, Processing


@dataclass(frozen=True)
class Shape:
    """Sizes of a released model."""

    family: str
    text: dict[str, Any]
    vision: dict[str, Any]
    tied: bool
    patch: int

    @property
    def token_side(self) -> int:
        """Pixels per side of a visual token."""
        return 2 * self.patch


_TOWER_2_5 = {
    "depth": 32,
    "hidden_size": 1280,
    "num_heads": 16,
    "intermediate_size": 3420,
    "patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}

SHAPES = {
    "Qwen2.5-VL-3B": Shape(
        "qwen2_5_vl",
        {
            "hidden_size": 2048,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "intermediate_size": 11008,
            "vocab_size": 151_936,
        },
        {**_TOWER_2_5, "out_hidden_size": 2048},
        tied=True,
        patch=14,
    ),
    "Qwen2.5-VL-7B": Shape(
        "qwen2_5_vl",
        {
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
            "vocab_size": 152_064,
        },
        {**_TOWER_2_5, "out_hidden_size": 3584},
        tied=False,
        patch=14,
    ),
    "Qwen3-VL-4B": Shape(
        "qwen3_vl",
        {
            "hidden_size": 2560,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 9728,
            "vocab_size": 151_936,
        },
        {
            "depth": 24,
            "hidden_size": 1024,
            "num_heads": 16,
            "intermediate_size": 4096,
            "patch_size": 16,
            "out_hidden_size": 2560,
            "deepstack_visual_indexes": [5, 11, 17],
            "num_position_embeddings": 2304,
        },
        tied=True,
        patch=16,
    ),
}

_SMALL_TEXT = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "intermediate_size": 256,
    "vocab_size": 2048,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
_SMALL_VISION = {
    "depth": 4,
    "hidden_size": 64,
    "num_heads": 2,
    "intermediate_size": 96,
    "out_hidden_size": 128,
}


def shape_of(name: str, small: bool) -> Shape:
    """A released shape, or its structure at a width for CPUs."""
    shape = SHAPES[name]
    if not small:
        return shape
    vision = shape.vision | _SMALL_VISION
    if "fullatt_block_indexes" in vision:
        vision["fullatt_block_indexes"] = [1, 3]
    else:
        vision |= {"deepstack_visual_indexes": [1, 2], "num_position_embeddings": 64}
    return Shape(shape.family, shape.text | _SMALL_TEXT, vision, shape.tied, shape.patch)


@dataclass
class Built:
    """A policy of a shape, and what its work is counted by."""

    policy: Policy
    shape: Shape
    language: int
    """Weights of the language model's blocks."""
    head: int
    """Weights of the head."""
    scratch: Any = field(repr=False)


def build(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    small: bool = False,
    lora: LoRA | None = None,
    freeze: Sequence[Any] = (),
    shared: bool = True,
    checkpointing: bool = True,
) -> Built:
    """A policy with random weights, made on its device."""
    shape = shape_of(name, small)
    scratch = tempfile.TemporaryDirectory()
    size = tiny.TinySize(patch=shape.patch, max_image_tokens=4096, hidden=128)
    folder = tiny.build(f"{scratch.name}/model", shape.family, size, corpus=tokenizer_texts())
    config = _config(shape, AutoConfig.from_pretrained(folder))
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    freeze_parts(model, freeze)
    whole = model if lora is None else add_lora(model, lora)
    policy = Policy(
        whole,
        Processing.load(folder, PixelBudget(min_pixels=1, max_pixels=2**26)),
        shared=shared,
    )
    if checkpointing:
        policy.enable_checkpointing()
    # Every answer has the full length: what ends one is never drawn.
    processing = policy.processing
    object.__setattr__(
        processing, "banned_ids", tuple({*processing.banned_ids, *processing.stop_ids})
    )
    language = sum(p.numel() for p in model.model.language_model.layers.parameters())
    return Built(policy, shape, language, model.lm_head.weight.numel(), scratch)


def _config(shape: Shape, tiny_config: Any) -> Any:
    """The tiny model's config (ids of its tokenizer) with the sizes of the shape."""
    found = tiny_config.to_dict()
    text = found["text_config"]
    text.pop("layer_types", None)  # one entry per layer: made anew from their number
    text |= shape.text
    found["vision_config"] |= shape.vision
    width = shape.text.get("head_dim", text["hidden_size"] // text["num_attention_heads"])
    text["rope_parameters"]["mrope_section"] = _sections(shape.family, width // 2)
    found["tie_word_embeddings"] = text["tie_word_embeddings"] = shape.tied
    return type(tiny_config).from_dict(found)


def _sections(family: str, sides: int) -> list[int]:
    """Rotary frequencies of time, height and width: [16, 24, 24] and [24, 20, 20] of 64 in released models."""
    side = int(sides * family_of(family).side_share)
    return [sides - 2 * side, side, side]


def questions(shape: Shape, visual: int, count: int) -> Drawn:
    """Drawn pictures of about so many visual tokens each, with questions."""
    side = round(visual**0.5) * shape.token_side
    return Drawn("lookup", size=count, size_px=side, cells=4)


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """TFLOP/s of a square product in this run: what the device can do, not what is written about it."""
    import time

    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    wait(device)
    began, rounds = time.perf_counter(), 10
    for _ in range(rounds):
        a @ b
    wait(device)
    return 2 * side**3 * rounds / (time.perf_counter() - began) / 1e12
