"""What all tests share: one thread, a cache of their own, and one tiny model of each family per process.

Tests run in parallel processes (pytest-xdist). What is dear to make and the same for all is made once, in the cache of
the checkout, by whichever process comes first; everything else goes to pytest's temporary folders, which are each
process's own.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory

import pytest
import torch

from mmrl.model import tiny

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
MEMORY_OF_A_PROCESS = 2 * 2**30
"""Bytes."""


def pytest_configure(config: pytest.Config) -> None:
    """Keep the user's cache out of the tests, and the tests out of it. `pytest --cache-clear` empties theirs."""
    # The processes of xdist and the commands that tests start inherit it. Its keys name all that an entry depends on.
    os.environ["XDG_CACHE_HOME"] = str(config.rootpath / ".pytest_cache" / "d")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Under nohup or in the background of a script they are ignored, and what is ignored is so in every child.
    for number, handler in (
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    # As on a machine of one core: what starts a worker per core starts one, which is an interpreter with its imports.
    os.cpu_count = _one
    os.fsync = _written  # no test cuts the power, and a disk takes its time


def _one() -> int:
    """Stands for `os.cpu_count`."""
    return 1


def _written(file: object) -> None:
    """Stands for `os.fsync`."""


def pytest_collection_finish() -> None:
    """Whoever collects garbage need not look at modules and tests again, which are a million objects."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    """A third of what reading a tiny model takes: each of its configurations is written out for an unseen message."""
    library = sys.modules.get("transformers.configuration_utils")
    if library and library.PreTrainedConfig.__repr__ is not object.__repr__:
        library.PreTrainedConfig.__repr__ = object.__repr__


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` need a CUDA device."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process per core as far as memory goes; none besides this one where single files or tests are named."""
    named = [argument.split("::")[0] for argument in config.option.file_or_dir]
    if any(argument.endswith(".py") for argument in named) and not any(
        map(os.path.isdir, named)
    ):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(cores or 1, memory // MEMORY_OF_A_PROCESS))


@pytest.fixture
def only_new_objects() -> Iterator[None]:
    """`gc.get_objects` and `gc.collect` see what the test makes and nothing older, which takes seconds to look at."""
    gc.collect()
    gc.freeze()
    yield  # frozen it may stay: it lives as long as the process


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL. Do not write into it."""
    return tiny.build(tmp_path_factory.mktemp("tiny") / "qwen2_5_vl", "qwen2_5_vl")


@pytest.fixture(scope="session")
def tiny3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-VL. Do not write into it."""
    return tiny.build(tmp_path_factory.mktemp("tiny") / "qwen3_vl", "qwen3_vl")


@pytest.fixture(scope="session")
def tiny35_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3.5, which has layers of two kinds. Do not write into it."""
    return tiny.build(tmp_path_factory.mktemp("tiny") / "qwen3_5", "qwen3_5")


@pytest.fixture(scope="session")
def sliding_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Qwen2.5-VL with a window of 8 tokens from its second layer on. Do not write into it."""
    folder = Path(copytree(tiny_folder, tmp_path_factory.mktemp("tiny") / "sliding"))
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    text |= {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    text.pop("layer_types", None)  # the library works it out again
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class Commands:
    """commands(["-m", "recipes.papo", ...], cwd=folder) is `python -m recipes.papo ...` without the imports' time."""

    def __init__(self, model: Path) -> None:
        self.environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": str(ROOT),
        }
        server = [sys.executable, str(ROOT / "tests" / "fork_server.py"), str(model)]
        self.server = subprocess.Popen(
            server,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.environment,
            text=True,
        )
        assert self._line() == "ready\n"

    def __call__(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        timeout: float = 600,
        session: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end. `session`: the command leads a session and process group of its own."""
        with TemporaryDirectory() as scratch:
            out, err = Path(scratch, "out"), Path(scratch, "err")
            asked = {"argv": list(argv), "cwd": str(cwd), "env": dict(env or {})}
            asked |= {"timeout": timeout, "session": session}
            asked |= {"stdout": str(out), "stderr": str(err)}
            assert self.server.stdin
            self.server.stdin.write(json.dumps(asked) + "\n")
            self.server.stdin.flush()
            code = json.loads(self._line())
            if code is None:
                raise subprocess.TimeoutExpired(
                    list(argv), timeout, out.read_text(), err.read_text()
                )
            return subprocess.CompletedProcess(
                list(argv), code, out.read_text(), err.read_text()
            )

    def _line(self) -> str:
        assert self.server.stdout
        return self.server.stdout.readline()

    def close(self) -> None:
        assert self.server.stdin
        self.server.stdin.close()
        self.server.wait(timeout=60)


@pytest.fixture(scope="session")
def commands(tiny_folder: Path) -> Iterator[Commands]:
    """Runs Python commands in processes of their own, which need not import torch again."""
    made = Commands(tiny_folder)
    yield made
    made.close()
