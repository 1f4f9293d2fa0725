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

from mmrl.model.adapter_folder import config_place
from mmrl.model.families import family_of

_TOWER_2 = {
    "depth": 32,
    "embed_dim": 1280,
    "num_heads": 16,
    "mlp_ratio": 4,
    "patch_size": 14,
}
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
_INTERN_VIT_300M = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "attention_bias": True,
    "image_size": [448, 448],
    "patch_size": [14, 14],
}
_INTERN_VIT_6B = _INTERN_VIT_300M | {
    "hidden_size": 3200,
    "num_hidden_layers": 45,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "attention_bias": False,
    "use_qk_norm": True,
    "norm_type": "rms_norm",
}
_TOWER_35_MIDDLE = {
    "depth": 24,
    "hidden_size": 1024,
    "num_heads": 16,
    "intermediate_size": 4096,
}
_TOWER_35_SMALL = {"depth": 12, "hidden_size": 768, "num_heads": 12, "intermediate_size": 3072}
_TOWER_35: dict[str, Any] = {}  # the library's defaults
_EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1}


def _text(
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    intermediate: int,
    vocabulary: int,
    experts: int = 0,
) -> dict[str, Any]:
    """Sizes of a language model. `experts`: width of each, of 128."""
    text = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "head_dim": 128,
    }
    return text | _EXPERTS | {"moe_intermediate_size": experts} if experts else text


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
    """As the hub counts them; of Qwen3.5 less the weights that predict several tokens at once, which are not loaded; of
    InternVL3 2B, 8B and 14B only the published rounding (2.09, 7.94, 15.1 B) is known."""
    handed: str = "out_hidden_size"
    """How the tower's config calls the width that it hands over; empty if that is not said."""


def _hybrid(
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    states: int,
    *,
    intermediate: int = 0,
) -> dict[str, Any]:
    """Sizes of a language model with linear attention: `states` heads of values in it. Without `intermediate`: experts
    of the library's defaults."""
    text = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": 248_320,
        "head_dim": 256,
        "linear_num_value_heads": states,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e7},
    }
    return text | {"intermediate_size": intermediate} if intermediate else text


def _intern(
    hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, parameters: int
) -> Released:
    """An InternVL3: the language model of a Qwen2.5 with tokens of its own, head and embedding apart."""
    text = _text(hidden, layers, heads, kv_heads, intermediate, 151_674)
    text |= {"model_type": "qwen2", "head_dim": hidden // heads}
    small = parameters < 20e9
    vision = _INTERN_VIT_300M if small else _INTERN_VIT_6B
    return Released("internvl", text, vision, False, parameters, handed="")


QWEN_2, QWEN_2_5, QWEN_3, QWEN_3_MOE = "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"
QWEN_35 = "qwen3_5"
TABLE: Mapping[str, Released] = {
    "Qwen/Qwen2-VL-2B": Released(
        QWEN_2,
        _text(1536, 28, 12, 2, 8960, 151_936),
        _TOWER_2,
        True,
        2_208_985_600,
        handed="hidden_size",
    ),
    "Qwen/Qwen2-VL-7B": Released(
        QWEN_2,
        _text(3584, 28, 28, 4, 18944, 152_064),
        _TOWER_2,
        False,
        8_291_375_616,
        handed="hidden_size",
    ),
    "Qwen/Qwen2-VL-72B": Released(
        QWEN_2,
        _text(8192, 80, 64, 8, 29568, 152_064),
        _TOWER_2,
        False,
        73_405_560_320,
        handed="hidden_size",
    ),
    "Qwen/Qwen2.5-VL-3B": Released(
        QWEN_2_5, _text(2048, 36, 16, 2, 11008, 151_936), _TOWER_2_5, True, 3_754_622_976
    ),
    "Qwen/Qwen2.5-VL-7B": Released(
        QWEN_2_5, _text(3584, 28, 28, 4, 18944, 152_064), _TOWER_2_5, False, 8_292_166_656
    ),
    "Qwen/Qwen2.5-VL-32B": Released(
        QWEN_2_5,
        _text(5120, 64, 40, 8, 27648, 152_064),
        _TOWER_2_5_LARGE,
        False,
        33_452_718_336,
    ),
    "Qwen/Qwen2.5-VL-72B": Released(
        QWEN_2_5,
        _text(8192, 80, 64, 8, 29568, 152_064),
        _TOWER_2_5_LARGE,
        False,
        73_410_777_344,
    ),
    "Qwen/Qwen3-VL-2B": Released(
        QWEN_3, _text(2048, 28, 16, 8, 6144, 151_936), _TOWER_3, True, 2_127_532_032
    ),
    "Qwen/Qwen3-VL-4B": Released(
        QWEN_3, _text(2560, 36, 32, 8, 9728, 151_936), _TOWER_3, True, 4_437_815_808
    ),
    "Qwen/Qwen3-VL-8B": Released(
        QWEN_3, _text(4096, 36, 32, 8, 12288, 151_936), _TOWER_3_LARGE, False, 8_767_123_696
    ),
    "Qwen/Qwen3-VL-32B": Released(
        QWEN_3, _text(5120, 64, 64, 8, 25600, 151_936), _TOWER_3_LARGE, False, 33_357_390_064
    ),
    "Qwen/Qwen3-VL-30B-A3B": Released(
        QWEN_3_MOE,
        _text(2048, 48, 32, 4, 6144, 151_936, experts=768),
        _TOWER_3_LARGE,
        False,
        31_070_754_032,
    ),
    "Qwen/Qwen3-VL-235B-A22B": Released(
        QWEN_3_MOE,
        _text(4096, 94, 64, 4, 12288, 151_936, experts=1536),
        _TOWER_3_LARGE,
        False,
        235_670_022_896,
    ),
    "Qwen/Qwen3.5-0.8B": Released(
        QWEN_35,
        _hybrid(1024, 24, 8, 2, 16, intermediate=3584),
        _TOWER_35_SMALL,
        True,
        852_985_920,
    ),
    "Qwen/Qwen3.5-2B": Released(
        QWEN_35,
        _hybrid(2048, 24, 8, 2, 16, intermediate=6144),
        _TOWER_35_MIDDLE,
        True,
        2_213_241_664,
    ),
    "Qwen/Qwen3.5-4B": Released(
        QWEN_35,
        _hybrid(2560, 32, 16, 4, 32, intermediate=9216),
        _TOWER_35_MIDDLE,
        True,
        4_539_265_536,
    ),
    "Qwen/Qwen3.5-9B": Released(
        QWEN_35,
        _hybrid(4096, 32, 16, 4, 32, intermediate=12288),
        _TOWER_35,
        False,
        9_409_813_744,
    ),
    "Qwen/Qwen3.5-27B": Released(
        QWEN_35,
        _hybrid(5120, 64, 24, 4, 48, intermediate=17408),
        _TOWER_35,
        False,
        27_356_728_560,
    ),
    "Qwen/Qwen3.5-35B-A3B": Released(
        "qwen3_5_moe", _hybrid(2048, 40, 16, 2, 32), _TOWER_35, False, 35_107_181_936
    ),
    "OpenGVLab/InternVL3-1B-hf": _intern(896, 24, 14, 2, 4864, 938_193_024),
    "OpenGVLab/InternVL3-2B-hf": _intern(1536, 28, 12, 2, 8960, 2_088_957_440),
    "OpenGVLab/InternVL3-8B-hf": _intern(3584, 28, 28, 4, 18944, 7_944_373_760),
    "OpenGVLab/InternVL3-14B-hf": _intern(5120, 48, 40, 8, 13824, 15_117_256_704),
    "OpenGVLab/InternVL3-38B-hf": _intern(5120, 64, 40, 8, 27648, 38_388_164_992),
    "OpenGVLab/InternVL3-78B-hf": _intern(8192, 80, 64, 8, 29568, 78_408_318_336),
}
"""Hub name without the kind -> what the checkpoint is made of. Sources: the config.json files of these names; for the
numbers of parameters the hub's count, for InternVL3 1B, 38B and 78B that of InternVL2.5, which is built alike. Of
Qwen3.5 the defaults of transformers (9B, 35B-A3B) and public model pages; only published roundings are known, which
these agree with."""
KINDS = ("-Instruct", "-Thinking")
"""Endings of names that change the weights and not their number."""


class UnknownModel(ValueError):
    """There is no config to be had for a model without a network."""


def config_of(source: str | Path) -> Any:
    """The transformers config of a folder or hub name; nothing is downloaded. Raises `UnknownModel`."""
    from transformers import AutoConfig

    folder, name = Path(source), str(source)
    place = config_place(folder)
    if place != folder or (folder / "config.json").is_file():
        return AutoConfig.from_pretrained(place)
    for kind in KINDS:
        name = name.removesuffix(kind)
    if name in TABLE:
        return _from_table(TABLE[name])
    try:
        return AutoConfig.from_pretrained(str(source), local_files_only=True)
    except (OSError, ValueError):
        known = ", ".join(TABLE)
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


def _from_table(found: Released) -> Any:
    from transformers import AutoConfig

    text = dict(found.text)
    half, width = text["head_dim"] // 2, text["hidden_size"]
    text.setdefault("rope_parameters", {"rope_type": "default", "rope_theta": 1e6})
    if share := family_of(found.family).side_share:
        # Rotary frequencies of time, height and width.
        side = int(half * share)
        text["rope_parameters"]["mrope_section"] = [half - 2 * side, side, side]
    return AutoConfig.for_model(
        found.family,
        text_config=text,
        vision_config={**found.vision, found.handed: width} if found.handed else found.vision,
        tie_word_embeddings=found.tied,
    )
