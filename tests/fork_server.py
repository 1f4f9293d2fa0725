"""Runs Python commands in forks of one process that has imported torch, transformers and the core.

A new interpreter spends five seconds on these imports before a command does anything, and tests call dozens of them.
One JSON object a line comes in: what follows `python` on a command line, the folder, the environment, the files for
both outputs, and whether the command leads a session of its own. One line goes out: its exit status, as `subprocess`
has it.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    """Import, then serve until the input ends."""
    folder = sys.argv[1]
    from tqdm import tqdm

    from mmrl.model.policy import Policy
    from mmrl.recipes.shared import embedded, launch  # noqa: F401

    tqdm.monitor_interval = 0  # its thread would not live on in a fork
    # transformers imports much of itself when a model is first used.
    Policy.load(folder, device="cpu", dtype="float32")
    # The library's pool that read the weights may still be ending.
    patience = time.monotonic() + 30
    while others() and time.monotonic() < patience:
        time.sleep(0.01)
    assert not others(), "a fork has only the thread that forked"
    get_ready_to_fork()
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if not pid:
            os._exit(child(asked))
        print(json.dumps(status(pid, asked["timeout"])), flush=True)


def get_ready_to_fork() -> None:
    """What each fork would otherwise do again, or do to no end."""
    from mmrl.report import page

    for template in page.FOLDER.glob("*.html"):
        page._environment().get_template(template.name)  # compiled once
    # As on a machine of one core: each worker for rewards is an interpreter with its imports.
    os.cpu_count = lambda: 1
    # Whoever collects garbage need not look at (and so copy) a million objects of this process.
    gc.collect()
    gc.freeze()


def others() -> list[threading.Thread]:
    """Threads that a fork would miss. Not the one that looks at time limits: a fork starts its own."""
    return [t for t in threading.enumerate()[1:] if t.name != "time limit"]


def status(pid: int, timeout: float) -> int | None:
    """Exit status of a child; None if it had to be killed for its time."""
    end = time.monotonic() + timeout
    while True:
        done, code = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(code)
        if time.monotonic() > end:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.01)


def child(asked: dict[str, Any]) -> int:
    """Be the command; returns its exit status."""
    if asked["session"]:
        os.setsid()
    os.chdir(asked["cwd"])
    os.environ.update(asked["env"])
    for number, path in enumerate((os.devnull, asked["stdout"], asked["stderr"])):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        os.dup2(file, number)
        os.close(file)
    code = 0
    try:
        run(asked["argv"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    # What the interpreter does at its end; executors end their threads in the first call, so a plain join would hang.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def run(argv: list[str]) -> None:
    """`-m module …` or `script …`, with the module path that Python itself would give them."""
    if argv[0] == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv = argv[1:]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(argv[0]).parent))
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
