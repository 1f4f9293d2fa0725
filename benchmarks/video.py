"""What the video path costs: reading, memory of one sample, decodes per epoch, and a long run over mixed files.

    python benchmarks/video.py                 all parts, about six minutes
    python benchmarks/video.py --files 500     the same with a shorter long run

1. read        32 frames of a 60 s clip of 640 × 360 (H.264, 30 per second) with long (250) and short (30) groups of
               pictures: our reader, probe and worker included, over the fastest of the readers that the base install
               brings, used as usual: decord's get_batch, PyAV scanning, PyAV seeking to each frame. One thread each;
               CPU seconds of this process and the worker, since other work on the machine would decide the wall
               time; best of several rounds that alternate. The goal is for the `pyav` back-end, which chooses between
               seeking and scanning. The others decode as their library does and are listed without a goal.
2. memory      448 frames of 320 × 320 into a Media through the cache: peak of the proportional memory of this process
               and the worker, less what they had before, over the bytes of the frames.
3. decodes     decoded clips per clip in one epoch of prompts.
4. files       a loader with two workers over good and bad files: growth of the memory of the whole process tree from
               the first fifth of the run to its end.

Memory is read from /proc (Linux). The last line is one JSON object; `parts` holds each number with its own goal.
torchcodec is measured if installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmrl.data.grounding.formats import span_lines
from mmrl.data.grounding.sets import GroundingPrompts
from mmrl.data.video.frame_cache import FrameCache
from mmrl.data.video.video import ClipReader, ClipSampling
from mmrl.ground.quarantine import Guarded

SECONDS, RATE, SIZE, WANTED, ROUNDS = 60, 30, (360, 640), 32, 5
GROUPS = {"long_gop": 250, "short_gop": 30}
SAMPLE_FRAMES, SAMPLE_SIZE = 448, (320, 320)


def write_clip(
    path: Path, frames: Iterator[np.ndarray], size: tuple[int, int], gop: int, rate: int = RATE
) -> Path:
    """H.264 with key frames every `gop` frames."""
    import av

    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt, stream.gop_size = *size, "yuv420p", gop
        stream.codec_context.time_base = Fraction(1, rate)
        stream.options = {
            "preset": "veryfast",
            "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0",
        }
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, rate)
            output.mux(stream.encode(picture))
        output.mux(stream.encode())
    return path


def moving(count: int, height: int, width: int) -> Iterator[np.ndarray]:
    """A wide texture that pans under a red square: neither still nor noise."""
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 255, (height // 8 + 1, (width + count) // 8 + 1, 3), dtype=np.uint8)
    wide = wide.repeat(8, 0).repeat(8, 1)
    for number in range(count):
        image = wide[:height, number // 2 : number // 2 + width].copy()
        top, left = number * 3 % (height - 32), number * 5 % (width - 32)
        image[top : top + 32, left : left + 32] = (255, 0, 0)
        yield image


def by_decord(path: str, indices: list[int]) -> np.ndarray:
    """decord, all frames in one call."""
    import decord

    return decord.VideoReader(path, num_threads=1).get_batch(indices).asnumpy()


def by_scan(path: str, indices: list[int]) -> np.ndarray:
    """PyAV, decoding from the start to the last wanted frame."""
    import av

    wanted, found = set(indices), []
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                found.append(frame.to_ndarray(format="rgb24"))
            if number == indices[-1]:
                break
    return np.stack(found)


def by_seek(path: str, indices: list[int]) -> np.ndarray:
    """PyAV, one seek for each wanted frame."""
    import av

    found = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for number in indices:
            tick = round(number / RATE / float(stream.time_base or 1))
            container.seek(tick, stream=stream)
            found.append(
                next(f for f in container.decode(stream) if f.pts >= tick).to_ndarray(
                    format="rgb24"
                )
            )
    return np.stack(found)


def cpu_seconds() -> float:
    """User and system time of this process and all below it: the worker is the child of a keeper."""
    process = psutil.Process()
    times = [one.cpu_times() for one in [process, *process.children(recursive=True)]]
    return sum(one.user + one.system for one in times)


def timed(call: Callable[[], Any]) -> float:
    """CPU seconds of a call."""
    began = cpu_seconds()
    call()
    return cpu_seconds() - began


def measure_reading(folder: Path) -> list[dict[str, Any]]:
    """Ratios of our reader to the fastest usual one, for each installed back-end and both key-frame spacings."""
    import importlib.util

    indices = np.linspace(0, SECONDS * RATE - 1, WANTED).round().astype(int).tolist()
    usual = {"pyav scan": by_scan, "pyav seek": by_seek}
    names: list[Any] = ["pyav"]
    if importlib.util.find_spec("decord"):
        usual, names = {"decord": by_decord, **usual}, ["decord", "pyav"]
    names += ["torchcodec"] if importlib.util.find_spec("torchcodec") else []
    parts = []
    for label, gop in GROUPS.items():
        path = str(
            write_clip(folder / f"{label}.mp4", moving(SECONDS * RATE, *SIZE), SIZE, gop)
        )
        ours = {name: ClipReader(name) for name in names}
        for reader in ours.values():
            reader.read(path, [0])  # the worker is up
        times: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for name, call in usual.items():
                times.setdefault(name, []).append(timed(partial(call, path, indices)))
            for name, reader in ours.items():
                reader._infos.clear()  # the probe is part of reading
                times.setdefault(f"ours/{name}", []).append(
                    timed(partial(reader.read, path, indices))
                )
        for reader in ours.values():
            reader.close()
        best = {name: min(values) for name, values in times.items()}
        print(
            f"{label}: "
            + ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in best.items())
        )
        fastest = min(best[name] for name in usual)
        for name in names:
            ratio, goal = best[f"ours/{name}"] / fastest, 1.3 if name == "pyav" else None
            parts.append(part(f"read_{label}_{name}", ratio, goal, "x of the fastest reader"))
    return parts


def tree_memory(process: psutil.Process) -> int:
    """Bytes of anonymous and shared memory of a process and all below it; a shared page is divided among its users.

    Pages of files, such as libraries, are left out: they are shared with whatever else runs on the machine.
    """
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        fields = (
            line.split() for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))
        )
        total += 1024 * sum(int(field[1]) for field in fields)
    return total


class Peak:
    """The largest memory of this process tree while the block runs."""

    def __enter__(self) -> Peak:
        self.value, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(0.01):
            self.value = max(self.value, tree_memory(process))


def measure_memory(folder: Path) -> list[dict[str, Any]]:
    """Peak memory of one large sample for each back-end, over the bytes of its frames."""
    import torch

    path = write_clip(
        folder / "large.mp4", moving(SAMPLE_FRAMES, *SAMPLE_SIZE), SAMPLE_SIZE, 30, rate=2
    )
    small = write_clip(folder / "small.mp4", moving(20, 64, 64), (64, 64), 5)
    parts = []
    name: Any
    for name in (None, "pyav"):
        reader = ClipReader(name, cache=FrameCache(folder / f"cache_{name}"))
        reader.clip(small)  # imports and the worker are not the sample's
        before = tree_memory(psutil.Process())
        with Peak() as peak:
            media = reader.clip(path, ClipSampling(num_frames=SAMPLE_FRAMES))
        bytes_of_frames = media.frames.numel()
        assert (
            media.frames.dtype == torch.uint8
            and bytes_of_frames == SAMPLE_FRAMES * 3 * 320 * 320
        )
        parts.append(
            part(
                f"memory_{reader.backend[0]}",
                (peak.value - before) / bytes_of_frames,
                1.5,
                "x uint8",
            )
        )
        reader.close()
        del media
    return parts


def small_set(folder: Path, files: int) -> Path:
    """`files` names over a handful of contents, every fifth one bad, and a JSONL that asks about each."""
    folder.mkdir()
    good = [
        write_clip(folder / f"good{i}.mp4", moving(40, 96, 128), (96, 128), 10 + i)
        for i in range(3)
    ]
    data = good[0].read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(3000))
    (folder / "damaged.mp4").write_bytes(data[:2000] + bytes(3000) + data[5000:])
    bad = [folder / name for name in ("cut.mp4", "noise.mp4", "damaged.mp4")]
    lines = []
    for number in range(files):
        source = bad[number // 5 % 3] if number % 5 == 4 else good[number % 3]
        os.link(source, folder / f"clip{number}.mp4")
        lines.append(
            json.dumps({"video": f"clip{number}.mp4", "query": "moves", "span": [0.2, 0.8]})
        )
    (folder / "set.jsonl").write_text("\n".join(lines))
    return folder / "set.jsonl"


def measure_decodes(folder: Path) -> list[dict[str, Any]]:
    """Decodes per good clip in one epoch of prompts."""
    rows = span_lines(small_set(folder / "epoch", 40))
    rows = rows.keep(lambda row: int(Path(row.video).stem.removeprefix("clip")) % 5 != 4)
    reader = ClipReader("pyav", isolate=False)
    prompts = GroundingPrompts(rows, reader, ClipSampling(num_frames=4))
    for index in range(len(prompts)):
        _ = prompts[index].media[0].frames.float().mean()
    return [
        part("decodes_per_clip", reader.counts["clips_decoded"] / len(rows), 1.0, "decodes")
    ]


def measure_files(folder: Path, files: int) -> list[dict[str, Any]]:
    """Growth of the process tree's memory over a loader's long run, and whether every item came."""
    from torch.utils.data import DataLoader

    prompts = Guarded(
        GroundingPrompts(
            span_lines(small_set(folder / "many", files)),
            ClipReader(),
            ClipSampling(num_frames=8),
        )
    )
    loader: Any = DataLoader(prompts, batch_size=None, num_workers=2)  # type: ignore[arg-type]
    process, memory, came, began = psutil.Process(), [], 0, time.perf_counter()
    for prompt in loader:
        came += prompt.media[0].frames.shape[0] > 0
        if came % max(1, files // 50) == 0:
            memory.append(tree_memory(process))
    first, last = np.median(memory[5:15]), np.median(memory[-10:])
    rate = came / (time.perf_counter() - began)
    print(
        f"files: {came} of {files} at {rate:.0f} per second, memory {first / 2**20:.0f} -> {last / 2**20:.0f} MiB"
    )
    return [
        part("files_survived", files - came, 0, "items lost"),
        part("memory_growth", (last - first) / first, 0.05, "share"),
    ]


def part(name: str, value: float, goal: float | None, unit: str) -> dict[str, Any]:
    """One number that must not exceed its goal, if it has one."""
    ok = goal is None or bool(value <= goal)
    result = {
        "name": name,
        "value": round(float(value), 4),
        "goal": goal,
        "unit": unit,
        "ok": ok,
    }
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    """Measure and print; the last line is JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--files", type=int, default=10_000, help="files of the long run; 0 leaves it out"
    )
    files = parser.parse_args().files
    print(f"python {platform.python_version()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = [*measure_reading(folder), *measure_memory(folder), *measure_decodes(folder)]
        parts += measure_files(folder, files) if files else []
    worst = max(
        (one for one in parts if one["name"].endswith("_gop_pyav")),
        key=lambda one: one["value"],
    )
    outcome = {**worst, "name": "video"}
    print(json.dumps({**outcome, "ok": all(one["ok"] for one in parts), "parts": parts}))


if __name__ == "__main__":
    main()
