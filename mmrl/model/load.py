"""How a model comes into memory: device, number format, frozen parts, adapters. The only user of peft."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from mmrl.ground.require import require

Part = Literal["vision", "merger", "language", "head"]


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters instead of full fine-tuning."""

    rank: int = 0
    """Rank of the adapters; 0 trains all weights."""
    alpha: int = 0
    """Scale of the adapters; 0 means twice the rank."""
    vision: bool = False
    """Also adapt the vision tower."""

    def __post_init__(self) -> None:
        require(self, rank=(self.rank >= 0, "0 (full fine-tuning) or positive"))


def resolve_device(device: str) -> torch.device:
    """ "auto" is CUDA if there is one; a device that is not there is an error."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"device is {device!r} but torch sees no CUDA device; use 'cpu' or 'auto'."
        )
    return torch.device(device)


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """ "auto" is bf16 where the device computes in it, else fp32."""
    table = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
    if dtype == "auto":
        half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if half else torch.float32
    if dtype not in table:
        raise ValueError(
            f"dtype is {dtype!r}; it must be 'auto', 'float32', 'bfloat16' or 'float64'."
        )
    return table[dtype]


def load_model(
    source: str | Path,
    device: torch.device,
    dtype: torch.dtype,
    freeze: Sequence[Part] = (),
    lora: LoRA | None = None,
) -> nn.Module:
    """The model of a folder or hub name on its device, parts frozen, adapters added.

    A folder may hold an adapter, which is trained on; ValueError if it should get a second one.
    """
    from transformers import AutoModelForImageTextToText

    adapted = (Path(source) / "adapter_config.json").is_file()
    if adapted and lora is not None:
        raise ValueError(
            f"{source} is an adapter already, so LoRA.rank {lora.rank} would add a second one; "
            "set it to 0 to train on, or merge the adapter first (policy.save(..., merge=True))."
        )
    if adapted:
        model: Any = load_adapter(Path(source), dtype)
    else:
        model = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype)
    model.to(device)
    freeze_parts(model.get_base_model() if adapted else model, freeze)
    # After freezing, so that adapters on a frozen part learn.
    return model if lora is None else add_lora(model, lora)


def freeze_parts(model: Any, parts: Sequence[Part]) -> None:
    """Take parts out of training: "vision" (the tower without its merger), "merger", "language", "head"."""
    visual = model.model.visual
    # The merger lies inside the tower's module, so the two are told apart by name.
    mergers = [p for name, p in visual.named_parameters() if "merger" in name]
    blocks = [p for name, p in visual.named_parameters() if "merger" not in name]
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    if "head" in parts and tied:
        warnings.warn(
            "The head is tied to the embedding: freezing the head freezes both.", stacklevel=4
        )
    for part in parts:
        if part not in get_args(Part):
            raise ValueError(
                f"freeze has {part!r}; allowed are 'vision', 'merger', 'language', 'head'."
            )
        if part == "vision":
            frozen = blocks
        elif part == "merger":
            frozen = mergers
        elif part == "language":
            frozen = list(model.model.language_model.parameters())
        else:
            frozen = [model.lm_head.weight]
        for weight in frozen:
            weight.requires_grad_(False)


def add_lora(model: Any, lora: LoRA) -> nn.Module:
    """Adapters on the linear layers of the language model, and of the vision blocks if asked for.

    They compute in the format of their base (the optimizer keeps fp32 masters of half-precision ones). Their first
    weights are the same each time; the global random state is left alone.
    """
    from peft import LoraConfig, get_peft_model

    targets = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
    if lora.vision:
        # By name, one by one: the layers of the two families are called differently, and the merger has none.
        for name, module in model.named_modules():
            if ".visual.blocks." in name and type(module) is nn.Linear:
                targets += "|" + re.escape(name)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha or 2 * lora.rank,
        lora_dropout=0.0,
        target_modules=f"({targets})",
    )
    device = model.lm_head.weight.device
    # peft draws the first weights from the global state.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        return get_peft_model(model, config, autocast_adapter_dtype=False)  # type: ignore[return-value]


def load_adapter(folder: Path, dtype: torch.dtype) -> nn.Module:
    """A saved adapter on top of the base model its config names."""
    import json

    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    config = json.loads((folder / "adapter_config.json").read_text())
    base = config["base_model_name_or_path"]
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype)
    return PeftModel.from_pretrained(  # type: ignore[return-value]
        model, str(folder), is_trainable=True, autocast_adapter_dtype=False
    )
