"""Throughput, measured: samples per CPU second on one core, the best of three repetitions.

CPU time of this process, so other jobs on the machine disturb little. Image tasks are fed pictures whose longer side is
512 pixels, video tasks clips of 256×192 pixels. Goals are those of the design; a figure below half of its goal fails.

A million files are imitated by a folder whose listing is a million names, so that the time is that of our index and not
of the file system that makes them.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.random import Generator
from PIL import Image

from mmrl.data.pretext.catalogue import TASKS
from mmrl.data.pretext.contract import INVALID, Medium, Sample, Task
from mmrl.data.pretext.craft.draws import repeatedly
from mmrl.data.pretext.craft.procedural import clip, scene
from mmrl.data.pretext.presets import Ingredient, TaskMix
from mmrl.data.pretext.stream.media import clip_medium
from mmrl.data.pretext.stream.samples import make
from mmrl.data.pretext.stream.sources import DrawnSource, FolderSource
from mmrl.data.pretext.stream.stream import SampleStream
from mmrl.data.video.video import ClipReader
from mmrl.ground.scratch import temporary_folder
from mmrl.ground.seeds import philox

REPETITIONS = 3
PIECES = (
    *"0123456789ABCDabc,;:.-|()[]{}<>",
    *(" ", "  ", "\n", "\t", "–", "→", "->"),
    *("<answer>", "</answer>", "<think>", "</think>", "\\boxed{"),
    *("1.5", "2.5-3.5", "to", "s", " and "),
    *("pan left", "mirror", "invert", "red"),
    *("٣", "½", "∞", "nan", "1e9", "\x00", "é", "999999999999", "-1", "true"),
)
"""What random replies are made of."""
CORE = (
    *("jigsaw", "rotation", "patchfit", "odd-tile", "differences", "relative-position"),
    *("crop-location", "edit-program", "correspondence", "quality-order", "overlay-count"),
    "mosaic",
)
"""The image tasks of the figure "image tasks"; camera-motion is a clip and counts as video."""


ROOT = Path(__file__).parents[4]
"""The folder that holds the package `mmrl`; the worker imports the same one as this process."""
WORKER = """
import pathlib, resource, sys
from mmrl.data.pretext.presets import preset
from mmrl.data.pretext.stream.sources import DrawnSource
from mmrl.data.pretext.stream.stream import SampleStream

def peak():  # KiB; ru_maxrss would also count the parent's memory at the time of the fork
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))

count, seen = int(sys.argv[1]), []
for number, _ in zip(range(count), SampleStream(DrawnSource(), preset("mmrl-mix-v1")).iterate()):
    if number in (count // 2, count - 1):
        seen.append(peak())
print(*seen)
"""
"""What the memory of a worker is measured on."""


@dataclass(frozen=True)
class Figure:
    """One measured number."""

    name: str
    value: float
    goal: float
    unit: str
    more_is_better: bool = True

    @property
    def ok(self) -> bool:
        return self.value >= self.goal if self.more_is_better else self.value <= self.goal

    @property
    def half(self) -> bool:
        """At least half as good as the goal."""
        if self.more_is_better:
            return self.value >= self.goal / 2
        return self.value <= 2 * self.goal

    def line(self) -> str:
        sign = "≥" if self.more_is_better else "≤"
        mark = "" if self.ok else "  MISSED"
        return f"{self.name:34s} {self.value:12.1f} {self.unit:10s} goal {sign} {self.goal:g}{mark}"


def throughput(seconds: float = 1.0) -> list[Figure]:
    """All figures; about 40 × `seconds`."""
    stills = [scene(0, index) for index in range(8)]
    videos = [task.name for task in TASKS if task.kinds[0] == "video"]
    images = _tasks(CORE, stills, seconds)
    scenes = _rate(lambda index: scene(0, index, 192, 256), seconds)
    in_memory = _tasks(videos, _warm_clips(), seconds)
    decoded = _decoded(videos, seconds)
    verified = verify_rate(seconds)
    first = first_sample(1_000_000)
    peak, growth = memory()
    less_is_better = {"more_is_better": False}
    return [
        Figure("image tasks at 512 px", images, 40, "samples/s"),
        Figure("procedural scenes, 256 px", scenes, 150, "scenes/s"),
        Figure("video tasks, frames in memory", in_memory, 40, "samples/s"),
        Figure("video tasks with decoding", decoded, 4, "samples/s"),
        Figure("verify", verified, 20_000, "answers/s"),
        Figure("first sample, 10⁶ files", first, 2.0, "seconds", **less_is_better),
        Figure("memory of a worker", peak, 300, "MiB", **less_is_better),
        Figure("its growth in the second half", growth, 30, "MiB", **less_is_better),
    ]


def _decoded(videos: Sequence[str], seconds: float) -> float:
    """Samples of clip tasks per CPU second, every clip read from its file."""
    with temporary_folder("bench") as folder:
        paths = [_clip_file(folder / f"{index}.mp4", index) for index in range(3)]

        def fresh(index: int) -> Medium:
            path = paths[index % 3]
            return clip_medium(path, path, str(index))

        # Decoded in this process: the CPU time of a worker would not be counted.
        here = ClipReader(isolate=False)
        with patch("mmrl.data.pretext.stream.media._reader", lambda: here):
            return _tasks(videos, [], seconds, fresh)


def verify_rate(seconds: float) -> float:
    """Answers parsed and paid per CPU second, over all tasks (harmonic mean: each task answered equally often)."""
    costs = []
    for task in TASKS:
        sample = _one(task)
        if sample is None:
            continue
        rng = philox("bench", task.name)
        bodies = [task.guess(sample.truth, rng) for _ in range(16)]
        bodies.append(task.format(sample.truth))
        replies = [sample.surface.wrap(body) for body in bodies]
        replies += ["no answer", "<answer>x</answer>"]

        # Bound here by defaults: a name that is looked up inside is that of whatever round runs then.
        def score(
            index: int, task: Task = task, sample: Sample = sample, replies: list[str] = replies
        ) -> object:
            return task.score(replies[index % len(replies)], sample.truth, sample.surface)

        costs.append(1.0 / _rate(score, seconds / 20))
    return 1.0 / float(np.mean(costs))


def first_sample(files: int) -> float:
    """CPU seconds from opening a folder of `files` images to the first sample of a stream."""
    names = [f"{number:07d}.jpg" for number in range(files)]
    mix = TaskMix("bench", (Ingredient("rotation"),))
    best = float("inf")
    with temporary_folder("bench") as folder:
        real = folder / "real.jpg"
        Image.fromarray(scene(0, 0).picture()).save(real)
        content = real.read_bytes()
        # A million real files would take minutes to make, and measure the file system.
        listing = patch("os.listdir", lambda _: list(names))
        reading = patch.object(Path, "read_bytes", lambda _: content)
        with listing, reading:
            for _ in range(REPETITIONS):
                start = time.process_time()
                next(SampleStream(FolderSource(folder), mix).iterate())
                best = min(best, time.process_time() - start)
    return best


def memory(samples: int = 400) -> tuple[float, float]:
    """Peak memory of a fresh worker in MiB after `samples` samples of the mix, and its growth in the second half."""
    found = subprocess.run(
        [sys.executable, "-c", WORKER, str(samples)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    half, whole = map(float, found.stdout.split())
    return whole / 1024, (whole - half) / 1024


@dataclass(frozen=True)
class Fuzzed:
    """What random replies did."""

    replies: int
    errors: int
    """Replies that raised."""
    unfounded: int
    """Replies that earned something without a solution key."""
    slowest: float
    """CPU milliseconds of the slowest reply, best of three."""


def fuzz(count: int, seed: int = 0) -> Fuzzed:
    """Score `count` random replies over all tasks. Replies mix fragments of every answer form and odd characters."""
    rng = philox("fuzz", seed)
    samples = [(task, _one(task)) for task in TASKS]
    cases = [(task, sample) for task, sample in samples if sample is not None]
    errors = unfounded = 0
    slowest = 0.0
    for number in range(count):
        task, sample = cases[number % len(cases)]
        reply = _noise(task, sample, rng)
        start = time.thread_time()
        try:
            score = task.score(reply, sample.truth, sample.surface)
        except Exception:  # counted: this is what the figure is about
            errors += 1
            continue
        spent = time.thread_time() - start
        # A new slowest one is measured twice more: the clock itself hiccups now and then.
        if spent > max(slowest, 2e-4):
            again = [_seconds(task, sample, reply) for _ in range(2)]
            spent = min(spent, *again)
        slowest = max(slowest, spent)
        readable = score.key != INVALID and score.parts.get("parsed", 0.0)
        unfounded += score.reward > 0.0 and not readable
    return Fuzzed(count, errors, unfounded, 1000 * slowest)


def _noise(task: Task, sample: Sample, rng: Generator) -> str:
    count = int(rng.integers(0, 24))
    body = "".join(repeatedly(PIECES, count, rng))
    kind = int(rng.integers(4))
    if kind == 0:
        return body
    if kind == 1:
        true = task.format(sample.truth)
        cut = int(rng.integers(len(true) + 1))
        body = true[:cut] + body + true[cut:]
    return sample.surface.wrap(body * int(rng.integers(1, 4)))


def _seconds(task: Task, sample: Sample, reply: str) -> float:
    start = time.thread_time()
    task.score(reply, sample.truth, sample.surface)
    return time.thread_time() - start


def _tasks(
    names: Sequence[str],
    media: list[Medium],
    seconds: float,
    fresh: Callable[[int], Medium] | None = None,
) -> float:
    """Samples per CPU second over tasks (harmonic mean)."""

    def medium(index: int) -> Medium:
        return fresh(index) if fresh else media[index % len(media)]

    costs = []
    for task in [task for task in TASKS if task.name in names]:
        count = task.media_count(task.defaults())

        def one(index: int, task: Task = task, count: int = count) -> None:
            chosen = [medium(index + i) for i in range(count)]
            make(task, chosen, seed=1, index=index)

        costs.append(1.0 / _rate(one, seconds / max(4, len(names) / 3)))
    return 1.0 / float(np.mean(costs))


def _rate(call: Callable[[int], object], seconds: float) -> float:
    """Calls per CPU second: the best of three repetitions of at least this length."""
    call(0)  # not counted: the first call fills caches
    best, index = 0.0, 0
    for _ in range(REPETITIONS):
        start, done, spent = time.process_time(), 0, 0.0
        while spent < seconds:
            index += 1
            call(index)
            done += 1
            spent = time.process_time() - start
        best = max(best, done / spent)
    return best


def _warm_clips() -> list[Medium]:
    media = [clip(0, index) for index in range(4)]
    for medium in media:
        medium.video().read(range(len(medium.video().times)))
    return media


def _one(task: Task) -> Sample | None:
    """A sample on drawn media; None if four tries are refused."""
    kind = task.kinds[0] if task.kinds[0] in ("image", "rgbd", "video") else "image"
    source, count = DrawnSource(), task.media_count(task.defaults())
    for index in range(4):
        media = []
        for place in range(count):
            media.append(source.open(kind, 10 * index + place, task.avoid).decode())
        sample = make(task, media, seed=2, index=index)
        if isinstance(sample, Sample):
            return sample
    return None


def _clip_file(path: Path, index: int) -> str:
    """A drawn clip as an MPEG-4 file at 12 frames per second."""
    import av  # here: only this figure needs it

    frames = clip(1, index, seconds=8.0, fps=12.0).video().read(range(96))
    height, width = frames.shape[1:3]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height = width, height  # type: ignore[attr-defined]
        stream.pix_fmt = "yuv420p"  # type: ignore[attr-defined]
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())  # what the encoder still holds
    return str(path)
