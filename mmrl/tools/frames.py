"""Select frames of a clip: they come back as pictures, one each, in the clip's own resolution.

Source: VerlTool's and Pixel Reasoner's `select_frames` (github.com/TIGER-AI-Lab/verl-tool, commit 980962b4). Departure:
too many frames, or one that is not there, are refused with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmrl.ground.calls import Action
from mmrl.ground.require import require
from mmrl.tools.called import FormTool
from mmrl.tools.crop import TARGET
from mmrl.tools.reading import Form, whole_number
from mmrl.tools.tool import IMAGE, BadAction, Observation, Trajectory
from mmrl.types import Media

FRAMES = "target_frames"
"""Argument with the numbers of frames, from 1."""
BY_FRAMES = Form(FRAMES)


@dataclass(frozen=True)
class SelectFrames(FormTool):
    """Frames of a clip as pictures."""

    name: str = "select_frames"
    form: Form = BY_FRAMES
    most: int = 8
    """Most frames of a call."""

    def __post_init__(self) -> None:
        require(self, most=(1 <= self.most <= 4096, "1 to 4,096"))
        super().__post_init__()

    def instructions(self) -> str:
        """What a prompt says about it."""
        example = self.form.example(self.name, "[1, 5, 9]")
        return (
            f"To see frames of a clip as pictures, write {example} - at most {self.most} frames, numbered from 1. With "
            f'"{TARGET}": n of clip n among all pictures and clips; without, of the first clip.'
        )

    def act(self, action: Action, trajectory: Trajectory) -> Observation:
        """Show the frames."""
        clips = [n for n, medium in enumerate(trajectory.media, 1) if medium.is_video]
        if not clips:
            raise BadAction("There is no clip.")
        number = whole_number(action.arguments, TARGET, clips[0])
        clip = trajectory.picture(number)
        if number not in clips:
            raise BadAction(f"Picture {number} is no clip; clips have the numbers {clips}.")
        chosen = self._chosen(action, len(clip.frames))
        assert clip.times is not None
        said = [f"Frame {frame} at {clip.times[frame - 1]:.1f} s:\n{IMAGE}" for frame in chosen]
        pictures = tuple(Media(clip.frames[frame - 1 : frame].clone()) for frame in chosen)
        return Observation("\n".join(said), pictures, found={"of": number, "frames": chosen})

    def _chosen(self, action: Action, count: int) -> list[int]:
        """Numbers of the frames, rising, each once. Raises BadAction."""
        given = action.arguments.get(FRAMES)
        whole = isinstance(given, list) and all(type(one) is int for one in given)
        if not given or not whole:
            raise BadAction(f'"{FRAMES}" is {given!r:.100}; give numbers, for example [1, 5].')
        wrong = [one for one in given if not 1 <= one <= count]
        if wrong:
            raise BadAction(
                f"There is no frame {wrong[0]}; the clip has the frames 1 to {count}."
            )
        chosen = sorted(set(given))
        if len(chosen) > self.most:
            raise BadAction(f"{len(chosen)} frames are too many; take at most {self.most}.")
        return chosen
