"""How a model comes into memory: device, number format, frozen parts, adapters. The only user of peft."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

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
        if self.rank < 0:
            raise ValueError(
                f"LoRA.rank is {self.rank}; it must be 0 (full fine-tuning) or positive."
            )


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
        return (
            torch.bfloat16
            if device.type == "cuda" and torch.cuda.is_bf16_supported()
            else torch.float32
        )
    if dtype not in table:
        raise ValueError(
            f"dtype is {dtype!r}; it must be 'auto', 'float32', 'bfloat16' or 'float64'."
        )
    return table[dtype]


def freeze_parts(model: Any, parts: Sequence[Part]) -> None:
    """Take parts out of training: "vision" (the tower without its merger), "merger", "language", "head"."""
    visual = model.model.visual
    mergers = {id(p) for name, p in visual.named_parameters() if "merger" in name}
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    for part in parts:
        if part in ("vision", "merger"):
            for p in visual.parameters():
                if (id(p) in mergers) == (part == "merger"):
                    p.requires_grad_(False)
        elif part == "language":
            model.model.language_model.requires_grad_(False)
        elif part == "head":
            model.lm_head.requires_grad_(False)
            if tied:
                warnings.warn(
                    "The head is tied to the embedding: freezing the head freezes both.",
                    stacklevel=3,
                )
        else:
            raise ValueError(
                f"freeze has {part!r}; allowed are 'vision', 'merger', 'language', 'head'."
            )


def add_lora(model: Any, lora: LoRA) -> nn.Module:
    """Adapters on the linear layers of the language model, and of the vision blocks if asked for.

    Their first weights are the same each time; the global random state is left alone.
    """
    from peft import LoraConfig, get_peft_model

    targets = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
    if lora.vision:
        names = [
            n
            for n, m in model.named_modules()
            if ".visual.blocks." in n and type(m) is nn.Linear
        ]
        targets = "|".join([targets, *(name.replace(".", r"\.") for name in names)])
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha or 2 * lora.rank,
        lora_dropout=0.0,
        target_modules=f"({targets})",
    )
    device = model.lm_head.weight.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        return get_peft_model(model, config)  # type: ignore[return-value]


def load_adapter(folder: Path, dtype: torch.dtype) -> nn.Module:
    """A saved adapter on top of the base model its config names."""
    import json

    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype)
    return PeftModel.from_pretrained(model, str(folder), is_trainable=True)  # type: ignore[return-value]
