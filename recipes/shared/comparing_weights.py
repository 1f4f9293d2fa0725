"""`mmrl geometry RUN`: what a run changed in each matrix, as a table, as JSON, and as a picture by layer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from mmrl.ground.outputs import refuse_place
from mmrl.ground.progress import with_progress
from mmrl.model.weight_files import WeightFiles, model_folder, shared_names
from mmrl.training.geometry import Change, Geometry, alike, changed, compared

MEASURES: Mapping[str, str] = {
    "unchanged": "share of entries unchanged as bf16",
    "angle_left": "largest angle of the left directions, degrees",
    "angle_right": "largest angle of the right directions, degrees",
    "drift": "drift of the singular values",
    "principal": "overlap of what changed with the principal entries",
    "low": "overlap of what changed with the smallest entries",
}
LAYER = re.compile(r"(?:^|\.)(?:layers|blocks)\.(\d+)\.")
CELL, LEFT, TOP = 16, 190, 34


@dataclass(frozen=True)
class Ends:
    """A model before and after."""

    before: WeightFiles
    after: WeightFiles


def ends_of(place: Path, before: str = "") -> Ends:
    """The two ends of a run's folder, or of a model's folder with its start named. Raises ValueError."""
    config = place / "config.json"
    run = (place / "model").is_dir()
    if not run and not before:
        raise ValueError(
            f"{place} is no folder of a finished run (it holds no model/); name a run, or a model's folder together "
            "with --before and the model that it comes from."
        )
    if before:
        return Ends(
            WeightFiles(model_folder(before)), WeightFiles(place / "model" if run else place)
        )
    try:
        source = json.loads(config.read_text(encoding="utf-8"))["settings"]["policy"]["source"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{config} does not say which model the run began with ({type(error).__name__}); name it with --before."
        ) from error
    return Ends(WeightFiles(model_folder(source)), WeightFiles(place / "model"))


def geometry_of(ends: Ends, how: Geometry, other: Ends | None = None) -> dict[str, Any]:
    """Every parameter that both ends have, one at a time; with `other`, how alike the changes of two runs are."""
    names = list(shared_names(ends.before, ends.after))
    rows: list[dict[str, Any]] = []
    for name in with_progress(names, len(names), "Matrices compared"):
        before, after = ends.before.read(name), ends.after.read(name)
        row = plain(compared(name, before, after, how))
        if other is not None and name in other.before and name in other.after:
            mine = changed(before, after, how.tolerance)
            row |= _beside(mine, other.before.read(name), other.after.read(name), how)
        rows.append(row)
    return {"settings": asdict(how), "parameters": rows, "summary": summary(rows)}


def _beside(mine: Tensor, start: Tensor, end: Tensor, how: Geometry) -> dict[str, float | None]:
    """How alike two runs' changes of one parameter are; nothing if its shape differs."""
    if start.shape != mine.shape or end.shape != mine.shape:
        return {}
    pair = alike(mine, changed(start, end, how.tolerance))
    index, chance = (None if math.isnan(number) else number for number in pair)
    return {"jaccard": index, "jaccard_chance": chance}


def plain(change: Change) -> dict[str, Any]:
    """As JSON: what is not defined is null."""
    row = asdict(change)
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over parameters of one kind (their name without the layer), and over all matrices."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(kind_of(row["name"]), []).append(row)
    kinds["all matrices"] = [row for row in rows if len(row["shape"]) > 1]
    found: dict[str, dict[str, float]] = {}
    for kind, own in kinds.items():
        means = {}
        for measure in (*MEASURES, "jaccard", "jaccard_chance"):
            known = [row[measure] for row in own if row.get(measure) is not None]
            if known:
                means[measure] = fmean(known)
        found[kind] = means
    return found


def kind_of(name: str) -> str:
    """The name without the number of its layer."""
    return re.sub(r"(^|\.)(layers|blocks)\.\d+\.", r"\1\2.*.", name)


def layer_of(name: str) -> int | None:
    """The number of its layer, if it has one."""
    found = LAYER.search(name)
    return int(found[1]) if found else None


def table(found: Mapping[str, dict[str, float]]) -> str:
    """One line per kind of parameter."""
    width = max(len(kind) for kind in found)
    columns = [
        m
        for m in (*MEASURES, "jaccard", "jaccard_chance")
        if any(m in x for x in found.values())
    ]
    lines = [f"{'':<{width}}  " + "  ".join(f"{name:>14}" for name in columns)]
    for kind, means in found.items():
        cells = (f"{means[name]:>14.4f}" if name in means else f"{'–':>14}" for name in columns)
        lines.append(f"{kind:<{width}}  " + "  ".join(cells))
    return "\n".join(lines)


def picture(rows: Sequence[Mapping[str, Any]], measure: str) -> str:
    """SVG: a row per kind of matrix, a column per layer, darker for more; each cell says its number."""
    cells: dict[tuple[str, int], float] = {}
    for row in rows:
        layer = layer_of(row["name"])
        if layer is not None and row.get(measure) is not None:
            cells[kind_of(row["name"]), layer] = row[measure]
    kinds = sorted({kind for kind, _ in cells})
    layers = 1 + max((layer for _, layer in cells), default=0)
    low, high = min(cells.values(), default=0.0), max(cells.values(), default=1.0)
    longest = max(map(len, kinds), default=0)
    left = max(LEFT, 6 * longest + 10)
    width, height = left + CELL * layers + 10, TOP + CELL * len(kinds) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="10">',
        f'<text x="4" y="14" font-size="12">{escape(MEASURES[measure])}: {low:.4g} (light) to {high:.4g} (dark)</text>',
    ]
    for line, kind in enumerate(kinds):
        y = TOP + CELL * line
        parts.append(f'<text x="4" y="{y + 12}">{escape(kind)}</text>')
        for layer in range(layers):
            value = cells.get((kind, layer))
            if value is None:
                continue
            shade = 235 - int(195 * (value - low) / (high - low)) if high > low else 235
            colour = f"rgb({shade},{shade},255)"
            parts.append(
                f'<rect x="{left + CELL * layer}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" fill="{colour}">'
                f"<title>{escape(kind)}, layer {layer}: {value:.4g}</title></rect>"
            )
    return "\n".join([*parts, "</svg>"]) + "\n"


def written(found: Mapping[str, Any], output: Path) -> list[Path]:
    """geometry.json and a picture per measure in a folder, made if it is not there; what was written."""
    refuse_place(output, "--output")
    output.mkdir(parents=True, exist_ok=True)
    files = [output / "geometry.json"]
    files[0].write_text(json.dumps(found, indent=1), encoding="utf-8")
    for measure in MEASURES:
        files.append(output / f"{measure}.svg")
        files[-1].write_text(picture(found["parameters"], measure), encoding="utf-8")
    return files
