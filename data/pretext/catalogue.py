"""All tasks, listed by hand."""

from __future__ import annotations

from data.pretext.camera import CameraMotion
from data.pretext.contract import Task
from data.pretext.correspondence import Correspondence
from data.pretext.crop_location import CropLocation
from data.pretext.depth_order import DepthOrder
from data.pretext.differences import Differences
from data.pretext.edit_program import EditProgram
from data.pretext.jigsaw import Jigsaw
from data.pretext.mosaic import Mosaic
from data.pretext.odd_tile import OddTile
from data.pretext.overlay_count import OverlayCount
from data.pretext.patchfit import PatchFit
from data.pretext.position import RelativePosition
from data.pretext.quality_order import QualityOrder
from data.pretext.rotation import Rotation

TASKS: tuple[Task, ...] = (
    Jigsaw(),
    Rotation(),
    PatchFit(),
    OddTile(),
    Differences(),
    RelativePosition(),
    CropLocation(),
    Mosaic(),
    EditProgram(),
    Correspondence(),
    CameraMotion(),
    QualityOrder(),
    OverlayCount(),
    DepthOrder(),
)


def find(name: str) -> Task:
    """The task of this name."""
    for task in TASKS:
        if task.name == name:
            return task
    raise ValueError(f"there is no pretext task {name!r}; the tasks are {sorted(task.name for task in TASKS)}.")
