"""Where raw media come from: the drawn source, folders, archives; one lazy interface.

A source answers two questions: how many media of a kind does it have, counting no further than asked (`known`), and
which is the n-th (`open`). Folders are walked in sorted order, one directory at a time, no further than needed; names
are kept as one byte string per directory, so a million files cost about 20 MB. Links that lead back are followed once;
directories that cannot be read are counted and passed over. Opening returns the content id first and decodes on
demand, so a split by content costs no decoding.

An image `x.png` with a depth map beside it (`x_depth.png`, `x.depth.png`, `x_depth.npy`, …) is also an rgbd medium.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from mmrl.data.pretext.contract import Kind, Medium
from mmrl.data.pretext.craft.procedural import clip, depth_scene, drift, landscape, scene
from mmrl.data.pretext.stream.media import (
    clip_id,
    clip_medium,
    content_id,
    image_medium,
    still_of,
)
from mmrl.ground.faults import BadMedia
from mmrl.ground.media_names import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from mmrl.ground.quarantine import Quarantine

VIDEOS = (*VIDEO_SUFFIXES, ".mpg", ".mpeg")
DEPTHS = (".png", ".npy", ".tif", ".tiff")
USUAL = tuple(
    suffix for lower in (*IMAGE_SUFFIXES, *VIDEOS, *DEPTHS) for suffix in (lower, lower.upper())
)
"""Names that end so are taken for files without asking the file system."""
KINDS: tuple[Kind, ...] = ("image", "rgbd", "video")


@dataclass(frozen=True)
class Opened:
    """A medium whose content is known but not yet decoded."""

    id: str
    where: str
    decode: Callable[[], Medium]
    """Raises BadMedia."""


class Source(Protocol):
    """Raw media by kind and position."""

    name: str

    def known(self, kind: Kind, need: int) -> int:
        """How many media of this kind there are, or at least `need`; counts no further than needed."""
        ...

    def open(self, kind: Kind, position: int, avoid: Sequence[str] = ()) -> Opened:
        """The medium at a position below `known`. `avoid` names traits (see `Task.avoid`) that a source which draws
        can leave out. Raises BadMedia."""
        ...


class DrawnSource:
    """Procedural scenes, depth scenes and clips, endless. Nothing is read or downloaded."""

    def __init__(
        self,
        seed: int = 0,
        size: tuple[int, int] = (384, 512),
        clip_size: tuple[int, int] = (192, 256),
    ) -> None:
        self.seed, self.size, self.clip_size = seed, size, clip_size
        self.name = f"drawn-{seed}"

    def known(self, kind: Kind, need: int) -> int:
        return need if kind in KINDS else 0

    def open(self, kind: Kind, position: int, avoid: Sequence[str] = ()) -> Opened:
        plain = "flat-shapes" in avoid
        size, maker = self.size, landscape if plain else scene
        if kind == "rgbd":
            maker = depth_scene
        elif kind == "video":
            size, maker = self.clip_size, drift if plain else clip
        where = f"{maker.__name__}:{self.seed}:{position}"
        identity = content_id(f"{where}:{size}".encode())
        return Opened(
            identity, where, lambda: replace(maker(self.seed, position, *size), id=identity)
        )


class FolderSource:
    """Image and video files below a directory."""

    def __init__(
        self, root: str | os.PathLike[str], quarantine: Quarantine | None = None
    ) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise ValueError(
                f"{self.root} is not a directory; give a folder of images or videos."
            )
        self.name, self.quarantine = str(self.root), quarantine or Quarantine()
        self._walk = self._directories()
        self._listings: dict[Kind, list[_Names]] = {kind: [] for kind in KINDS}
        self._totals: dict[Kind, int] = dict.fromkeys(KINDS, 0)

    def known(self, kind: Kind, need: int) -> int:
        while self._totals.get(kind, need) < need:
            directory = next(self._walk, None)
            if directory is None:
                break
            for found, names in classified(directory[1]).items():
                self._listings[found].append(_Names(directory[0], names, self._totals[found]))
                self._totals[found] += len(names)
        return self._totals.get(kind, 0)

    def open(self, kind: Kind, position: int, avoid: Sequence[str] = ()) -> Opened:
        listings = self._listings[kind]
        low, high = 0, len(listings)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if listings[middle].start <= position else (low, middle)
        path, _, depth = listings[low][position - listings[low].start].partition("\0")
        try:
            if kind == "video":
                identity = clip_id(path)
                return Opened(identity, path, lambda: clip_medium(path, path, identity))
            content = Path(path).read_bytes()
            beside = (
                Path(os.path.join(os.path.dirname(path), depth)).read_bytes() if depth else None
            )
        except OSError as error:
            raise BadMedia(path, "unreadable file", error.strerror or str(error)) from None
        identity = content_id(content)
        return Opened(identity, path, lambda: image_medium(content, path, identity, beside))

    def _directories(self) -> Iterator[tuple[str, list[str]]]:
        """Directories with the names in them, depth first in sorted order."""
        pending, seen = [str(self.root)], set()
        while pending:
            folder = pending.pop()
            try:
                state = os.stat(folder)
                if (state.st_dev, state.st_ino) in seen:
                    continue
                seen.add((state.st_dev, state.st_ino))
                names = sorted(os.listdir(folder))
            except OSError as error:
                self.quarantine.add(
                    BadMedia(folder, "unreadable folder", error.strerror or str(error))
                )
                continue
            inner = [name for name in names if not name.endswith(USUAL)]
            pending += [
                path
                for name in reversed(inner)
                if os.path.isdir(path := os.path.join(folder, name))
            ]
            yield folder, names


def classified(names: Sequence[str]) -> dict[Kind, list[str]]:
    """Media among file names of one directory or archive, by kind. An rgbd entry is "image\\0depth"."""
    by_suffix: dict[str, list[str]] = {}
    for name in names:
        tail = name[-6:]
        by_suffix.setdefault(tail[tail.rfind(".") :].lower() if "." in tail else "", []).append(
            name
        )
    images = [name for suffix in IMAGE_SUFFIXES for name in by_suffix.get(suffix, ())]
    videos = [name for suffix in VIDEOS for name in by_suffix.get(suffix, ())]
    depths = [
        name for suffix in DEPTHS for name in by_suffix.get(suffix, ()) if _is_depth(name)
    ]
    found: dict[Kind, list[str]] = {"image": images, "rgbd": [], "video": videos}
    if depths:
        twins = {os.path.splitext(name)[0][:-6].lower(): name for name in depths}
        found["image"] = images = [name for name in images if not _is_depth(name)]
        pairs = ((name, twins.get(os.path.splitext(name)[0].lower())) for name in images)
        found["rgbd"] = [f"{name}\0{twin}" for name, twin in pairs if twin is not None]
    return {kind: sorted(entries) for kind, entries in found.items() if entries}


def _is_depth(name: str) -> bool:
    return (
        os.path.splitext(name)[0].lower().endswith(("_depth", ".depth"))
        if "depth" in name.lower()
        else False
    )


class SplitSource:
    """The media of a source that fall on one side of a split by content. Positions are those of the source; media of
    the other side are refused."""

    def __init__(
        self,
        source: Source,
        side: str,
        share: float = 0.1,
        near_hashes: np.ndarray | None = None,
    ) -> None:
        if side not in ("train", "heldout"):
            raise ValueError(f"split is {side!r}; it must be 'train' or 'heldout'.")
        if not 0.0 < share < 1.0:
            raise ValueError(f"the held-out share is {share}; it must lie between 0 and 1.")
        self.source, self.side, self.share, self.name = source, side, share, source.name
        self.near_hashes = np.zeros(0, dtype=np.uint64) if near_hashes is None else near_hashes

    def known(self, kind: Kind, need: int) -> int:
        return self.source.known(kind, need)

    def open(self, kind: Kind, position: int, avoid: Sequence[str] = ()) -> Opened:
        opened = self.source.open(kind, position, avoid)
        if (held_out(opened.id, self.share)) != (self.side == "heldout"):
            raise OtherSide(opened.where, "other side of the split")
        if self.side == "heldout" or not self.near_hashes.size:
            return opened
        return Opened(opened.id, opened.where, lambda: self._distinct(opened))

    def _distinct(self, opened: Opened) -> Medium:
        from mmrl.data.pretext.stream.media import near, perceptual_hash

        medium = opened.decode()
        picture = medium.image if medium.image is not None else still_of(medium).picture()
        if near(perceptual_hash(picture), self.near_hashes):
            raise OtherSide(opened.where, "near-duplicate of a held-out medium")
        return medium


class OtherSide(BadMedia):
    """Not a fault: the medium belongs to the other split."""


def held_out(identity: str, share: float) -> bool:
    """Does this content belong to the held-out share? Depends on the content only."""
    import hashlib

    number = int.from_bytes(
        hashlib.blake2b(identity.encode(), digest_size=8, person=b"heldout").digest(), "big"
    )
    return number < share * 2**64


class _Names:
    """Names of one directory as one byte string with offsets: 15 bytes a file instead of 70."""

    def __init__(self, folder: str, names: Sequence[str], start: int) -> None:
        self.folder, self.start = folder, start
        self._blob = os.fsencode("/".join(names)) + b"/"  # no name holds a slash
        self._ends = np.flatnonzero(np.frombuffer(self._blob, dtype=np.uint8) == ord("/"))

    def __getitem__(self, place: int) -> str:
        begin = int(self._ends[place - 1]) + 1 if place else 0
        return os.path.join(
            self.folder, os.fsdecode(self._blob[begin : int(self._ends[place])])
        )
