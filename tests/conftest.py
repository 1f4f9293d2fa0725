"""What all tests share: one thread, a cache of their own, and one tiny model of each family per process.

Tests run in parallel processes (pytest-xdist). What is dear to make and the same for all is made once, in the cache of
the checkout, by whichever process comes first; everything else goes to pytest's temporary folders, which are each
process's own.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mmrl.model import tiny

torch.set_num_threads(1)
MEMORY_OF_A_PROCESS = 2 * 2**30
"""Bytes."""


def pytest_configure(config: pytest.Config) -> None:
    """Keep the user's cache out of the tests, and the tests out of it. `pytest --cache-clear` empties theirs."""
    # The processes of xdist and the commands that tests start inherit it. Its keys name all that an entry depends on.
    os.environ["XDG_CACHE_HOME"] = str(config.rootpath / ".pytest_cache" / "d")
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process per core as far as memory goes; none besides this one where single files or tests are named."""
    named = [argument.split("::")[0] for argument in config.invocation_params.args]
    if any(argument.endswith(".py") for argument in named) and not any(
        map(os.path.isdir, named)
    ):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(cores or 1, memory // MEMORY_OF_A_PROCESS))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL. Do not write into it."""
    return tiny.build(tmp_path_factory.mktemp("tiny") / "qwen2_5_vl", "qwen2_5_vl")


@pytest.fixture(scope="session")
def tiny3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-VL. Do not write into it."""
    return tiny.build(tmp_path_factory.mktemp("tiny") / "qwen3_vl", "qwen3_vl")
