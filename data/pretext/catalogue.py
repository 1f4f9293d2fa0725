"""All tasks, listed by hand."""

from __future__ import annotations

from mmrl.data.pretext.contract import Task
from mmrl.data.pretext.tasks.anomaly import AnomalyGrounding
from mmrl.data.pretext.tasks.arrow_of_time import ArrowOfTime
from mmrl.data.pretext.tasks.camera import CameraMotion
from mmrl.data.pretext.tasks.charts import ChartReading, TableReading
from mmrl.data.pretext.tasks.clip_insertion import ClipInsertion
from mmrl.data.pretext.tasks.clock import Clock
from mmrl.data.pretext.tasks.correspondence import Correspondence
from mmrl.data.pretext.tasks.crop_location import CropLocation
from mmrl.data.pretext.tasks.depth_order import DepthOrder
from mmrl.data.pretext.tasks.differences import Differences
from mmrl.data.pretext.tasks.edit_program import EditProgram
from mmrl.data.pretext.tasks.frame_time import FrameTime
from mmrl.data.pretext.tasks.hop_chain import HopChain, PhotoHopChain
from mmrl.data.pretext.tasks.interleaved import InterleavedClips
from mmrl.data.pretext.tasks.jigsaw import Jigsaw
from mmrl.data.pretext.tasks.masked_fill import MaskedFill
from mmrl.data.pretext.tasks.maze import MazeExit, MazePath
from mmrl.data.pretext.tasks.mosaic import Mosaic
from mmrl.data.pretext.tasks.needle_clip import NeedleClip
from mmrl.data.pretext.tasks.np_problems import NP_TASKS
from mmrl.data.pretext.tasks.odd_tile import OddTile
from mmrl.data.pretext.tasks.overlay_count import OverlayCount
from mmrl.data.pretext.tasks.patchfit import PatchFit
from mmrl.data.pretext.tasks.position import RelativePosition
from mmrl.data.pretext.tasks.quality_order import QualityOrder
from mmrl.data.pretext.tasks.redraw import Redraw
from mmrl.data.pretext.tasks.rotation import Rotation
from mmrl.data.pretext.tasks.scene_count import SceneCompare, SceneCount
from mmrl.data.pretext.tasks.sprite_path import SpriteMoves, SpritePath
from mmrl.data.pretext.tasks.sprite_times import SpriteTimes
from mmrl.data.pretext.tasks.step_reorder import StepReorder
from mmrl.data.pretext.tasks.temporal_jigsaw import TemporalJigsaw
from mmrl.data.pretext.tasks.video_count import VideoCount

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
    TemporalJigsaw(),
    AnomalyGrounding(),
    NeedleClip(),
    FrameTime(),
    ClipInsertion(),
    ArrowOfTime(),
    InterleavedClips(),
    VideoCount(),
    SpriteTimes(),
    SpritePath(),
    SpriteMoves(),
    HopChain(),
    PhotoHopChain(),
    SceneCount(),
    SceneCompare(),
    MazeExit(),
    MazePath(),
    Clock(),
    ChartReading(),
    TableReading(),
    Redraw(),
    *NP_TASKS.values(),
    StepReorder(),
    MaskedFill(),
)


def find(name: str) -> Task:
    """The task of this name."""
    for task in TASKS:
        if task.name == name:
            return task
    raise ValueError(
        f"there is no pretext task {name!r}; the tasks are {sorted(task.name for task in TASKS)}."
    )
