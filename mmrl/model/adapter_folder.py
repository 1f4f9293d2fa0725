"""The folder of an adapter: what lies in it so that transformers, peft and mmrl each find the base and the adapter.

transformers takes a folder with both `config.json` and `adapter_config.json` for a whole model that brings an adapter
along, and wants its weights there. So there are two kinds:

1. The base is on the hub or in a folder of the user's: it is named in `adapter_config.json`, and its config lies in
   `base_config.json`. Whoever moves the folder to where that name means nothing puts another in its place.
2. The base is one that mmrl made and keeps in its cache, which nobody else has: the folder is a whole model, base
   weights and adapter side by side, and works wherever it is copied.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmrl.ground.scratch import temporary_folder
from mmrl.model.tiny import cache_folder

ADAPTER = "adapter_config.json"
BASE_CONFIG = "base_config.json"
WEIGHTS = "model.safetensors"


def is_adapter(source: str | Path) -> bool:
    """Does a folder hold an adapter?"""
    return (Path(source) / ADAPTER).is_file()


def carries_base(source: str | Path) -> bool:
    """Does an adapter's folder hold its base model too?"""
    return is_adapter(source) and (Path(source) / WEIGHTS).is_file()


def config_place(source: str | Path) -> str | Path:
    """What to read the model's config from: the folder or hub name itself, or a file in an adapter's folder."""
    file = Path(source) / BASE_CONFIG
    return file if file.is_file() else source


def base_of(folder: Path) -> str:
    """The base model that an adapter's folder names: a hub name or a path. Raises KeyError, OSError, ValueError."""
    settings = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    return str(settings["base_model_name_or_path"])


@contextmanager
def base_alone(folder: Path) -> Iterator[Path]:
    """The base model of such a folder as a folder of its own, without the adapter, for the time of a `with`."""
    with temporary_folder("base") as place:
        for name in ("config.json", "generation_config.json", WEIGHTS):
            if (folder / name).is_file():
                (place / name).symlink_to((folder / name).resolve())
        yield place


def complete(model: Any, draft: Path) -> None:
    """Make a folder in which an adapter was saved one of the two kinds; `model` is the one with the adapter.

    The draft holds the adapter's own files and the `config.json` of the base.
    """
    (config,) = model.peft_config.values()
    base = Path(str(config.base_model_name_or_path))
    if base.is_relative_to(cache_folder()) or getattr(model, "mmrl_carried", False):
        # In a copy: the policy goes on with its adapter.
        copy.deepcopy(model).unload().save_pretrained(str(draft))
        return
    (draft / "config.json").rename(draft / BASE_CONFIG)
    if base.is_dir():
        # Whole: a path that starts here leads nowhere from another folder.
        file = draft / ADAPTER
        settings = json.loads(file.read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = str(base.resolve())
        file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
