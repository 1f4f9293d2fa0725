"""Clips as pixels and true times: the public door to the video path. Imports no torch until a `Media` is asked for.

    reader = ClipReader(backend="pyav", cache=FrameCache("cache"), quarantine=Quarantine("bad.jsonl"))
    info = reader.probe("clip.mp4")                       # n, fps, duration, pts, rotation, width, height, variable
    frames, seconds = reader.read("clip.mp4", [0, 10])    # uint8 [F, H, W, 3], float64 [F]
    media = reader.clip("clip.mp4", ClipSampling(fps=2, max_tokens=4096))

What is decided here: which back-end decodes (PyAV, the only one that is right on every file: `mmrl.data.video.readers`,
docs/video.md; another that is asked for reads the files it is right on), that a file is blamed only after PyAV could
not read it, that every decode runs under a time limit in a process that can be killed, that a file which holds fewer
frames than its header promises is refused, and that times are those of the frames delivered. A clip is read once into
one array of uint8 in the layout of `Media`, at the size it will be shown.

Departures from qwen-vl-utils 0.0.14:
1. A crop re-bases times to its start: `Media.times` begin near 0 and spans are counted from the crop's start.
2. Variable frame rates are sampled evenly in time, and always carry true times.
3. Where another back-end than PyAV does not fit a file or fails, PyAV reads it; both are counted, and the second is
   logged. What PyAV cannot read is given to no other: they deliver damaged frames without a word.
4. Frames stay uint8 (float32 there: four times the memory).
"""

from __future__ import annotations

import functools
import os
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmrl.data.video.containers import local_path
from mmrl.data.video.decode_worker import DecodeWorker
from mmrl.data.video.frame_cache import FrameCache, file_key
from mmrl.data.video.frame_choice import MAX_FRAMES, MIN_FRAMES, Rule, choose_frames, subset
from mmrl.data.video.frame_size import clip_size, fit_clip
from mmrl.data.video.probe import ClipInfo
from mmrl.data.video.probe import probe as probe_here
from mmrl.data.video.readers import Backend, fitting, load_backend, read_into, version_of
from mmrl.ground.faults import BadMedia
from mmrl.ground.printable import logger
from mmrl.ground.quarantine import Quarantine

if TYPE_CHECKING:
    from mmrl.types import Media

log = logger(__name__)

REMEMBERED = 256
"""Clips whose packet table is kept."""
READING = 2
"""Changes whenever the same frame number may mean another frame than before; frames cached before are read anew."""


@dataclass(frozen=True)
class ClipSampling:
    """Which frames of a clip are shown, and how large. Without any limit on pixels or tokens the size is kept."""

    fps: float | None = None
    """Frames per second of clip; 2 if neither this nor num_frames is given."""
    num_frames: int | None = None
    """This many frames, however long the clip is."""
    min_frames: int = MIN_FRAMES
    """With fps: at least this many, if the clip has them."""
    max_frames: int = MAX_FRAMES
    """With fps: at most this many."""
    rule: Rule = "qwen-vl-utils"
    """Whose choice of frames is followed: qwen-vl-utils, qwen2 or qwen3 (their processors)."""
    min_pixels: int | None = None
    """Smallest area of a frame."""
    max_pixels: int | None = None
    """Largest area of a frame."""
    total_pixels: int | None = None
    """Area of all pairs of frames together, as qwen-vl-utils counts: long clips exceed it."""
    max_tokens: int | None = None
    """Most tokens of the clip, stamps included. Always kept: by smaller frames, then by fewer."""
    factor: int = 28
    """Pixels per side of a token: 28 for Qwen2.5-VL, 32 for Qwen3-VL."""
    stamp_tokens: int = 0
    """Text tokens per pair of frames, counted in max_tokens: about 10 where stamps are written out."""

    def plan(
        self, info: ClipInfo, start: float | None = None, end: float | None = None
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Frame numbers, long [F], and (height, width). Raises ValueError for an empty crop or a budget too small."""
        frames = choose_frames(
            info.times,
            info.fps,
            fps=self.fps,
            num_frames=self.num_frames,
            min_frames=self.min_frames,
            max_frames=self.max_frames,
            start=start,
            end=end,
            rule=self.rule,
            even_in_time=info.variable,
        )
        count, shape = len(frames), (info.height, info.width)
        low, high = self.min_pixels, self.max_pixels
        if self.max_tokens is not None:
            size = fit_clip(
                count,
                *shape,
                self.factor,
                max_tokens=self.max_tokens,
                min_pixels=low,
                max_pixels=high,
                stamp_tokens=self.stamp_tokens,
            )
            return frames[subset(count, size.frames)], (size.height, size.width)
        if low is None and high is None and self.total_pixels is None:
            return frames, shape
        if low is None and high is not None:
            # qwen-vl-utils refuses a limit below its own minimum; a user who gives only the limit means it.
            low = min(128 * self.factor**2, high)
        fitted = clip_size(
            count,
            *shape,
            self.factor,
            min_pixels=low,
            max_pixels=high,
            total_pixels=self.total_pixels,
        )
        return frames, fitted


class ClipReader:
    """Reads clips with one back-end, one worker, and, if given, a cache and a quarantine.

    `max_missing` is the share of announced frames that a file may lack (1 reads whatever is there). `isolate=False`
    decodes in this process, without a time limit.
    """

    def __init__(
        self,
        backend: Backend | None = None,
        *,
        threads: int = 1,
        timeout: float = 60.0,
        isolate: bool = True,
        max_missing: float = 0.02,
        cache: FrameCache | None = None,
        quarantine: Quarantine | None = None,
    ) -> None:
        self.worker = DecodeWorker(backend, threads, timeout) if isolate else None
        self.threads, self.max_missing = threads, max_missing
        self.cache, self.quarantine = cache, quarantine or Quarantine()
        self.counts: Counter[str] = Counter()
        """clips_decoded, frames_decoded, cache_hits, variable, incomplete, bad, bad/<reason>, and clips that PyAV read:
        unfit/<backend> (the back-end is not right on such files), failed/<backend> (it failed)."""
        self._wanted: Backend | None = backend
        self._named: tuple[Backend, str] | None = None
        self._infos: OrderedDict[str, ClipInfo] = OrderedDict()

    @property
    def backend(self) -> tuple[Backend, str]:
        """Name and version of the decoder. Raises ImportError if it cannot be loaded."""
        if self._named is None:
            # The worker is asked, not this process: only there is the decoder loaded.
            self._named = self.worker.describe() if self.worker else load_backend(self._wanted)
            why = "asked for" if self._wanted else "by default"
            log.info("video back-end: %s %s (%s)", *self._named, why)
        return self._named

    def probe(self, path: str | os.PathLike[str]) -> ClipInfo:
        """What the file holds. Raises BadMedia, also for a file with too few of its announced frames."""
        try:
            path = local_path(path)
        except BadMedia as bad:
            self._blame(bad)
            raise
        # Quarantine is by back-end: another one may well read the file.
        self.quarantine.check(path, self.backend[0])
        # With the time of change, so that a file replaced during a run is looked at again.
        key = f"{path}:{os.stat(path).st_mtime_ns}"
        if key not in self._infos:
            self._infos[key] = self._probe(path)
        self._infos.move_to_end(key)
        if len(self._infos) > REMEMBERED:
            self._infos.popitem(last=False)
        return self._infos[key]

    def _probe(self, path: str) -> ClipInfo:
        try:
            info = self.worker.probe(path) if self.worker else probe_here(path)
            if info.missing > self.max_missing:
                found = f"{info.n} of {info.announced} announced frames are there"
                raise BadMedia(path, "truncated", found)
        except BadMedia as bad:
            self._blame(bad)
            raise
        self.counts["variable"] += info.variable
        self.counts["incomplete"] += info.missing > 0
        return info

    def read(
        self,
        path: str | os.PathLike[str],
        indices: Sequence[int],
        size: tuple[int, int] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Frames, uint8 [F, H, W, 3] RGB, and their seconds from the first frame, float64 [F].

        Any order, repeats allowed; `size` is (height, width). Raises BadMedia, and ValueError for an index outside.
        """
        info = self.probe(path)
        numbers = [int(index) for index in indices]
        frames, seconds = self._frames(info, numbers, size or (info.height, info.width))
        return frames.transpose(0, 2, 3, 1), seconds

    def clip(
        self,
        path: str | os.PathLike[str],
        sampling: ClipSampling = ClipSampling(),
        start: float | None = None,
        end: float | None = None,
    ) -> Media:
        """The sampled clip, or its part from `start` to `end` seconds; times count from `start`. Raises BadMedia."""
        # Imported here, because pretext tasks load this module in processes without torch.
        import torch

        from mmrl.types import Media

        info = self.probe(path)
        try:
            indices, size = sampling.plan(info, start, end)
        except ValueError as error:
            raise BadMedia(info.path, "cannot be sampled", str(error)) from error
        frames, seconds = self._frames(info, indices.tolist(), size)
        # The crop has its own clock: times and true spans both count from its start.
        origin = max(start or 0.0, 0.0)
        until = info.duration if end is None else min(end, info.duration)
        times = torch.from_numpy(seconds - origin)  # [F]
        return Media(torch.from_numpy(frames), times, float(until - origin))

    def close(self) -> None:
        """End the worker; the next read starts another."""
        if self.worker:
            self.worker.close()

    def _frames(
        self, info: ClipInfo, indices: list[int], size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [F, 3, h, w] and float64 [F], from the cache or the decoder."""
        wish, _ = self.backend
        self.quarantine.check(info.path, wish)
        if not indices or min(indices) < 0 or max(indices) >= info.n:
            raise ValueError(
                f"{info.path}: frames asked for: {indices[:8]}; "
                f"give at least one, 0 to {info.n - 1}."
            )
        *others, last = fitting(info, wish)
        if wish != last and not others:
            self.counts[f"unfit/{wish}"] += 1
        for backend in others:
            try:
                return self._cached(info, indices, size, backend)
            except BadMedia as bad:
                self.counts[f"failed/{backend}"] += 1
                log.warning(
                    "%s cannot read a clip, %s reads it instead: %s", backend, last, bad
                )
        try:
            return self._cached(info, indices, size, last)
        except BadMedia as bad:
            self._blame(bad)
            raise

    def _cached(
        self, info: ClipInfo, indices: list[int], size: tuple[int, int], backend: Backend
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.cache is None:
            return self._decode(info, indices, size, backend)
        # All that decides the pixels. The back-end with its version: decoders round colours differently.
        parameters = {
            "content": file_key(info.path),
            "indices": indices,
            "size": size,
            "backend": (backend, version_of(backend)),
            "reading": READING,
        }
        found = self.cache.get(parameters)
        if found is not None:
            self.counts["cache_hits"] += 1
            return found
        frames, seconds = self._decode(info, indices, size, backend)
        self.cache.put(parameters, frames, seconds)
        return frames, seconds

    def _decode(
        self, info: ClipInfo, indices: list[int], size: tuple[int, int], backend: Backend
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.worker:
            frames, seconds = self.worker.read(info, indices, size, backend)
        else:
            frames = np.empty((len(indices), 3, *size), dtype=np.uint8)
            seconds = read_into(frames, info, indices, backend, self.threads)
        self.counts["clips_decoded"] += 1
        self.counts["frames_decoded"] += len(indices)
        return frames, seconds

    def _blame(self, bad: BadMedia) -> None:
        self.counts["bad"] += 1
        self.counts[f"bad/{bad.reason}"] += 1
        self.quarantine.remember(bad, self.backend[0])


@functools.cache
def shared_reader() -> ClipReader:
    """The reader of this process for calls that name none: default back-end, isolated, no cache."""
    return ClipReader()


def read_clip(
    path: str | os.PathLike[str],
    *,
    fps: float | None = None,
    num_frames: int | None = None,
    start: float | None = None,
    end: float | None = None,
    max_frames: int = MAX_FRAMES,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    max_tokens: int | None = None,
    factor: int = 28,
    reader: ClipReader | None = None,
) -> Media:
    """A sampled clip; the other keywords are explained in `ClipSampling`.

    Raises BadRow, whose cause is the BadMedia: a file that cannot be shown is a bad row of a data set.
    """
    from mmrl.ground.faults import BadRow

    sampling = ClipSampling(
        fps=fps,
        num_frames=num_frames,
        max_frames=max_frames,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        max_tokens=max_tokens,
        factor=factor,
    )
    try:
        return (reader or shared_reader()).clip(path, sampling, start, end)
    except BadMedia as bad:
        raise BadRow(f"The clip cannot be shown. {bad}") from bad
