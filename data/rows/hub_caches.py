"""Where `datasets` keeps the media that it downloads with a data set of the hub."""

from __future__ import annotations

from pathlib import Path


def hub_caches() -> tuple[Path, ...]:
    """The folders of the two caches."""
    from datasets.config import HF_DATASETS_CACHE
    from huggingface_hub.constants import HF_HUB_CACHE

    return (Path(HF_DATASETS_CACHE), Path(HF_HUB_CACHE))
