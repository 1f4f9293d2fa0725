"""TRL in an environment of its own: made once in the user's cache, with the torch and transformers that we run on."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tiny_runs import Cell, Worker, say

PACKAGES = ("torch", "torchvision", "transformers", "trl", "peft", "pillow")


def python() -> Path:
    """The interpreter of TRL's environment; installs the newest TRL from the registry if it is not there yet."""
    from mmrl.model.tiny import cache_folder

    same = [
        f"{name}=={version(name).split('+')[0]}"
        for name in ("torch", "torchvision", "transformers")
    ]
    home = cache_folder() / "bench-trl"
    interpreter, stamp = home / "bin" / "python", home / "complete"
    wanted = " ".join([*same, "trl", "peft", "pillow"])
    if not (stamp.is_file() and stamp.read_text() == wanted):
        say(f"installing {wanted} into a new environment (once)")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        subprocess.run(
            [str(interpreter), "-m", "pip", "install", "-q", *wanted.split()],
            check=True,
            stdout=sys.stderr,
        )
        stamp.write_text(wanted)
    return interpreter


def trl_versions() -> str:
    """What is installed there."""
    code = f"from importlib.metadata import version; print(', '.join(n + ' ' + version(n) for n in {PACKAGES!r}))"
    return subprocess.run(
        [str(python()), "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()


def trl_worker(cell: Cell, dump: Path | None = None) -> Worker:
    """A process that runs TRL's trainer; `dump` saves its second step."""
    script = Path(__file__).resolve().parent / "trl_worker.py"
    return Worker(
        [str(python()), str(script), cell.text(), *(["--dump", str(dump)] if dump else [])]
    )
