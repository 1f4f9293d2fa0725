"""Which reader shows which frame: the conformance table of clips over every reader that is installed.

    python benchmarks/video_readers.py            prints the table and writes it into docs/video.md

decord and torchcodec are asked on every file here, also where `mmrl.data.video.readers.fitting` keeps them away: the
table is the reason for what it says. Frames are asked for in several ways (all, single ones, spread ones, runs); a cell
says how many of them were other frames than those of their time. The tests run the same files.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from documents import write_section

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmrl.data.video.probe import ClipInfo, probe
from mmrl.data.video.readers import MODULES, _fill, fitting, read_into, version_of
from mmrl.ground.faults import BadMedia
from tests.data.video.odd_clips import TABLE, OddClip, number, requests, write

PAGE = Path(__file__).resolve().parents[1] / "docs" / "video.md"


def asked(clip: OddClip, info: ClipInfo, backend: Any) -> str:
    """What a reader makes of a clip, in a few words."""
    wrong = refused = total = 0
    for indices in requests(info.n):
        total += len(indices)
        out = np.zeros((len(indices), 3, info.height, info.width), dtype=np.uint8)
        try:
            read = read_into if backend == "pyav" else _fill
            read(out, info, indices, backend, 1)
        except BadMedia:
            refused += len(indices)
            continue
        shown = [number(frame, clip) for frame in out.transpose(0, 2, 3, 1)]
        wrong += sum(clip.numbers[i] != found for i, found in zip(indices, shown, strict=True))
    if wrong:
        return f"**{wrong} of {total} wrong**"
    if refused:
        return "refused" if refused == total else f"{refused} of {total} refused"
    return "right"


def table(folder: Path, names: list[Any]) -> str:
    """Markdown: a row for each clip, a column for each reader."""
    lines = [
        "| clip | codec | " + " | ".join(f"{name} {version_of(name)}" for name in names) + " |",
        "| --- | --- |" + " --- |" * len(names),
    ]
    for clip in TABLE:
        info = probe(write(clip, folder))
        cells = [asked(clip, info, name) for name in names]
        kept = [fitting(info, name)[0] == name for name in names]
        marked = [cell if fits else f"({cell})" for cell, fits in zip(cells, kept, strict=True)]
        lines.append(f"| {clip.name} | {info.codec} | " + " | ".join(marked) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    names = [name for name in MODULES if importlib.util.find_spec(MODULES[name].split(".")[0])]
    names.sort(key="pyav".__ne__)
    with tempfile.TemporaryDirectory() as folder:
        write_section(PAGE, "readers", table(Path(folder), names))


if __name__ == "__main__":
    main()
