"""Which source a name stands for: drawn media, a folder, an archive, a saved or a hub data set."""

from __future__ import annotations

from pathlib import Path

from mmrl.data.pretext.stream.archives import hub_source, open_archive
from mmrl.data.pretext.stream.sources import DrawnSource, FolderSource, Source
from mmrl.ground.quarantine import Quarantine


def open_source(spec: str, quarantine: Quarantine | None = None) -> Source:
    """ "drawn" (or "drawn:7"), a folder, a .tar or .parquet file, a folder of such shards, a data set saved by
    `datasets`, or a hub name "owner/name" (with ":split" or ":subset:split")."""
    if spec == "drawn" or spec.startswith("drawn:"):
        return DrawnSource(int(spec.partition(":")[2] or 0))
    path = Path(spec).expanduser()
    if path.exists():
        if not path.is_file() and not path.is_dir():
            raise ValueError(
                f"{path} is neither a file nor a folder, but a device, FIFO or socket."
            )
        return open_archive(path, quarantine) or FolderSource(path, quarantine)
    if spec.count("/") == 1 and not spec.startswith((".", "/", "~")):
        return hub_source(spec)
    raise ValueError(
        f"{spec} does not exist; give a folder, a .tar or .parquet file, 'drawn', or a hub name owner/name."
    )
