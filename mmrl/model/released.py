"""What released checkpoints are made of: their config without their weights, and without a network.

`config_of` reads a folder, then the cache of the hub, then the table below: the numbers of the published config.json
files on the hub. That they are right is tested: the models they describe have the published numbers of parameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


TABLE: dict[str, tuple[str, dict[str, Any], dict[str, Any], bool, int]] = {
    # fmt: off
    "Qwen2.5-VL-3B": (
        "qwen2_5_vl",
        _text(2048, 36, 16, 2, 11008, 151936),
        _TOWER_2_5,
        True,
        3_754_622_976,
    ),
    "Qwen2.5-VL-7B": (
        "qwen2_5_vl",
        _text(3584, 28, 28, 4, 18944, 152064),
        _TOWER_2_5,
        False,
        8_292_166_656,
    ),
    "Qwen2.5-VL-32B": (
        "qwen2_5_vl",
        _text(5120, 64, 40, 8, 27648, 152064),
        _TOWER_2_5_LARGE,
        False,
        33_452_718_336,
    ),
    "Qwen2.5-VL-72B": (
        "qwen2_5_vl",
        _text(8192, 80, 64, 8, 29568, 152064),
        _TOWER_2_5_LARGE,
        False,
        73_410_777_344,
    ),
    "Qwen3-VL-2B": (
        "qwen3_vl",
        _text(2048, 28, 16, 8, 6144, 151936),
        _TOWER_3,
        True,
        2_127_532_032,
    ),
    "Qwen3-VL-4B": (
        "qwen3_vl",
        _text(2560, 36, 32, 8, 9728, 151936),
        _TOWER_3,
        True,
        4_437_815_808,
    ),
    "Qwen3-VL-8B": (
        "qwen3_vl",
        _text(4096, 36, 32, 8, 12288, 151936),
        _TOWER_3_LARGE,
        False,
        8_767_123_696,
    ),
    # fmt: on
}
"""Name -> family, language model, tower, is the head tied to the embedding?, published number of parameters."""
MAX_PIXELS = {"qwen2_5_vl": 12_845_056, "qwen3_vl": 16_777_216}
"""Largest picture of the published processors, in pixels (preprocessor_config.json)."""
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
        raise UnknownModel(
            f"The config of {source} is neither in a folder nor in the cache of the hub, and it is none of the released "
            f"models {', '.join(f'Qwen/{name}' for name in TABLE)}. Give --model a folder with a config.json, or "
            "download the config first."
        ) from None


def _from_table(name: str) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

    family, text, tower, tied, _ = TABLE[name]
    half = text["head_dim"] // 2
    third = half * 3 // 8 if family == "qwen2_5_vl" else half * 5 // 16
    rope = {"rope_type": "default", "mrope_section": [half - 2 * third, third, third]}
    kind = Qwen2_5_VLConfig if family == "qwen2_5_vl" else Qwen3VLConfig
    return kind(
        text_config=text | {"rope_parameters": rope | {"rope_theta": 1e6}},
        vision_config=tower | {"out_hidden_size": text["hidden_size"]},
        tie_word_embeddings=tied,
    )
