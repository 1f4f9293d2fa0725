"""Damaged and hostile data: does one file or one row ever end a run?

    python benchmarks/fuzz_rows.py                               # 45,000 pictures, 5,000 clips, 20,000 rows
    python benchmarks/fuzz_rows.py --pictures 900 --clips 0 --rows 400 --seed 7

Files of every format are made here and mutated: bits, bytes, numbers at their limits, pieces cut, doubled, moved or
taken from another file. Rows of every layout are mutated value by value. Each file is read as a cell, as a file and as
raw media of the pretext tasks; rows are loaded, read and encoded as training does. Counted are exceptions that are not
the project's own, processes that were started (the decoder's own workers aside), and the peak of memory over what the
process had before, against twice the largest picture that is allowed. An input that fails can be made again from the
seed and its number, which are printed.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import random
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fuzz_inputs import clip_seeds, good_rows, inputs, mutated_row, picture_seeds, write_parquet

from mmrl.ground.faults import BadMedia, BadRow
from mmrl.ground.images import MAX_PIXELS

LARGEST = 4 * MAX_PIXELS
"""Bytes of the largest picture in Pillow."""
SLOW = 20.0
"""Seconds that no input may take."""
ROWS_PER_FILE = 50
STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.fork",
    "os.forkpty",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
)
"""Audit events of a process that is started."""


@dataclass
class Tally:
    """What happened."""

    seed: int
    tried: Counter[str] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    """By reason."""
    alien: list[str] = field(default_factory=list)
    """Exceptions that are not ours, with the number of the input."""
    children: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def one(self, kind: str, number: int, act: Callable[[], object]) -> None:
        """Do it; whatever is raised is counted."""
        self.tried[kind] += 1
        began = time.monotonic()
        try:
            act()
            self.read[kind] += 1
        except (BadRow, BadMedia) as error:
            reason = getattr(error, "reason", "bad row")
            self.refused[reason] += 1
            if reason == "unforeseen":
                self._note(kind, number, error.__cause__ or error)
        except Exception as error:
            self._note(kind, number, error)
        self.slowest = max(self.slowest, time.monotonic() - began)

    def _note(self, kind: str, number: int, error: BaseException) -> None:
        self.alien.append(f"{kind} {number}: {type(error).__name__}: {str(error)[:200]}")
        print(self.alien[-1], flush=True)


def fuzz_pictures(count: int, tally: Tally, folder: Path) -> None:
    """Mutated pictures, each read in one of three ways."""
    from mmrl.data.pretext.stream.media import decode_depth, decode_picture
    from mmrl.data.rows.images import read_image

    path = folder / "picture.png"
    for number, name, content in inputs(picture_seeds(), count, tally.seed):
        way = number % 4
        if way == 0:
            path.write_bytes(content)
            act: Callable[[], object] = lambda: read_image("picture.png", folder)  # noqa: E731
        elif way == 1:
            act = lambda content=content: read_image({"bytes": content, "path": None})  # noqa: E731
        elif way == 2:
            act = lambda content=content: decode_picture(content, "picture", 16)  # noqa: E731
        else:
            act = lambda content=content: decode_depth(content, "depth")  # noqa: E731
        tally.one(f"picture/{name}", number, act)
        if way == 3:
            tally.one(f"picture/{name}", number, lambda content=content: read_image(content))


def fuzz_clips(count: int, tally: Tally, folder: Path) -> None:
    """Mutated clips, decoded as training decodes them."""
    from mmrl.data.video.video import ClipReader, ClipSampling

    reader, sampling = ClipReader(timeout=SLOW / 2), ClipSampling(num_frames=4)
    seeds = clip_seeds(folder) if count else {}
    for number, name, content in inputs(seeds, count, tally.seed):
        # A new name each time: readers remember what they know of a file.
        path = folder / f"{number}.{name}"
        path.write_bytes(content)
        tally.one(f"clip/{name}", number, lambda path=path: reader.clip(path, sampling))
        path.unlink()
    reader.close()


def fuzz_rows(count: int, tally: Tally, folder: Path) -> None:
    """Mutated rows in JSON lines and in parquet, loaded, read and encoded."""
    import os

    from PIL import Image

    from mmrl.data.rows.sources import load_prompts
    from mmrl.model.processing import Processing
    from mmrl.model.tiny import cached

    if not count:
        return
    Image.new("RGB", (32, 32), "red").save(folder / "good.png")
    os.mkfifo(folder / "fifo.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "folder").mkdir()
    processing = Processing.load(cached())
    for start in range(0, count, ROWS_PER_FILE):
        rng = random.Random(f"{tally.seed}:rows:{start}")
        layout = rng.choice(good_rows("good.png"))
        path = folder / "rows.jsonl"
        hostile = min(ROWS_PER_FILE, count - start)
        if rng.random() < 0.8:
            lines = [mutated_row(layout, "good.png", rng) for _ in range(hostile)]
            # A good one first, so that the table is known for what it is.
            path.write_bytes(b"\n".join([json.dumps(layout).encode(), *lines]))
        else:
            path = folder / "rows.parquet"
            write_parquet(path, folder / "good.png", hostile, rng)
        _load(path, hostile, start, tally, load_prompts, processing.encode)


def _load(
    path: Path,
    hostile: int,
    start: int,
    tally: Tally,
    load: Callable[..., Any],
    encode: Callable[..., Any],
) -> None:
    """All rows of one file, as training would read them."""
    from mmrl.data.rows.row_prompts import UNFORESEEN

    try:
        prompts = load(str(path))
    except ValueError as error:
        # A table may be refused as a whole, in our own words.
        ours = type(error) is ValueError or isinstance(error, BadRow)
        tally.tried["row"] += hostile
        tally.refused["whole table"] += hostile
        if not ours:
            tally.alien.append(f"table {start}: {type(error).__name__}: {error}")
        return
    except Exception as error:
        tally.tried["row"] += hostile
        tally.alien.append(f"table {start}: {type(error).__name__}: {error}")
        return
    found = Counter({reason: n for reason, n in prompts.skipped.items()})
    tally.refused.update(found)
    tally.tried["row"] += hostile + 1 - len(prompts)
    for fault in prompts.faults:
        if fault.reason == UNFORESEEN:
            tally._note("row", start, fault.__cause__ or fault)
    for index in range(len(prompts)):
        tally.one("row", start + index, lambda index=index: encode(prompts[index]))


def peak_memory() -> int:
    """Bytes that this process has had at most."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def run(pictures: int, clips: int, rows: int, seed: int) -> dict[str, Any]:
    """Everything; the outcome as one record."""
    from PIL import Image

    import mmrl.data.rows.sources
    import mmrl.model.processing  # noqa: F401  both loaded before memory is looked at

    faulthandler.enable()
    warnings.simplefilter("ignore")
    Image.init()
    tally = Tally(seed)
    watching = [True]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching[0] and event in STARTS:
            tally.children.append(f"{event} {arguments[:1]!r}"[:200])

    sys.addaudithook(watch)  # for good: Python knows no way to take one back
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = peak_memory()
        fuzz_pictures(pictures, tally, folder)
        fuzz_rows(rows, tally, folder)
        grown = peak_memory() - before
        watching[0] = False  # clips are decoded in workers of their own
        fuzz_clips(clips, tally, folder)
        # Of processes that have ended, so also of decoders that were killed; imports and all.
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        decoder = 1024 * ended.ru_maxrss if clips else 0
    print(f"read: {sum(tally.read.values())} of {sum(tally.tried.values())}")
    groups = Counter()
    for kind, count in tally.tried.items():
        groups[kind.partition("/")[0]] += count
    print(f"tried: {dict(groups)}, {len(tally.tried)} kinds")
    print(f"refused: {dict(tally.refused.most_common())}")
    print(
        f"slowest: {tally.slowest:.2f} s; memory: {grown / 2**20:.0f} MiB, decoder "
        f"{decoder / 2**20:.0f} MiB, of {2 * LARGEST / 2**20:.0f}"
    )
    print(f"children: {tally.children[:5]}")
    faults = len(tally.alien) + len(tally.children)
    grown = max(grown, decoder)
    kept = grown < 2 * LARGEST and tally.slowest < SLOW
    return {
        "name": "fuzz_rows",
        "value": faults,
        "goal": 0,
        "unit": "alien exceptions and processes",
        "ok": faults == 0 and kept,
        "tried": sum(tally.tried.values()),
        "peak_share": round(grown / (2 * LARGEST), 3),
        "slowest_s": round(tally.slowest, 2),
    }


def main() -> None:
    """Run and print; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, count in (("pictures", 45_000), ("clips", 5_000), ("rows", 20_000), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=count)
    print(json.dumps(run(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
