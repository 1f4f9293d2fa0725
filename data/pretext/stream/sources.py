"""Where raw media come from: the drawn source, folders, archives; one lazy interface.

A source answers two questions: how many media of a kind does it have, counting no further than asked (`known`), and
which is the n-th (`open`). Folders are walked in sorted order, one directory at a time, no further than needed; names
are kept as one byte string per directory, so a million files cost about 20 MB. Links that lead back are followed once;
directories that cannot be read are counted and passed over. Opening returns the content id first and decodes on
demand, so a split by content costs no decoding.

An image `x.png` with a depth map beside it (`x_depth.png`, `x.depth.png`, `x_depth.npy`, …) is also an rgbd medium.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
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
    near,
    perceptual_hash,
    still_of,
)
from mmrl.ground.faults import BadMedia
from mmrl.ground.files import read_regular
from mmrl.ground.media_names import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from mmrl.ground.quarantine import Quarantine

DEPTHS = (".png", ".npy", ".tif", ".tiff")
USUAL = tuple(
    suffix
    for lower in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES, *DEPTHS)
    for suffix in (lower, lower.upper())
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

        def draw() -> Medium:
            return replace(maker(self.seed, position, *size), id=identity)

        return Opened(identity, where, draw)


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
            folder, inside = next(self._walk, (None, []))
            if folder is None:
                break
            for found, names in classified(inside).items():
                listing = _Names(folder, names, self._totals[found])
                self._listings[found].append(listing)
                self._totals[found] += len(names)
        return self._totals.get(kind, 0)

    def open(self, kind: Kind, position: int, avoid: Sequence[str] = ()) -> Opened:
        listings = self._listings[kind]
        place = bisect_right(listings, position, key=attrgetter("start")) - 1
        listing = listings[place]
        path, _, depth = listing[position - listing.start].partition("\0")
        if kind == "video":
            identity = clip_id(path)
            return Opened(identity, path, lambda: clip_medium(path, path, identity))
        content = read_regular(path)
        beside = read_regular(Path(path).with_name(depth)) if depth else None
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
                why = error.strerror or str(error)
                self.quarantine.add(BadMedia(folder, "unreadable folder", why))
                continue
            # A question to the file system for each of a million pictures would take minutes.
            others = [name for name in names if not name.endswith(USUAL)]
            paths = [os.path.join(folder, name) for name in others]
            # Reversed, because the last one pending is walked first.
            pending += reversed([path for path in paths if os.path.isdir(path)])
            yield folder, names


def classified(names: Sequence[str]) -> dict[Kind, list[str]]:
    """Media among file names of one directory or archive, by kind. An rgbd entry is "image\\0depth"."""
    by_suffix: dict[str, list[str]] = {}
    for name in names:
        # Of a million names the last characters will do: no suffix of ours is longer than 5.
        _, dot, suffix = name[-6:].rpartition(".")
        by_suffix.setdefault(dot + suffix.lower() if dot else "", []).append(name)

    def ending(suffixes: Sequence[str]) -> list[str]:
        return [name for suffix in suffixes for name in by_suffix.get(suffix, ())]

    images, videos = ending(IMAGE_SUFFIXES), ending(VIDEO_SUFFIXES)
    depths = list(filter(_is_depth, ending(DEPTHS)))
    rgbd = []
    if depths:
        twins = {_stem(name)[: -len("_depth")]: name for name in depths}
        images = [name for name in images if not _is_depth(name)]
        rgbd = [f"{name}\0{twins[_stem(name)]}" for name in images if _stem(name) in twins]
    found: dict[Kind, list[str]] = {"image": images, "rgbd": rgbd, "video": videos}
    return {kind: sorted(entries) for kind, entries in found.items() if entries}


def _stem(name: str) -> str:
    return os.path.splitext(name)[0].lower()


def _is_depth(name: str) -> bool:
    # The first question is cheap, and answers nearly all.
    return "depth" in name.lower() and _stem(name).endswith(("_depth", ".depth"))


class SplitSource:
    """The media of a source that fall on one side of a split by content. Positions are those of the source; media of
    the other side are refused. Questions that need no media are split by their own content, half to each side."""

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
        self.source, self.name = source, source.name
        self.side, self.share = side, share
        self.near_hashes = np.zeros(0, dtype=np.uint64) if near_hashes is None else near_hashes

    def known(self, kind: Kind, need: int) -> int:
        return self.source.known(kind, need)

    def open(self, kind: Kind, position: int, avoid: Sequence[str] = ()) -> Opened:
        opened = self.source.open(kind, position, avoid)
        if held_out(opened.id, self.share) != (self.side == "heldout"):
            raise OtherSide(opened.where, "other side of the split")
        if self.side == "heldout" or not self.near_hashes.size:
            return opened
        return Opened(opened.id, opened.where, lambda: self._distinct(opened))

    def has(self, identity: str) -> bool:
        """Is a question without media on this side?"""
        # One half and not `share`: they are endless, and nine in ten draws in vain would cost solvers much time.
        return held_out(identity, 0.5) == (self.side == "heldout")

    def _distinct(self, opened: Opened) -> Medium:
        medium = opened.decode()
        picture = medium.image if medium.image is not None else still_of(medium).picture()
        if near(perceptual_hash(picture), self.near_hashes):
            raise OtherSide(opened.where, "near-duplicate of a held-out medium")
        return medium


class OtherSide(BadMedia):
    """Not a fault: the medium belongs to the other split."""


def held_out(identity: str, share: float) -> bool:
    """Does this content belong to the held-out share? Depends on the content only."""
    hashed = hashlib.blake2b(identity.encode(), digest_size=8, person=b"heldout").digest()
    return int.from_bytes(hashed, "big") < share * 2**64


class _Names:
    """Names of one directory as one byte string with offsets: 15 bytes a file instead of 70."""

    def __init__(self, folder: str, names: Sequence[str], start: int) -> None:
        self.folder, self.start = folder, start
        self._blob = os.fsencode("/".join(names)) + b"/"  # no name holds a slash
        letters = np.frombuffer(self._blob, dtype=np.uint8)
        self._ends = np.flatnonzero(letters == ord("/"))

    def __getitem__(self, place: int) -> str:
        begin = int(self._ends[place - 1]) + 1 if place else 0
        name = self._blob[begin : int(self._ends[place])]
        return os.path.join(self.folder, os.fsdecode(name))
