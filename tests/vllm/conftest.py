"""vLLM looks for a network that tests do not have, and its CPU build reads heads of 32, 64 or 128 numbers only."""

import os
from pathlib import Path

import pytest

from mmrl.model import tiny

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
WIDE = tiny.TinySize(hidden=128)
"""Four heads of 32."""


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL that vLLM reads."""
    return tiny.build(tmp_path_factory.mktemp("wide") / "qwen2_5_vl", "qwen2_5_vl", WIDE)


@pytest.fixture(scope="session")
def tiny3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-VL that vLLM reads."""
    return tiny.build(tmp_path_factory.mktemp("wide") / "qwen3_vl", "qwen3_vl", WIDE)
