"""Curves: points are thinned, smoothed and laid out here, and drawn as SVG that needs no script.

A script on the page adds reading values and other smoothing, from the same thinned points. A curve has at most `POINTS`
points: beyond that, neighbours are joined, and their mean is drawn over the band from their smallest to their largest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from mmrl.ground.printable import printable
from mmrl.report.run_files import RunFiles, mapping

POINTS = 300
"""Most points of a curve."""
SPAN = 20
"""A curve is smoothed over this part of its points: 20 is a twentieth."""
DOTS = 12
"""Curves of at most so many points show them."""
COLOURS = 8
"""Curves of one chart that are told apart by colour."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360.0, 160.0, 46.0, 8.0, 8.0, 20.0
"""Of a chart and of its margins, in its own units."""


@dataclass(frozen=True)
class Point:
    """One or several neighbouring steps."""

    step: float
    mean: float
    low: float
    high: float
    whole: bool = False
    """Is the band an interval, which a chart shows from end to end?"""


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    label: str
    points: Sequence[Point]
    colour: int = 0

    @property
    def last(self) -> float:
        """The last value, for the legend."""
        return self.points[-1].mean


@dataclass(frozen=True)
class Chart:
    """Curves over the same steps."""

    title: str
    curves: Sequence[Curve]

    def svg(self) -> Mapping[str, Any]:
        """What the template draws: paths, ticks and the frame, all in the chart's own units."""
        frame = Frame.around(self.curves)
        drawn = []
        for curve in self.curves:
            smooth = smoothed([point.mean for point in curve.points])
            steps = [point.step for point in curve.points]
            drawn.append(
                {
                    "label": curve.label,
                    "colour": curve.colour % COLOURS,
                    "band": frame.band(curve.points),
                    "line": frame.path(steps, [point.mean for point in curve.points]),
                    "smooth": frame.path(steps, smooth),
                    "dots": self._dots(frame, curve),
                }
            )
        return {"curves": drawn, "rows": frame.rows(), "columns": frame.columns()}

    def _dots(self, frame: Frame, curve: Curve) -> list[tuple[float, float]]:
        """Places of the measurements, where they are few enough to be told apart."""
        points = curve.points if len(curve.points) <= DOTS else ()
        return [frame.place(point.step, point.mean) for point in points]

    def payload(self) -> dict[str, Any]:
        """What the script reads: the same points, and where they lie."""
        frame = Frame.around(self.curves)
        return {
            "frame": [frame.first, frame.last, frame.low, frame.high],
            "curves": [
                {
                    "label": printable(curve.label),
                    "x": [_short(point.step) for point in curve.points],
                    "y": [_short(point.mean) for point in curve.points],
                }
                for curve in self.curves
            ],
        }


@dataclass(frozen=True)
class Frame:
    """The range of steps and values that a chart shows."""

    first: float
    last: float
    low: float
    high: float

    @classmethod
    def around(cls, curves: Sequence[Curve]) -> Frame:
        """The frame that holds means and intervals; other bands may be cut off, lest one outlier flatten the rest."""
        points = [point for curve in curves for point in curve.points]
        steps = [point.step for point in points]
        values = [point.mean for point in points]
        values += [end for point in points if point.whole for end in (point.low, point.high)]
        low, high = min(values), max(values)
        room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
        first, last = min(steps), max(steps)
        return cls(first, last if last > first else first + 1.0, low - room, high + room)

    def place(self, step: float, value: float) -> tuple[float, float]:
        """A point in the chart's units."""
        across = (step - self.first) / (self.last - self.first)
        up = (value - self.low) / (self.high - self.low)
        # Values outside (of a band) are cut at the border.
        up = min(max(up, 0.0), 1.0)
        x = LEFT + across * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    def path(self, steps: Sequence[float], values: Sequence[float]) -> str:
        """The line through points, as SVG writes it."""
        places = [self.place(*pair) for pair in zip(steps, values, strict=True)]
        return "M" + "L".join(f"{x:g} {y:g}" for x, y in places)

    def band(self, points: Sequence[Point]) -> str:
        """The area between the smallest and the largest values; "" where they are the same."""
        if all(point.low == point.high for point in points):
            return ""
        above = [(point.step, point.high) for point in points]
        below = [(point.step, point.low) for point in reversed(points)]
        steps, values = zip(*above, *below, strict=True)
        return f"{self.path(steps, values)}Z"

    def rows(self) -> list[dict[str, Any]]:
        """Horizontal lines at round values."""
        rows: list[dict[str, Any]] = []
        for mark in ticks(self.low, self.high, 4):
            _, y = self.place(self.first, mark)
            rows.append({"y": y, "label": label(mark)})
        return rows

    def columns(self) -> list[dict[str, Any]]:
        """Marks at round steps."""
        columns: list[dict[str, Any]] = []
        border = WIDTH - RIGHT - 12
        for mark in ticks(self.first, self.last, 5):
            # Between two steps there is nothing.
            if mark != round(mark):
                continue
            x, _ = self.place(mark, self.low)
            # At the border a centred label would be cut off.
            anchor = "end" if x > border else "middle"
            columns.append({"x": x, "label": label(mark), "anchor": anchor})
        return columns


@dataclass(frozen=True)
class ChartGroup:
    """Charts under one heading."""

    title: str
    charts: Sequence[Chart]
    open: bool = True
    constant: Sequence[tuple[str, str]] = ()
    """Metrics that never changed, with their value: said in a line instead of drawn."""


GROUPS: Mapping[str, tuple[str, bool]] = {
    "reward": ("Reward and its parts", True),
    "eval": ("Held-out evaluation", True),
    "loss": ("Loss and its parts", True),
    "branch": ("Branches", True),
    "policy": ("Policy", True),
    "answer": ("Answers", True),
    "probe": ("Blind probe", True),
    "optim": ("Optimiser", False),
    "grad_norm": ("Gradient norm of each term", False),
    "data": ("Data", False),
    "time": ("Seconds", False),
    "memory": ("Memory (MiB)", False),
}
"""First part of a metric's name -> heading, and whether it is open at first; others are headed by their own name."""
LAST = ("optim", "grad_norm", "data", "time", "memory", "tokens", "patches", "scored", "views")
"""What comes last."""
SPREAD = ("reward/std", "reward/group_std", "reward/even_groups")
"""Of the reward, but none of its parts."""
HIDDEN = ("alarm/", "report/", "eval/accuracy_error")
"""Not drawn: told in words, or part of another curve."""
ERRORS = 1.96
"""Standard errors on either side of an accuracy (95 %)."""


@dataclass(frozen=True)
class _Named:
    """A metric's curve in each run that has it."""

    name: str
    runs: Mapping[str, Sequence[Point]] = field(default_factory=dict)

    @property
    def constant(self) -> float | None:
        """The value of a metric that has only one, over more than one step; else None."""
        points = list(chain(*self.runs.values()))
        low = min(point.low for point in points)
        high = max(point.high for point in points)
        return low if len(points) > 1 and low == high else None

    def chart(self, order: Sequence[str]) -> Chart:
        """One curve per run, in the run's colour."""
        curves: list[Curve] = []
        for run, points in self.runs.items():
            curves.append(Curve(run, points, order.index(run)))
        return Chart(self.name, curves)


def chart_groups(runs: Sequence[RunFiles], labels: Sequence[str]) -> list[ChartGroup]:
    """All metrics of some runs: joined charts of the reward's and the loss's parts for one run, then one per metric."""
    found: dict[str, list[_Named]] = {}
    for named in _all_metrics(runs, labels):
        prefix = named.name.partition("/")[0]
        found.setdefault(prefix, []).append(named)
    groups = []
    for prefix in sorted(found, key=_rank):
        joined: list[Chart] = []
        # Several runs are told apart by colour, which one chart of several metrics needs for these.
        if len(runs) == 1:
            joined = list(_joined(prefix, found[prefix], runs[0]))
        groups.append(_group(prefix, found[prefix], joined, labels))
    return groups


def _all_metrics(runs: Sequence[RunFiles], labels: Sequence[str]) -> Iterator[_Named]:
    """Every metric that is drawn, with its curve in each run that has one."""
    known: set[str] = set()
    for run in runs:
        known.update(run.names())
    for name in sorted(known):
        if name.startswith(HIDDEN):
            continue
        curves: dict[str, Sequence[Point]] = {}
        for run, shown in zip(runs, labels, strict=True):
            points = _points(run, name)
            if points:
                curves[shown] = points
        if curves:
            yield _Named(name, curves)


def _group(
    prefix: str, metrics: Sequence[_Named], joined: Sequence[Chart], labels: Sequence[str]
) -> ChartGroup:
    """The joined charts, then one for each metric that is not in them, and those that never change in words."""
    title, is_open = GROUPS.get(prefix, (prefix, prefix not in LAST))
    drawn: set[str] = set()
    # Terms of the loss differ by powers of ten, so each is drawn alone as well.
    for chart in joined if prefix != "loss" else ():
        drawn.update(curve.label for curve in chart.curves)
    alone: list[Chart] = []
    resting: list[tuple[str, str]] = []
    for named in metrics:
        value = named.constant
        if value is not None:
            resting.append((named.name, label(value)))
        elif named.name not in drawn:
            alone.append(named.chart(labels))
    return ChartGroup(title, [*joined, *alone], is_open, resting)


def _joined(prefix: str, named: Sequence[_Named], run: RunFiles) -> Iterator[Chart]:
    """Charts that show a whole with its parts."""
    by_name = {one.name: next(iter(one.runs.values())) for one in named}
    if prefix == "reward":
        weights = mapping(run.settings.get("rewards"))
        parts = [f"reward/{name}" for name in weights]
        if not parts:  # settings that are lost: all that can be a part
            parts = [name for name in by_name if name not in SPREAD]
        wanted = ["reward/total", *parts]
    elif prefix in ("loss", "probe", "time"):
        wanted = [name for name in by_name if prefix != "probe" or "accuracy" in name]
    else:
        return
    shown = [name for name in dict.fromkeys(wanted) if name in by_name][:COLOURS]
    if len(shown) > 1:
        curves = [Curve(name, by_name[name], place) for place, name in enumerate(shown)]
        yield Chart(f"{prefix}: all parts", curves)


def _points(run: RunFiles, name: str) -> list[Point]:
    """The points of a metric; the band of an accuracy is its 95 % interval."""
    pairs = run.curve(name)
    if name != "eval/accuracy" or len(pairs) > POINTS:
        return thinned(pairs)
    errors = dict(run.curve("eval/accuracy_error"))
    widths = {step: ERRORS * errors.get(step, 0.0) for step, _ in pairs}
    points: list[Point] = []
    for step, share in pairs:
        width = widths[step]
        points.append(Point(step, share, share - width, share + width, whole=True))
    return points


def _rank(prefix: str) -> tuple[int, str]:
    known = [name for name in GROUPS if name not in LAST]
    if prefix in known:
        return known.index(prefix), prefix
    place = len(known)
    # The method's own metrics stand between what all runs have and what is rarely looked at.
    if prefix in LAST:
        place += 1 + LAST.index(prefix)
    return place, prefix


def thinned(pairs: Sequence[tuple[float, float]], most: int = POINTS) -> list[Point]:
    """Neighbours joined until at most `most` points are left; the first and the last step stay where they are."""
    count = len(pairs)
    if count <= most:
        return [Point(step, value, value, value) for step, value in pairs]
    points = []
    for place in range(most):
        begin, end = place * count // most, (place + 1) * count // most
        values = [value for _, value in pairs[begin:end]]
        step = pairs[begin if place == 0 else end - 1][0]
        mean = sum(values) / len(values)
        points.append(Point(step, mean, min(values), max(values)))
    return points


def smoothed(values: Sequence[float], span: float | None = None) -> list[float]:
    """Exponential mean over about `span` points (a twentieth of them by default), unbiased at the start."""
    span = max(1.0, len(values) / SPAN) if span is None else span
    keep = 1.0 - 2.0 / (span + 1.0)
    total = weight = 0.0
    out = []
    for value in values:
        total = keep * total + value
        weight = keep * weight + 1.0
        out.append(total / weight)
    return out


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values between two numbers, `about` as many as asked for."""
    rough = (high - low) / max(1, about)
    unit = 10.0 ** math.floor(math.log10(rough))
    steps = [unit * factor for factor in (1.0, 2.0, 5.0, 10.0)]
    step = next(step for step in steps if step >= rough)
    # A little slack: a round value at the end may be a bit beyond it after division.
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def label(value: float) -> str:
    """A number in few characters."""
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.1e}"
    return f"{value:.4g}"


def ends(pairs: Sequence[tuple[int, float]]) -> tuple[float, float] | None:
    """Means of the first and of the last tenth of a curve; None for none."""
    if not pairs:
        return None
    values = [value for _, value in pairs]
    few = max(1, len(values) // 10)
    return sum(values[:few]) / few, sum(values[-few:]) / few


def _short(value: float) -> float:
    """Six digits: enough to read a chart."""
    return float(f"{value:.6g}")
