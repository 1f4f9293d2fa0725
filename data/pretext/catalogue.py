"""All tasks, listed by hand."""

from __future__ import annotations

from data.pretext.contract import Task
from data.pretext.jigsaw import Jigsaw
from data.pretext.rotation import Rotation

TASKS: tuple[Task, ...] = (
    Jigsaw(),
    Rotation(),
)


def find(name: str) -> Task:
    """The task of this name."""
    for task in TASKS:
        if task.name == name:
            return task
    raise ValueError(f"there is no pretext task {name!r}; the tasks are {sorted(task.name for task in TASKS)}.")
