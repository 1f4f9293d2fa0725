"""NExt (arXiv 2604.11446): the model that a finished run is heading for. Trains no policy.

the run that was started last:       python -m recipes.next_extrapolation
any run (also mmrl extrapolate RUN): python -m recipes.next_extrapolation --model runs/mine --output heading
as published, on a run of yours:     python -m recipes.next_extrapolation published --model runs/mine

The run needs checkpoints: train it with --run.keep 0 and --run.save-every 10. Small predictors learn from the largest
direction of each matrix how its changes go on, and add --extrapolation.alpha times what they expect of the next
--extrapolation.horizon steps. Which alpha is best, rows say that were not trained on: `mmrl eval FOLDER`. Runs of LoRA
and of all weights, of one process and of several; an adapter is merged into what is written.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from mmrl.ground.printable import show, tell
from mmrl.recipes.shared.extrapolating import extrapolated
from mmrl.recipes.shared.launch import Preset, flag, launch
from mmrl.recipes.shared.machines import ONE_LARGE
from mmrl.recipes.shared.opening import EMBEDDED
from mmrl.training.extrapolation import NExt
from mmrl.training.run import LATEST, RUNS

LAST = f"{RUNS}/{LATEST}"
"""The run that was started last."""
PRESETS = {
    EMBEDDED: Preset(
        "the run that was started last, a tiny model",
        model=LAST,
        extrapolation={"horizon": 10, "epochs": 200, "lr": 1e-3},
    ),
    "published": Preset("NExt: 1000 epochs, 50 steps ahead", 7.0, machine=ONE_LARGE),
}


def main(
    model: str = LAST,
    extrapolation: NExt = NExt(),
    output: Path | None = None,
) -> None:
    """Extrapolate the weights of a run.

    Args:
        model: A run's folder with several checkpoints.
        extrapolation: How far, and how the predictors are fitted.
        output: Folder to write, which must not be there yet; RUN/extrapolated by default.
    """
    target = output or Path(model) / "extrapolated"
    moved, resting = extrapolated(Path(model), target, extrapolation)
    tell(f"{moved} parameters were moved; {resting} had not moved in training and stay.")
    show(str(target))


def start(args: Sequence[str]) -> None:
    """The command line; without a preset the published one, and the last run without a --model."""
    given = list(args)
    if flag(given, "model") is not None and (not given or given[0].startswith("-")):
        given.insert(0, "published")
    launch(main, PRESETS, given)


if __name__ == "__main__":
    start(sys.argv[1:])
