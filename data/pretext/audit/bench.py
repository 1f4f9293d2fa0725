"""Throughput, measured: samples per CPU second on one core, the best of three repetitions.

CPU time of this process, so other jobs on the machine disturb little. Image tasks are fed pictures whose longer side is
512 pixels, video tasks clips of 256×192 pixels. Goals are those of the design; a figure below half of its goal fails.

A million files are imitated by a folder whose listing is a million names, so that the time is that of our index and not
of the file system that makes them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
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
from mmrl.data.pretext.craft.rng import generator
from mmrl.data.pretext.presets import Ingredient, TaskMix
from mmrl.data.pretext.stream.media import clip_medium
from mmrl.data.pretext.stream.samples import make
from mmrl.data.pretext.stream.sources import DrawnSource, FolderSource
from mmrl.data.pretext.stream.stream import SampleStream
from mmrl.data.video.video import ClipReader

REPETITIONS = 3
PIECES = (
    *"0123456789ABCDabc,;:.-|()[]{}<>",
    *(" ", "  ", "\n", "\t", "–", "→", "->", "<answer>", "</answer>", "<think>", "</think>", "\\boxed{"),
    *("1.5", "2.5-3.5", "to", "s", " and "),
    *("pan left", "mirror", "invert", "red", "٣", "½", "∞", "nan", "1e9", "\x00", "é", "999999999999", "-1", "true"),
)  # fmt: skip
"""What random replies are made of."""
CORE = (
    *(
        "jigsaw",
        "rotation",
        "patchfit",
        "odd-tile",
        "differences",
        "relative-position",
        "crop-location",
    ),
    *("edit-program", "correspondence", "quality-order", "overlay-count", "mosaic"),
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
        return (
            self.value >= self.goal / 2 if self.more_is_better else self.value <= 2 * self.goal
        )

    def line(self) -> str:
        sign, mark = "≥" if self.more_is_better else "≤", "" if self.ok else "  MISSED"
        return f"{self.name:34s} {self.value:12.1f} {self.unit:10s} goal {sign} {self.goal:g}{mark}"


def throughput(seconds: float = 1.0) -> list[Figure]:
    """All figures; about 40 × `seconds`."""
    stills = [scene(0, index) for index in range(8)]
    videos = [task.name for task in TASKS if task.kinds[0] == "video"]
    figures = [Figure("image tasks at 512 px", _tasks(CORE, stills, seconds), 40, "samples/s")]
    figures.append(
        Figure(
            "procedural scenes, 256 px",
            _rate(lambda i: scene(0, i, 192, 256), seconds),
            150,
            "scenes/s",
        )
    )
    figures.append(
        Figure(
            "video tasks, frames in memory",
            _tasks(videos, _warm_clips(), seconds),
            40,
            "samples/s",
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = [_clip_file(Path(folder) / f"{index}.mp4", index) for index in range(3)]
        here = ClipReader(
            isolate=False
        )  # decodes in this process, so that its CPU time is counted
        with patch("mmrl.data.pretext.stream.media._reader", lambda: here):
            decoded = _tasks(
                videos, [], seconds, lambda i: clip_medium(paths[i % 3], paths[i % 3], str(i))
            )
    figures.append(Figure("video tasks with decoding", decoded, 4, "samples/s"))
    figures.append(Figure("verify", verify_rate(seconds), 20_000, "answers/s"))
    figures.append(
        Figure(
            "first sample, 10⁶ files",
            first_sample(1_000_000),
            2.0,
            "seconds",
            more_is_better=False,
        )
    )
    peak, growth = memory()
    figures.append(Figure("memory of a worker", peak, 300, "MiB", more_is_better=False))
    figures.append(
        Figure("its growth in the second half", growth, 30, "MiB", more_is_better=False)
    )
    return figures


def verify_rate(seconds: float) -> float:
    """Answers parsed and paid per CPU second, over all tasks (harmonic mean: each task answered equally often)."""
    costs = []
    for task in TASKS:
        sample = _one(task)
        if sample is None:
            continue
        rng = generator("bench", task.name)
        replies = [sample.surface.wrap(task.guess(sample.truth, rng)) for _ in range(16)]
        replies += [
            sample.surface.wrap(task.format(sample.truth)),
            "no answer",
            "<answer>x</answer>",
        ]
        rate = _rate(
            lambda i, t=task, s=sample, r=replies: t.score(r[i % len(r)], s.truth, s.surface),
            seconds / 20,
        )
        costs.append(1.0 / rate)
    return 1.0 / float(np.mean(costs))


def first_sample(files: int) -> float:
    """CPU seconds from opening a folder of `files` images to the first sample of a stream."""
    names = [f"{number:07d}.jpg" for number in range(files)]
    best = float("inf")
    with tempfile.TemporaryDirectory() as folder:
        real = Path(folder) / "real.jpg"
        Image.fromarray(scene(0, 0).picture()).save(real)
        content = real.read_bytes()
        for _ in range(REPETITIONS):
            with (
                patch("os.listdir", lambda _: list(names)),
                patch.object(Path, "read_bytes", lambda _: content),
            ):
                start = time.process_time()
                stream = SampleStream(
                    FolderSource(folder), TaskMix("bench", (Ingredient("rotation"),))
                )
                next(stream.iterate())
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
    rng, samples = generator("fuzz", seed), [(task, _one(task)) for task in TASKS]
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
        if spent > max(slowest, 2e-4):
            spent = min(
                spent,
                *(
                    _seconds(lambda t=task, s=sample, r=reply: t.score(r, s.truth, s.surface))
                    for _ in "12"
                ),
            )
        slowest = max(slowest, spent)
        unfounded += score.reward > 0.0 and (
            score.key == INVALID or not score.parts.get("parsed", 0.0)
        )
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


def _seconds(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def _tasks(
    names: Sequence[str],
    media: list[Medium],
    seconds: float,
    fresh: Callable[[int], Medium] | None = None,
) -> float:
    """Samples per CPU second over tasks (harmonic mean)."""
    costs = []
    for task in (task for task in TASKS if task.name in names):
        count = task.media_count(task.defaults())

        def one(index: int, task: Task = task, count: int = count) -> None:
            chosen = [
                fresh(index + i) if fresh else media[(index + i) % len(media)]
                for i in range(count)
            ]
            make(task, chosen, seed=1, index=index)

        costs.append(1.0 / _rate(one, seconds / max(4, len(names) / 3)))
    return 1.0 / float(np.mean(costs))


def _rate(call: Callable[[int], object], seconds: float) -> float:
    """Calls per CPU second: the best of three repetitions of at least this length."""
    call(0)
    best, index = 0.0, 0
    for _ in range(REPETITIONS):
        start, done = time.process_time(), 0
        while True:
            index += 1
            call(index)
            done += 1
            spent = time.process_time() - start
            if spent >= seconds:
                break
        best = max(best, done / spent)
    return best


def _warm_clips() -> list[Medium]:
    media = [clip(0, index) for index in range(4)]
    for medium in media:
        medium.video().read(range(len(medium.video().times)))
    return media


def _one(task: Task) -> Sample | None:
    kind = task.kinds[0] if task.kinds[0] in ("image", "rgbd", "video") else "image"
    source, count = DrawnSource(), task.media_count(task.defaults())
    for index in range(4):
        media = [source.open(kind, 10 * index + i, task.avoid).decode() for i in range(count)]
        sample = make(task, media, seed=2, index=index)
        if isinstance(sample, Sample):
            return sample
    return None


def _clip_file(path: Path, index: int) -> str:
    """A drawn clip as an MPEG-4 file at 12 frames per second."""
    import av

    frames = clip(1, index, seconds=8.0, fps=12.0).video().read(range(96))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = (
            frames.shape[2],
            frames.shape[1],
            "yuv420p",
        )  # type: ignore[attr-defined]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return str(path)
