"""Where media that a row names may lie: in the folder of the data, and nowhere else unless that is asked for.

A data set is often somebody else's. Its rows must not make us read what lies elsewhere on the machine, be it by an
absolute path, by "..", or by a link that leads out.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mmrl.ground.faults import Fault, shown

OUTSIDE = "media outside the data"
"""Reason of the `Fault`."""


@dataclass(frozen=True)
class Root:
    """The folder where relative paths start, and which paths may not leave."""

    folder: Path | None = None
    """None: there is none, as for a data set of the hub; relative paths then start at the working folder."""
    allow_outside: bool = False
    """Read files from anywhere."""
    trusted: tuple[Path, ...] = ()
    """Further folders that may hold media, such as the cache of the library that downloaded the data set."""
    flag: str = "--data.image-root FOLDER (image_root=)"
    """How a user names another folder."""

    @staticmethod
    def of(root: Root | Path | None) -> Root:
        """A folder as a `Root`; None for whoever names files himself, and may name any."""
        if root is None:
            return Root(allow_outside=True)
        return root if isinstance(root, Root) else Root(root)

    def path(self, name: str) -> Path:
        """The path that a row's name means. Raises `Fault` if it is outside."""
        if "\0" in name:
            found = f"{shown(name)} holds a zero byte"
            raise Fault("missing media", found, "Give the path of a file.")
        # `os.path`, which leaves "~nobody" as it is where `Path` raises.
        path = Path(os.path.expanduser(name.removeprefix("file://")))
        if self.folder is not None and not path.is_absolute():
            path = self.folder / path
        if not self.allow_outside and not self._holds(path):
            raise self._outside(path)
        return path

    def _holds(self, path: Path) -> bool:
        folders = list(self.trusted)
        if self.folder is not None:
            folders.append(_whole_of(self.folder))
        try:
            real = Path(_real_path(path))
        except (OSError, ValueError):  # links in a circle, a zero byte in the name
            return False
        return any(real.is_relative_to(_real_folder(str(folder))) for folder in folders)

    def _outside(self, path: Path) -> Fault:
        where = "the cache of downloaded data sets" if self.folder is None else self.folder
        found = f"{shown(str(path), 200)} does not lie in {where}"
        fix = (
            f"Name the folder that holds the media with {self.flag}, or pass --data.allow-outside "
            "(allow_outside=True) to read files from anywhere."
        )
        return Fault(OUTSIDE, found, fix)


def hub_caches() -> tuple[Path, ...]:
    """Where media lie that were downloaded with a data set of the hub."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    # As `datasets` has it, which is slow to import.
    datasets = os.environ.get("HF_DATASETS_CACHE") or os.path.join(HF_HOME, "datasets")
    return (Path(datasets), Path(HF_HUB_CACHE))


def _real_path(path: Path) -> str:
    """The path with all links followed."""
    # Of a million pictures in one folder only the last part is looked at.
    plain = os.path.join(_real_folder(str(path.parent)), path.name)
    ends_plainly = path.name not in ("", "..") and not os.path.islink(plain)
    return plain if ends_plainly else os.path.realpath(path)


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def _whole_of(folder: Path) -> Path:
    """The folder; in the hub's cache that of the whole repository, whose files are links into `blobs`."""
    for parent in (folder, *folder.parents):
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            return parent.parent
    return folder
