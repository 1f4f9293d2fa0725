"""How a model comes into memory: device, number format, frozen parts, adapters. The only user of peft."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import safe_open
from torch import nn

from mmrl.ground.require import require
from mmrl.model.adapter_folder import (
    base_alone,
    base_of,
    carries_base,
    config_place,
    is_adapter,
)
from mmrl.model.checkpoint_files import read_config
from mmrl.model.families import Family, family_of
from mmrl.model.folders import (
    ModelError,
    readable,
    refuse_damaged,
    refuse_missing,
    refuse_nonfinite,
)

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


def resolve_device(device: str, processes: int = 1) -> torch.device:
    """ "auto" is CUDA if there is one; a device that is not there is an error, and one card for several `processes`."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"--load.device is {device!r}, but torch sees no CUDA device; use cpu or auto (in Python device=)."
        )
    index = torch.device(device).index
    if processes > 1 and index is not None:
        raise ValueError(
            f"--load.device is {device!r}, one card, but {processes} processes run on this machine and each takes its "
            "own; use 'auto', 'cuda' or 'cpu', and choose cards with CUDA_VISIBLE_DEVICES."
        )
    count = torch.cuda.device_count()
    if device.startswith("cuda") and index is not None and index >= count:
        raise ValueError(
            f"--load.device is {device!r}, but there are {count} CUDA devices, counted from cuda:0."
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
            f"--load.dtype is {dtype!r}; it must be 'auto', 'float32', 'bfloat16' or 'float64' (in Python dtype=)."
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

    A folder may hold an adapter, which is trained on; ValueError if it should get a second one. Raises ModelError for
    files that are gone, cut, changed, of another model, or not finite.
    """
    refuse_damaged(source)
    adapted = is_adapter(source)
    if adapted and lora is not None:
        raise ValueError(
            f"{source} is an adapter already, so LoRA.rank {lora.rank} would add a second one; "
            "set it to 0 to train on, or merge the adapter first (policy.save(..., merge=True))."
        )
    if adapted:
        model: Any = load_adapter(Path(source), dtype)
    else:
        model = load_weights(source, dtype)
    refuse_nonfinite(source, dict(model.named_parameters()))
    model.to(device)
    freeze_parts(model.get_base_model() if adapted else model, freeze)
    # After freezing, so that adapters on a frozen part learn.
    return model if lora is None else add_lora(model, lora)


def freeze_parts(model: Any, parts: Sequence[Part]) -> None:
    """Take parts out of training: "vision" (the tower without its merger), "merger", "language", "head"."""
    family = family_of(model.config.model_type)
    weights = family.parts(model)
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
        if part not in weights:
            raise ValueError(
                f"freeze has {part!r}, but {family.name} has no such part; it has {', '.join(weights)}."
            )
        for weight in weights[part]:
            weight.requires_grad_(False)


def add_lora(model: Any, lora: LoRA) -> nn.Module:
    """Adapters on the linear layers of the language model, and of the vision blocks if asked for.

    They compute in the format of their base (the optimizer keeps fp32 masters of half-precision ones). Their first
    weights are the same each time; the global random state is left alone.
    """
    from peft import LoraConfig, get_peft_model

    family = family_of(model.config.model_type)
    targets = family.lora
    if lora.vision:
        if not family.tower_layers:
            raise ValueError(f"LoRA.vision is on, but {family.name} has no vision tower.")
        # By name, one by one: the layers of families are called differently, and the merger gets none.
        for name, module in model.named_modules():
            if name.startswith(family.tower_layers) and type(module) is nn.Linear:
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


def adapted(model: Any, family: Family) -> str:
    """What of a model its adapters change, and what of the language model they leave alone, in words."""
    layers: dict[str, int] = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            kind = name.rpartition(".")[2]
            layers[kind] = layers.get(kind, 0) + 1
    told = ", ".join(f"{count} x {kind}" for kind, count in layers.items())
    rest = family.left_out_of_lora
    return f"LoRA adapts {told}" + (f"; not adapted: {rest}" if rest else "")


def adapted_like(adapted: Any, base: Any) -> nn.Module:
    """Another base model with adapters of the same kind; their weights are still to be loaded."""
    from peft import PeftModel

    (name,) = adapted.active_adapters
    config = adapted.peft_config[name]
    return PeftModel(base, config, adapter_name=name, autocast_adapter_dtype=False)


def load_weights(source: str | Path, dtype: torch.dtype) -> Any:
    """The model of a folder or hub name, all of its weights from the files. Raises ModelError."""
    mend = "Copy or download the weight files again, and check that they belong to the config."
    with readable(source, mend):
        family = family_of(read_config(source).model_type)
        with base_alone(Path(source)) if carries_base(source) else nullcontext(source) as place:
            loaded: Any = family.model_class().from_pretrained(
                place, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
            )
        model, info = loaded
    # Both would have been drawn at random.
    refuse_missing(source, info)
    return model


def load_adapter(folder: Path, dtype: torch.dtype) -> nn.Module:
    """A saved adapter on top of the base model its config names. Raises ModelError for one of another model."""
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict

    with readable(folder / "adapter_config.json", "Save or copy the adapter again."):
        base = base_of(folder)
    carried = carries_base(folder)
    model = load_weights(folder if carried else base, dtype)
    model.name_or_path = base
    refuse_other_family(folder, model.config.model_type, base)
    mend = f"It must be an adapter of {base}, with all its files; save or copy it again."
    with readable(folder, mend):
        stored = adapter_names(folder)
    with readable(folder, mend), warnings.catch_warnings():
        # Names that do not fit are compared below, where they are an error.
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        adapted: Any = PeftModel.from_pretrained(
            model, str(folder), is_trainable=True, autocast_adapter_dtype=False
        )
    expected = set(get_peft_model_state_dict(adapted))
    adapted.mmrl_carried = carried  # to be carried on when it is saved again
    if strange := sorted(stored ^ expected):
        lacks = len(expected - stored)
        raise ModelError(
            f"The adapter in {folder} does not fit {base}: it lacks {lacks} of {len(expected)} weights and has "
            f"{len(stored - expected)} others, for example {strange[0]}. {mend}"
        )
    return adapted


def adapter_names(folder: Path) -> set[str]:
    """Names of the weights that an adapter's folder holds."""
    file = folder / "adapter_model.safetensors"
    if file.is_file():
        with safe_open(file, framework="pt") as stored:
            return set(stored.keys())
    # weights_only: an adapter from elsewhere must not run code.
    return set(torch.load(folder / "adapter_model.bin", map_location="cpu", weights_only=True))


def refuse_other_family(folder: Path, family: str, base: str) -> None:
    """Raise ModelError if a folder's own config is of another family than the base model."""
    own = config_place(folder)
    file = Path(own) if own != folder else folder / "config.json"
    if not file.is_file():
        return  # an adapter that others saved
    with readable(file, "Save or copy the adapter again."):
        told = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    if told != family:
        raise ModelError(
            f"The adapter in {folder} was trained on a {told} model, but {base} is a {family} model; name the right "
            "one as base_model_name_or_path in its adapter_config.json."
        )
