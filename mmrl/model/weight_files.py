"""Parameters of a model's folder, one at a time: several files, adapters folded in, nothing loaded as a whole.

Names are told without what wraps the model (`model.`, `language_model.`, `base_model.model.`), which differs between
versions of a checkpoint and says nothing about the parameter.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

WRAPPERS = re.compile(r"^(?:base_model\.model\.)?(?:model\.)?(?:language_model\.)?(?:model\.)?")
LEFT, RIGHT = ".lora_A.weight", ".lora_B.weight"


class WeightFiles:
    """The parameters of a folder that transformers or peft wrote. Raises ValueError for what cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        adapter = folder / "adapter_config.json"
        if not adapter.is_file():
            self._files = _named(_places(folder, "model"))
            self._base, self._pairs, self._scale = None, {}, 1.0
            return
        settings = json.loads(adapter.read_text(encoding="utf-8"))
        self._base = WeightFiles(model_folder(settings["base_model_name_or_path"]))
        root = settings["lora_alpha"] / (
            math.sqrt(settings["r"]) if settings.get("use_rslora") else settings["r"]
        )
        self._scale = float(root)
        found = _places(folder, "adapter_model")
        stranger = next((n for n in found if not n.endswith((LEFT, RIGHT))), "")
        if stranger:
            raise ValueError(
                f"{folder} is an adapter that holds {stranger} besides pairs of LoRA; merge it first (mmrl export RUN "
                "--merge), and compare the merged model."
            )
        self._files = {}
        self._pairs = _named(
            {
                name.removesuffix(LEFT) + ".weight": file
                for name, file in found.items()
                if name.endswith(LEFT)
            }
        )

    def names(self) -> list[str]:
        """All parameters, in a fixed order."""
        return sorted(self._files) if self._base is None else self._base.names()

    def read(self, name: str) -> Tensor:
        """One of them, on the CPU, in its own format; of an adapter the weight with what the pair adds."""
        if self._base is None:
            raw, file = self._files[name]
            return _tensor(file, raw)
        weight = self._base.read(name)
        if name not in self._pairs:
            return weight
        raw, file = self._pairs[name]
        stem = raw.removesuffix(".weight")
        left, right = (_tensor(file, stem + end).float() for end in (LEFT, RIGHT))
        return weight.float() + self._scale * (right @ left)

    def __contains__(self, name: str) -> bool:
        return name in self._files if self._base is None else name in self._base


def model_folder(source: str | Path) -> Path:
    """The folder of a local path or a hub id, whose safetensors are fetched if they are not in the cache."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = snapshot_download(str(source), allow_patterns=["*.safetensors*", "*.json"])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ValueError(
            f"The weights of {source} are not in the cache and could not be fetched ({type(error).__name__}); give "
            "its folder."
        ) from error
    return Path(found)


def _places(folder: Path, stem: str) -> dict[str, Path]:
    """Raw name of every tensor -> its file."""
    index = folder / f"{stem}.safetensors.index.json"
    single = folder / f"{stem}.safetensors"
    try:
        if index.is_file():
            table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {name: folder / file for name, file in table.items()}
        with safe_open(single, "pt") as file:
            return dict.fromkeys(file.keys(), single)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ValueError(
            f"{folder} holds no weights that can be read ({single.name} or {index.name}: {error}); give the folder of "
            "a model, for example RUN/model."
        ) from error


def _named(places: dict[str, Path]) -> dict[str, tuple[str, Path]]:
    """Short name -> (raw name, file)."""
    short = {WRAPPERS.sub("", name): (name, file) for name, file in places.items()}
    if len(short) < len(places):  # the wrappers tell some apart
        return {name: (name, file) for name, file in places.items()}
    return short


def _tensor(file: Path, name: str) -> Tensor:
    try:
        with safe_open(file, "pt") as weights:
            return weights.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read ({error}).") from error


def shared_names(first: WeightFiles, second: WeightFiles) -> Iterator[str]:
    """Names that both have, in order. Raises ValueError if these are less than half of either."""
    ours, theirs = set(first.names()), set(second.names())
    both = ours & theirs
    if 2 * len(both) < max(len(ours), len(theirs)):
        raise ValueError(
            f"{first.folder} and {second.folder} share {len(both)} of {len(ours)} and {len(theirs)} parameters; "
            "compare models of one kind."
        )
    return iter(sorted(both))
