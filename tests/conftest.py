"""Fixtures shared by all tests: one thread, and one tiny model of each family per session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmrl.model import tiny

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL. Do not write into it."""
    return tiny.build(tmp_path_factory.mktemp("tiny") / "qwen2_5_vl", "qwen2_5_vl")


@pytest.fixture(scope="session")
def tiny3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-VL. Do not write into it."""
    return tiny.build(tmp_path_factory.mktemp("tiny") / "qwen3_vl", "qwen3_vl")
