"""The Path Not Taken (arXiv 2511.08567): where a run has changed its model. Trains nothing.

the run that was started last:         python -m recipes.update_geometry
any run (also mmrl geometry RUN):      python -m recipes.update_geometry --model runs/mine
two models of one kind:                … --model tuned --before Qwen/Qwen2.5-VL-7B-Instruct
two runs with each other:              … --model runs/mine --against runs/other

Start and end of a run are compared matrix by matrix (mmrl/training/geometry.py): entries unchanged as bf16, angles of
the singular directions, drift of the singular values, and whether what changed lies among the principal or among the
smallest entries. Folders of several files are read one matrix at a time; an adapter counts with what it adds. Written:
geometry.json and a picture by layer for each measure.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from mmrl.ground.printable import show, tell
from mmrl.recipes.shared.comparing_weights import ends_of, geometry_of, table, written
from mmrl.recipes.shared.launch import Preset, flag, launch
from mmrl.recipes.shared.machines import ONE_LARGE
from mmrl.recipes.shared.opening import EMBEDDED
from mmrl.training.geometry import Geometry
from mmrl.training.run import LATEST, RUNS

LAST = f"{RUNS}/{LATEST}"
"""The run that was started last."""
PRESETS = {
    EMBEDDED: Preset("the run that was started last, a tiny model", model=LAST),
    "published": Preset("the paper's measures, any model", 7.0, machine=ONE_LARGE),
}


def main(
    model: str = LAST,
    before: str = "",
    against: str = "",
    geometry: Geometry = Geometry(tolerance=1e-3, rank=32, fraction=0.5),
    output: Path | None = None,
) -> None:
    """Compare the weights of a run's two ends.

    Args:
        model: Folder of a finished run, or of a model.
        before: The model that it comes from, a folder or hub id; of a run, the one that it began with.
        against: Another finished run, whose changes are compared with these.
        geometry: How matrices are compared.
        output: Folder to write into; MODEL/geometry by default.
    """
    other = ends_of(Path(against)) if against else None
    found = geometry_of(ends_of(Path(model), before), geometry, other)
    tell(table(found["summary"]))
    for file in written(found, output or Path(model) / "geometry"):
        show(str(file))


def start(args: Sequence[str]) -> None:
    """The command line; without a preset the published one, and the last run without a --model."""
    given = list(args)
    if flag(given, "model") is not None and (not given or given[0].startswith("-")):
        given.insert(0, "published")
    launch(main, PRESETS, given)


if __name__ == "__main__":
    start(sys.argv[1:])
