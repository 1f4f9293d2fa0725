"""All tasks, listed by hand."""

from __future__ import annotations

from mmrl.data.pretext.contract import Task
from mmrl.data.pretext.tasks.anomaly import AnomalyGroundingTask
from mmrl.data.pretext.tasks.arrow_of_time import ArrowOfTimeTask
from mmrl.data.pretext.tasks.brick_stack import BrickStackTask
from mmrl.data.pretext.tasks.camera import CameraMotionTask
from mmrl.data.pretext.tasks.causal_query import CausalQueryTask
from mmrl.data.pretext.tasks.charts import ChartReadingTask, TableReadingTask
from mmrl.data.pretext.tasks.clip_insertion import ClipInsertionTask
from mmrl.data.pretext.tasks.clock import ClockTask
from mmrl.data.pretext.tasks.correspondence import CorrespondenceTask
from mmrl.data.pretext.tasks.crop_location import CropLocationTask
from mmrl.data.pretext.tasks.depth_order import DepthOrderTask
from mmrl.data.pretext.tasks.differences import DifferencesTask
from mmrl.data.pretext.tasks.edit_program import EditProgramTask
from mmrl.data.pretext.tasks.frame_time import FrameTimeTask
from mmrl.data.pretext.tasks.hop_chain import HopChainTask, PhotoHopChainTask
from mmrl.data.pretext.tasks.interleaved import InterleavedClipsTask
from mmrl.data.pretext.tasks.jigsaw import JigsawTask
from mmrl.data.pretext.tasks.masked_fill import MaskedFillTask
from mmrl.data.pretext.tasks.maze import MazeExitTask, MazePathTask
from mmrl.data.pretext.tasks.mosaic import MosaicTask
from mmrl.data.pretext.tasks.needle_clip import NeedleClipTask
from mmrl.data.pretext.tasks.np_problems import NP_TASKS
from mmrl.data.pretext.tasks.odd_tile import OddTileTask
from mmrl.data.pretext.tasks.overlay_count import OverlayCountTask
from mmrl.data.pretext.tasks.patchfit import PatchFitTask
from mmrl.data.pretext.tasks.position import RelativePositionTask
from mmrl.data.pretext.tasks.quality_order import QualityOrderTask
from mmrl.data.pretext.tasks.redraw import RedrawTask
from mmrl.data.pretext.tasks.rotation import RotationTask
from mmrl.data.pretext.tasks.scene_count import SceneCompareTask, SceneCountTask
from mmrl.data.pretext.tasks.sprite_path import SpriteMovesTask, SpritePathTask
from mmrl.data.pretext.tasks.sprite_times import SpriteTimesTask
from mmrl.data.pretext.tasks.step_reorder import StepReorderTask
from mmrl.data.pretext.tasks.temporal_jigsaw import TemporalJigsawTask
from mmrl.data.pretext.tasks.video_count import VideoCountTask

TASKS: tuple[Task, ...] = (
    JigsawTask(),
    RotationTask(),
    PatchFitTask(),
    OddTileTask(),
    DifferencesTask(),
    RelativePositionTask(),
    CropLocationTask(),
    MosaicTask(),
    EditProgramTask(),
    CorrespondenceTask(),
    CameraMotionTask(),
    QualityOrderTask(),
    OverlayCountTask(),
    DepthOrderTask(),
    TemporalJigsawTask(),
    AnomalyGroundingTask(),
    NeedleClipTask(),
    FrameTimeTask(),
    ClipInsertionTask(),
    ArrowOfTimeTask(),
    InterleavedClipsTask(),
    VideoCountTask(),
    SpriteTimesTask(),
    SpritePathTask(),
    SpriteMovesTask(),
    HopChainTask(),
    PhotoHopChainTask(),
    SceneCountTask(),
    SceneCompareTask(),
    MazeExitTask(),
    MazePathTask(),
    ClockTask(),
    ChartReadingTask(),
    TableReadingTask(),
    RedrawTask(),
    *NP_TASKS.values(),
    BrickStackTask(),
    CausalQueryTask(),
    StepReorderTask(),
    MaskedFillTask(),
)


def find(name: str) -> Task:
    """The task of this name."""
    for task in TASKS:
        if task.name == name:
            return task
    raise ValueError(
        f"there is no pretext task {name!r}; the tasks are {sorted(task.name for task in TASKS)}."
    )
