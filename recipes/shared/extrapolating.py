"""`mmrl extrapolate RUN`: the matrices of a run at its checkpoints, and the model that they are heading for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmrl import LoRA
from mmrl.ground.checksums import damage
from mmrl.ground.outputs import refuse_place
from mmrl.model.policy import Policy
from mmrl.recipes.shared.exporting import stored_type
from mmrl.recipes.shared.opening import Load, open_policy, policy_settings
from mmrl.training import checkpoint, shards
from mmrl.training.extrapolation import NExt, Trajectories, moved, targets_within
from mmrl.training.weights_over_steps import Read, reader

A, B = ".lora_A.default.weight", ".lora_B.default.weight"


@dataclass(frozen=True)
class Matrix:
    """A weight that training moves: a parameter, or the weight that a LoRA pair is added to."""

    name: str
    weight: nn.Parameter
    at: Callable[[Read], Tensor]
    """The matrix at a checkpoint; of an adapted one what the pair adds."""


def extrapolated(run: Path, output: Path, settings: NExt) -> tuple[int, int]:
    """Write the model into a new folder; how many matrices were moved and how many had never moved.

    Raises ValueError for a run that has too few checkpoints or damaged ones.
    """
    _refuse_output(output)
    steps = usable_steps(run, settings.horizon)
    folders = [run / "checkpoints" / f"step-{step}" for step in steps]
    policy = _as_it_began(run, folders[-1])
    named = policy.named_parameters()
    reads = [reader(folder, named) for folder in folders]
    matrices = _matrices(policy)
    learned = Trajectories(settings)
    resting = 0
    for matrix in matrices:
        # The start is the model that the run began with: a run need not have kept a checkpoint of step 0.
        started = _started(matrix, policy)
        seen = [started, *(matrix.at(read) for read in reads)]
        resting += not learned.learn(matrix.name, [0, *steps], seen)
    restore = (
        shards.restore_weights
        if shards.is_sharded_checkpoint(folders[-1])
        else checkpoint.restore_weights
    )
    restore(folders[-1], named)
    _move(matrices, learned, settings.alpha)
    policy.save(output, merge=policy.has_adapter)
    return len(matrices) - resting, resting


def usable_steps(run: Path, horizon: int) -> list[int]:
    """Steps of the run's checkpoints behind its start, in order. Raises ValueError for what cannot be used."""
    if not run.is_dir():
        raise ValueError(f"There is no run in {run}; name the folder that --run.output named.")
    folder = run / "checkpoints"
    steps = [step for step in checkpoint.steps_in(folder) if step > 0]
    for step in steps:
        if problem := damage(folder / f"step-{step}"):
            raise ValueError(
                f"{folder / f'step-{step}'} is damaged: {problem}. Put it back from a copy, or move it away."
            )
    if not targets_within([0, *steps], horizon):
        found = f"checkpoints of the steps {steps}" if steps else "no checkpoints"
        raise ValueError(
            f"{run} has {found}, and none of them lies {horizon} steps (--extrapolation.horizon) before another; give "
            "a horizon that does, or train with --run.keep 0 (all checkpoints stay) and a small --run.save-every."
        )
    return steps


def _refuse_output(output: Path) -> None:
    refuse_place(output, "--output")
    if output.exists():
        raise ValueError(
            f"--output {output} is there already; name a folder that is not, nothing is overwritten."
        )


def _as_it_began(run: Path, last: Path) -> Policy:
    """The model with the weights that the run started from."""
    stored = policy_settings(last)
    load = Load(device="cpu", dtype=stored_type(run))
    if "freeze" in stored:
        load = Load(device="cpu", dtype=stored_type(run), freeze=stored["freeze"])
    lora = LoRA(**stored["lora"]) if stored.get("lora") else LoRA()
    return open_policy(str(stored["source"]), load, lora)


def _matrices(policy: Policy) -> list[Matrix]:
    """Every parameter that is trained; the two of a LoRA pair count as the matrix that they make."""
    found: list[Matrix] = []
    for name, parameter in policy.named_parameters():
        if name.endswith(A):
            found.append(_adapted(policy, name.removesuffix(A)))
        elif not name.endswith(B):
            found.append(Matrix(name, parameter, _plain(name)))
    return found


def _plain(name: str) -> Callable[[Read], Tensor]:
    return lambda read: read(name)


def _adapted(policy: Policy, name: str) -> Matrix:
    layer: Any = policy.model.get_submodule(name)
    base, scale = layer.base_layer, layer.scaling["default"]

    def added(read: Read) -> Tensor:
        return scale * (read(name + B).float() @ read(name + A).float())

    return Matrix(name, base.weight, added)


def _started(matrix: Matrix, policy: Policy) -> Tensor:
    """The matrix before any step."""
    now = {name: parameter.detach() for name, parameter in policy.named_parameters()}
    return matrix.at(now.__getitem__)


def _move(matrices: Sequence[Matrix], learned: Trajectories, alpha: float) -> None:
    weights = {matrix.name: matrix.weight for matrix in matrices}
    for name, vectors in learned.predicted():
        # Inside the loop, for predictors are fitted while it runs.
        with torch.no_grad():
            weights[name].copy_(moved(weights[name], vectors, alpha))
