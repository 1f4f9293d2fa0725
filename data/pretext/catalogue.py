"""All tasks, listed by hand."""

from __future__ import annotations

from data.pretext.anomaly import AnomalyGrounding
from data.pretext.arrow_of_time import ArrowOfTime
from data.pretext.camera import CameraMotion
from data.pretext.charts import ChartReading, TableReading
from data.pretext.clip_insertion import ClipInsertion
from data.pretext.clock import Clock
from data.pretext.contract import Task
from data.pretext.correspondence import Correspondence
from data.pretext.crop_location import CropLocation
from data.pretext.depth_order import DepthOrder
from data.pretext.differences import Differences
from data.pretext.edit_program import EditProgram
from data.pretext.frame_time import FrameTime
from data.pretext.hop_chain import HopChain, PhotoHopChain
from data.pretext.interleaved import InterleavedClips
from data.pretext.jigsaw import Jigsaw
from data.pretext.masked_fill import MaskedFill
from data.pretext.maze import MazeExit, MazePath
from data.pretext.mosaic import Mosaic
from data.pretext.needle_clip import NeedleClip
from data.pretext.np_problems import NP_TASKS
from data.pretext.odd_tile import OddTile
from data.pretext.overlay_count import OverlayCount
from data.pretext.patchfit import PatchFit
from data.pretext.position import RelativePosition
from data.pretext.quality_order import QualityOrder
from data.pretext.redraw import Redraw
from data.pretext.rotation import Rotation
from data.pretext.scene_count import SceneCompare, SceneCount
from data.pretext.sprite_path import SpriteMoves, SpritePath
from data.pretext.sprite_times import SpriteTimes
from data.pretext.step_reorder import StepReorder
from data.pretext.temporal_jigsaw import TemporalJigsaw
from data.pretext.video_count import VideoCount

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
    raise ValueError(f"there is no pretext task {name!r}; the tasks are {sorted(task.name for task in TASKS)}.")
