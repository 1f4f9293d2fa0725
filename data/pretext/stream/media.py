"""Raw files to pixels: whatever is on the disk is used correctly or refused with a reason.

Images: what `mmrl.ground.images` reads, reduced to `LONGEST` pixels while decoding. Grey deeper than 8 bits fills the
range that its brightest value suggests.
Depth: 16-bit PNG or TIFF in millimetres, or .npy in metres; 0 and NaN are unknown.
Clips: decoded on demand by `data.video` in a process that can be killed; frames are reduced to `CLIP_SIDE` before they
are copied, and the frames read last stay in memory, so that several questions about one clip decode it once.

A medium's id is a hash of its content: of all bytes for images, of the size and three 64 KiB pieces for clips.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image

from mmrl.data.pretext.contract import Array, Medium
from mmrl.ground.faults import BadMedia
from mmrl.ground.files import open_regular
from mmrl.ground.grey import grey_by_range
from mmrl.ground.images import decode_image, open_image, refusals
from mmrl.ground.scratch import scratch_folder

if TYPE_CHECKING:
    from mmrl.data.video.video import ClipReader

Answer = TypeVar("Answer")

LONGEST = 1024
"""Longest side of a decoded image, in pixels."""
CLIP_SIDE = 320
"""Longest side of a decoded frame, in pixels."""
KEPT_FRAMES = 96
"""Decoded frames kept per clip."""
LONGEST_CLIP = 200_000
"""Frames of a clip beyond this number are not used."""


def content_id(content: bytes) -> str:
    """The id of an image file."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def clip_id(path: str | os.PathLike[str]) -> str:
    """The id of a clip: size, first, middle and last 64 KiB. Raises BadMedia."""
    # All of a clip may be gigabytes; its index and its first and last pictures tell it from others.
    piece = 1 << 16
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        found = hashlib.blake2b(str(size).encode(), digest_size=16)
        for start in (0, size // 2 - piece // 2, size - piece):
            file.seek(max(0, start))
            found.update(file.read(piece))
    return found.hexdigest()


def decode_picture(content: bytes, where: str, longest: int = LONGEST) -> Array:
    """uint8 [H, W, 3], upright, at most `longest` pixels on its longer side. Raises BadMedia."""
    with warnings.catch_warnings():
        # Pillow warns of odd metadata and large pictures; of a million files that is a flood.
        warnings.simplefilter("ignore")
        return decode_image(content, where, longest=longest, grey=grey_by_range)


def decode_depth(content: bytes, where: str) -> Array:
    """float32 [H, W] in metres. Raises BadMedia."""
    with refusals(where, "broken depth map"):
        if content[:6] == b"\x93NUMPY":
            depth = np.load(io.BytesIO(content), allow_pickle=False).astype(np.float32)
        else:
            image = open_image(io.BytesIO(content), where, ("PNG", "TIFF"))
            values = np.asarray(image)
            # Floats are metres, integers millimetres.
            depth = values.astype(np.float32) / (1.0 if values.dtype.kind == "f" else 1000.0)
    if depth.ndim != 2:
        raise BadMedia(where, "broken depth map", f"shape {depth.shape}, expected [H, W]")
    return depth


def perceptual_hash(picture: Array) -> int:
    """64 bits: is each of 8×8 cells brighter than its right neighbour? Near-duplicates differ in few bits."""
    grey = Image.fromarray(np.ascontiguousarray(picture)).convert("L")
    image = grey.resize((9, 8), Image.Resampling.BOX)
    cells = np.asarray(image, dtype=np.int16)
    brighter = cells[:, 1:] > cells[:, :-1]
    return int.from_bytes(np.packbits(brighter).tobytes(), "big")


def near(first: int, others: Array, bits: int = 6) -> bool:
    """Is one of the uint64 hashes within `bits` bits?"""
    differing = np.bitwise_count(others ^ np.uint64(first))
    return bool((differing <= bits).any())


class FileClip:
    """A clip in a file. Frames are decoded when asked for; the last `KEPT_FRAMES` stay in memory."""

    def __init__(self, path: str, where: str, side: int = CLIP_SIDE) -> None:
        self.path, self.where = path, where
        info = _video(where, lambda: _reader().probe(path))
        times = np.asarray(info.times, dtype=np.float64)[:LONGEST_CLIP]
        if len(times) < 2:
            raise BadMedia(where, "one frame only")
        self.times: Array = times - times[0]
        scale = min(1.0, side / max(info.height, info.width))
        height, width = round(info.height * scale), round(info.width * scale)
        self.size = (max(2, height), max(2, width))
        self._frames: dict[int, Array] = {}

    def read(self, indices: Sequence[int]) -> Array:
        """uint8 [F, H, W, 3]. Raises BadMedia."""
        wanted = [int(i) for i in indices]
        missing = sorted(set(wanted) - self._frames.keys())
        if missing:
            found, _ = _video(self.where, lambda: _reader().read(self.path, missing, self.size))
            if len(self._frames) + len(missing) > KEPT_FRAMES:
                still_wanted = set(wanted) & self._frames.keys()
                self._frames = {index: self._frames[index] for index in still_wanted}
            for index, frame in zip(missing, found, strict=True):
                # A copy: a view would keep the pages of all frames that were read with it.
                self._frames[index] = np.ascontiguousarray(frame)
        return np.stack([self._frames[i] for i in wanted])

    @property
    def held(self) -> int:
        """Bytes of the frames in memory."""
        return len(self._frames) * self.size[0] * self.size[1] * 3


def image_medium(
    content: bytes, where: str, identity: str, depth: bytes | None = None
) -> Medium:
    """An image, with its depth map an RGB-D picture. Raises BadMedia."""
    picture = decode_picture(content, where)
    if depth is None:
        return Medium(identity, "image", image=picture)
    return Medium(identity, "rgbd", image=picture, depth=decode_depth(depth, where))


def clip_medium(path: str, where: str, identity: str) -> Medium:
    """A clip in a file. Raises BadMedia."""
    return Medium(identity, "video", clip=FileClip(path, where))


def clip_from_bytes(content: bytes, where: str, identity: str, suffix: str = ".mp4") -> Medium:
    """A clip from an archive: kept in a temporary file for as long as the medium lives. Raises BadMedia."""
    # In the folder of this process, for the file of a medium that never ends lives no longer than the process.
    with tempfile.NamedTemporaryFile(suffix=suffix, dir=scratch_folder(), delete=False) as file:
        file.write(content)
    try:
        medium = clip_medium(file.name, where, identity)
    except BadMedia:
        os.unlink(file.name)
        raise
    weakref.finalize(medium.clip, _remove, file.name)
    return medium


def still_of(medium: Medium) -> Medium:
    """The middle frame of a clip, as an image."""
    clip = medium.video()
    (middle,) = clip.read([len(clip.times) // 2])
    return Medium(f"{medium.id}-still", "image", image=middle)


@cache
def _reader() -> ClipReader:
    from mmrl.data.video.video import ClipReader

    # PyAV reads every container, and gives everybody the same pixels.
    return ClipReader(backend="pyav", timeout=30.0)


def _video(where: str, call: Callable[[], Answer]) -> Answer:
    """Run a call of the reader; what it refuses bears the medium's own place, not that of a temporary file."""
    try:
        return call()
    except BadMedia as error:
        raise BadMedia(where, error.reason, error.detail) from None


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)
