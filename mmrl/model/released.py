"""What released checkpoints are made of: their config without their weights, and without a network.

`config_of` reads a folder, then the cache of the hub, then the table below: the numbers of the published config.json
files on the hub. That they are right is tested: the models they describe have the published numbers of parameters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrl.model.families import family_of

_TOWER_2_5 = {
    "depth": 32,
    "hidden_size": 1280,
    "num_heads": 16,
    "intermediate_size": 3420,
    "patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
_TOWER_2_5_LARGE = _TOWER_2_5 | {"intermediate_size": 3456}
_TOWER_3 = {
    "depth": 24,
    "hidden_size": 1024,
    "num_heads": 16,
    "intermediate_size": 4096,
    "patch_size": 16,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [5, 11, 17],
}
_TOWER_3_LARGE = _TOWER_3 | {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "deepstack_visual_indexes": [8, 16, 24],
}


def _text(
    hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocabulary: int
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "head_dim": 128,
    }


@dataclass(frozen=True)
class Released:
    """A checkpoint on the hub."""

    family: str
    """`model_type` of its config."""
    text: Mapping[str, Any]
    """Sizes of the language model."""
    vision: Mapping[str, Any]
    """Sizes of the tower, but for the width that it hands over."""
    tied: bool
    """Is the head the embedding?"""
    parameters: int
    """As the hub counts them."""


QWEN_2_5, QWEN_3 = "qwen2_5_vl", "qwen3_vl"
TABLE: Mapping[str, Released] = {
    "Qwen2.5-VL-3B": Released(
        QWEN_2_5, _text(2048, 36, 16, 2, 11008, 151_936), _TOWER_2_5, True, 3_754_622_976
    ),
    "Qwen2.5-VL-7B": Released(
        QWEN_2_5, _text(3584, 28, 28, 4, 18944, 152_064), _TOWER_2_5, False, 8_292_166_656
    ),
    "Qwen2.5-VL-32B": Released(
        QWEN_2_5,
        _text(5120, 64, 40, 8, 27648, 152_064),
        _TOWER_2_5_LARGE,
        False,
        33_452_718_336,
    ),
    "Qwen2.5-VL-72B": Released(
        QWEN_2_5,
        _text(8192, 80, 64, 8, 29568, 152_064),
        _TOWER_2_5_LARGE,
        False,
        73_410_777_344,
    ),
    "Qwen3-VL-2B": Released(
        QWEN_3, _text(2048, 28, 16, 8, 6144, 151_936), _TOWER_3, True, 2_127_532_032
    ),
    "Qwen3-VL-4B": Released(
        QWEN_3, _text(2560, 36, 32, 8, 9728, 151_936), _TOWER_3, True, 4_437_815_808
    ),
    "Qwen3-VL-8B": Released(
        QWEN_3, _text(4096, 36, 32, 8, 12288, 151_936), _TOWER_3_LARGE, False, 8_767_123_696
    ),
}
KINDS = ("-Instruct", "-Thinking")
"""Endings of names that change the weights and not their number."""


class UnknownModel(ValueError):
    """There is no config to be had for a model without a network."""


def config_of(source: str | Path) -> Any:
    """The transformers config of a folder or hub name; nothing is downloaded. Raises `UnknownModel`."""
    from transformers import AutoConfig

    folder = Path(source)
    if (folder / "config.json").is_file():
        return AutoConfig.from_pretrained(folder)
    name = folder.name
    for kind in KINDS:
        name = name.removesuffix(kind)
    if str(source).startswith("Qwen/") and name in TABLE:
        return _from_table(name)
    try:
        return AutoConfig.from_pretrained(str(source), local_files_only=True)
    except (OSError, ValueError):
        known = ", ".join(f"Qwen/{name}" for name in TABLE)
        raise UnknownModel(
            f"The config of {source} is neither in a folder nor in the cache of the hub, and it is none of the "
            f"released models {known}. Give --model a folder with a config.json, or download the config first."
        ) from None


def max_pixels_of(source: str | Path, family: str) -> int:
    """Largest picture of a checkpoint's own processor, in pixels: the folder's, else its family's published one."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = Path(source) / name
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            found = found.get("image_processor", found)
            size = found.get("size") or {}
            most = found.get("max_pixels") or size.get("longest_edge")
            if most:
                return int(most)
    return family_of(family).max_pixels


def _from_table(name: str) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

    found = TABLE[name]
    half = found.text["head_dim"] // 2
    # Rotary frequencies of time, height and width.
    side = half * 3 // 8 if found.family == QWEN_2_5 else half * 5 // 16
    rope = {"rope_type": "default", "rope_theta": 1e6}
    rope |= {"mrope_section": [half - 2 * side, side, side]}
    kind = Qwen2_5_VLConfig if found.family == QWEN_2_5 else Qwen3VLConfig
    return kind(
        text_config={**found.text, "rope_parameters": rope},
        vision_config={**found.vision, "out_hidden_size": found.text["hidden_size"]},
        tie_word_embeddings=found.tied,
    )
