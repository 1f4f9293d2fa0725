"""The strategies behind the auditors: functions (task, sample) → answer body or None.

They see what the model sees (pixels, times, labels, words) and the knobs that the prompt tells; never the truth, only
the shape of an answer: how many entries, which options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from PIL import Image

from mmrl.data.pretext.audit.picture_cues import (
    blockiness,
    chained,
    colours,
    edge_costs,
    frame_jumps,
    sharpness,
    solve_grid,
)
from mmrl.data.pretext.contract import Array, Sample, Task, Visual
from mmrl.data.pretext.craft.coordinates import SCALE
from mmrl.data.pretext.craft.degenerate_checks import thumbnail


def prompt_words(sample: Sample) -> list[str]:
    """Words of the prompt."""
    return _prompt(sample).lower().split()


def echo(task: Task, sample: Sample) -> str | None:
    """The worked example, if there is one."""
    _, mark, example = _prompt(sample).partition("For example: ")
    return example.split("\n")[0] if mark else None


def metadata(sample: Sample) -> list[float]:
    """Sizes, counts and durations: always 18 numbers, 0 where there are fewer than four visuals or clips."""
    visuals = sample.visuals[:4]
    sizes: list[float] = []
    for visual in visuals:
        height, width = visual.pixels.shape[-3:-1]
        sizes += [float(height), float(width)]
    clips = [visual.times for visual in visuals if visual.times is not None]
    lengths = [float(len(times)) for times in clips]
    ends = [float(times[-1]) for times in clips]
    counts = [float(len(sample.visuals)), float(len(_prompt(sample)))]
    return [*_padded(sizes, 8), *_padded(lengths, 4), *_padded(ends, 4), *counts]


def _prompt(sample: Sample) -> str:
    return sample.messages[0]["content"][-1]["text"]


def _padded(values: list[float], length: int) -> list[float]:
    return values + [0.0] * (length - len(values))


def first(task: Task, sample: Sample) -> str | None:
    """The first option, the listed order, the smallest answer."""
    return _placed(task, sample, 0)


def last(task: Task, sample: Sample) -> str | None:
    """The last option, the reverse order."""
    return _placed(task, sample, -1)


def middle(task: Task, sample: Sample) -> str | None:
    """The middle option, span, moment, box or point."""
    truth = sample.truth
    if "options" in truth:
        return truth["options"][len(truth["options"]) // 2]
    if "frames" in truth:
        end = truth["frames"] * truth["step"]
        if not isinstance(truth["answer"], list):
            return f"{0.5 * end:.1f}"
        spans = len(truth["answer"])
        return "; ".join(_third(place, spans, end) for place in range(spans))
    box = "300, 300, 700, 700"
    if task.name == "differences":
        return "; ".join([box] * len(truth["answer"]))
    fixed = {"crop-location": box, "correspondence": "500, 500"}
    return fixed.get(task.name)


def boundary(task: Task, sample: Sample) -> str | None:
    """Continuity of borders: a jigsaw, a hole, a grid, or clips."""
    pixels = [visual.pixels for visual in sample.visuals]
    if _is_plain_jigsaw(task, sample):
        return _listed(solve_grid(pixels, int(sample.knobs["rows"])))
    if _is_order(sample) and pixels and all(visual.is_video for visual in sample.visuals):
        return _listed(chained(pixels))
    options = option_visuals(sample)
    if options and not sample.visuals[0].is_video:
        hole = _hole(pixels[0])
        if hole is not None:
            rims = [_rim_distance(pixels[0], hole, option.pixels) for option in options]
            return sample.truth["options"][int(np.argmin(rims))]
    if task.name == "odd-tile":
        costs = _mismatch(_grid_tiles(sample), int(sample.knobs["columns"]))
        return sample.truth["options"][int(np.argmax(costs))]
    return None


def boundary_relative(task: Task, sample: Sample) -> str | None:
    """Continuity of brightness and colour relative to each piece's own mean (against colour jitter)."""
    if not _is_plain_jigsaw(task, sample):
        return None
    pieces = []
    for visual in sample.visuals:
        # The jitter is a factor per piece: in the logarithm it is a shift, which the mean takes away.
        light = np.log(visual.pixels.astype(np.float32) + 8.0) * 50.0
        pieces.append(light - light.mean(axis=(0, 1)))
    return _listed(solve_grid(pieces, int(sample.knobs["rows"])))


def histogram_near(task: Task, sample: Sample) -> str | None:
    """The option most like the first picture (or the rim of its hole); neighbours by mean colour in a jigsaw."""
    if _is_plain_jigsaw(task, sample):
        means = [visual.pixels.mean(axis=(0, 1)) for visual in sample.visuals]
        flat = [np.broadcast_to(mean, (4, 4, 3)) for mean in means]
        return _listed(solve_grid(flat, int(sample.knobs["rows"])))
    options = option_visuals(sample)
    if not options or options[0].is_video or sample.visuals[0].is_video:
        return None
    base = sample.visuals[0].pixels
    hole = _hole(base)
    if hole is not None:
        base = _surround(base, hole)
    wanted = colours(base)
    distances = [np.abs(colours(visual.pixels) - wanted).sum() for visual in options]
    return sample.truth["options"][int(np.argmin(distances))]


def _surround(picture: Array, hole: tuple[int, int, int, int]) -> Array:
    """[1, N, 3]: the pixels around a hole, as far as the hole is wide."""
    x0, y0, x1, y1 = hole
    reach = x1 - x0
    near = picture[max(0, y0 - reach) : y1 + reach, max(0, x0 - reach) : x1 + reach]
    return near[~np.all(near == 128, axis=2)][None]


def histogram_outlier(task: Task, sample: Sample) -> str | None:
    """The option or tile whose colours differ most from the others; orders by brightness."""
    pictures = _comparable(task, sample)
    if not pictures:
        return None
    if _is_order(sample):
        return _listed(np.argsort([picture.mean() for picture in pictures]))
    table = np.stack([colours(picture) for picture in pictures])
    apart = np.abs(table - np.median(table, axis=0)).sum(axis=1)
    return sample.truth["options"][int(np.argmax(apart))]


def histogram_middle(task: Task, sample: Sample) -> str | None:
    """The option nearest to all others (the centre of a family of decoys)."""
    pictures = _comparable(task, sample)
    if not pictures or _is_order(sample):
        return None
    small = np.stack([thumbnail(picture, 8).reshape(-1) for picture in pictures])
    small = small.astype(np.float64)
    apart = np.abs(small[:, None] - small[None]).mean(axis=2)  # [K, K]
    return sample.truth["options"][int(np.argmin(apart.sum(axis=1)))]


def sharpest(task: Task, sample: Sample) -> str | None:
    """Orders and options by gradient energy, strongest first."""
    return _by_value(task, sample, lambda picture: -sharpness(picture))


def blurriest(task: Task, sample: Sample) -> str | None:
    """The reverse."""
    return _by_value(task, sample, sharpness)


def blockiest(task: Task, sample: Sample) -> str | None:
    """Orders and options by how much the 8×8 JPEG grid shows."""
    return _by_value(task, sample, lambda picture: -blockiness(picture))


def cut_span(task: Task, sample: Sample) -> str | None:
    """Stretches of time between the strongest jumps."""
    truth = sample.truth
    if "frames" not in truth or not isinstance(truth["answer"], list):
        return None
    if not sample.visuals[-1].is_video:
        return None
    ends = 2 * len(truth["answer"])
    jumps = frame_jumps(sample.visuals[-1].pixels)
    # A stable sort: among equal jumps the first ones, on every machine.
    strongest = sorted(int(i) + 1 for i in np.argsort(-jumps, kind="stable")[:ends])
    times = [f"{frame * truth['step']:.1f}" for frame in strongest]
    pairs = zip(times[::2], times[1::2], strict=True)
    return "; ".join(f"{start}-{end}" for start, end in pairs)


def cut_moment(task: Task, sample: Sample) -> str | None:
    """The moment, or the join, of the strongest jump."""
    truth = sample.truth
    clips = [visual.pixels for visual in sample.visuals if visual.is_video]
    if not clips:
        return None
    longest = max(clips, key=len)
    jump = int(np.argmax(frame_jumps(longest))) + 1
    if "frames" in truth and not isinstance(truth["answer"], list):
        return f"{jump * truth['step']:.1f}"
    if "options" in truth:
        options = truth["options"]
        place = int(jump / len(longest) * len(options))
        return options[min(place, len(options) - 1)]
    return None


def changed_boxes(task: Task, sample: Sample) -> str | None:
    """Boxes around the largest differences of two pictures of one size (after their mean colours are matched)."""
    if task.name != "differences":
        return None
    from scipy.ndimage import (  # here: scipy is slow to import
        find_objects,
        label,
        uniform_filter,
    )

    first, second = (visual.pixels.astype(np.float32) for visual in sample.visuals[:2])
    # The median ratio is the jitter, as most of the picture is not edited.
    gains = np.median(second / np.maximum(first, 8.0), axis=(0, 1))
    apart = np.abs(second - first * gains).mean(axis=2)
    found = np.asarray(label(uniform_filter(apart, 9) > 10.0)[0])  # type: ignore[index]
    regions = sorted(find_objects(found), key=_area, reverse=True)
    height, width = first.shape[:2]
    boxes = []
    for rows, columns in regions[: len(sample.truth["answer"])]:
        shares = (
            columns.start / width,
            rows.start / height,
            columns.stop / width,
            rows.stop / height,
        )
        boxes.append(", ".join(str(round(share * SCALE)) for share in shares))
    return "; ".join(boxes) or None


def _area(region: tuple[slice, slice]) -> int:
    rows, columns = region
    return (rows.stop - rows.start) * (columns.stop - columns.start)


def option_visuals(sample: Sample) -> list[Visual]:
    """The visuals that are options, in their order; empty if the options are not shown as visuals."""
    options = sample.truth.get("options", [])
    named = {visual.label.rstrip(":"): visual for visual in sample.visuals}
    if any(option not in named for option in options):
        return []
    return [named[option] for option in options]


def _placed(task: Task, sample: Sample, end: int) -> str | None:
    truth = sample.truth
    if "options" in truth:
        return truth["options"][end]
    if "names" in truth:
        return ", ".join([truth["names"][end]] * len(truth["answer"]))
    if _is_order(sample):
        order = sorted(truth["answer"], reverse=end == -1)
        turns = f" | {', '.join('0' * len(order))}" if "turns" in truth else ""
        return ", ".join(map(str, order)) + turns
    return None


def _comparable(task: Task, sample: Sample) -> list[Array]:
    """The pictures that an answer chooses from or orders; a clip counts by its mean frame."""
    if task.name == "odd-tile":
        return _grid_tiles(sample)
    visuals = sample.visuals
    if _is_order(sample) and len(visuals) == len(sample.truth["answer"]):
        return [
            visual.pixels.mean(axis=0) if visual.is_video else visual.pixels
            for visual in visuals
        ]
    return [visual.pixels for visual in option_visuals(sample) if not visual.is_video]


def _by_value(task: Task, sample: Sample, value: Callable[[Array], float]) -> str | None:
    pictures = [np.asarray(picture, dtype=np.uint8) for picture in _comparable(task, sample)]
    if not pictures or "turns" in sample.truth:
        return None
    values = [value(picture) for picture in pictures]
    if _is_order(sample):
        return _listed(np.argsort(values, kind="stable"))
    return sample.truth["options"][int(np.argmin(values))]


def _is_plain_jigsaw(task: Task, sample: Sample) -> bool:
    """A jigsaw with upright pieces whose places are all open."""
    if task.name != "jigsaw" or "turns" in sample.truth:
        return False
    return not sample.knobs["given"]


def _is_order(sample: Sample) -> bool:
    answer = sample.truth["answer"]
    if "instance" in sample.truth:  # a set of numbers, which may look like an order
        return False
    if not isinstance(answer, list):
        return False
    numbers = sorted(str(place + 1) for place in range(len(answer)))
    return sorted(map(str, answer)) == numbers


def _listed(order: Array) -> str:
    return ", ".join(str(int(i) + 1) for i in order)


def _third(place: int, count: int, end: float) -> str:
    share = end / count
    return f"{(place + 1 / 3) * share:.1f}-{(place + 2 / 3) * share:.1f}"


def _hole(picture: Array) -> tuple[int, int, int, int] | None:
    """The box of the pixels that are exactly mid-grey, if they fill a box of some size."""
    ys, xs = np.nonzero((picture == 128).all(axis=2))
    if len(ys) < 256:
        return None
    x0, x1 = int(xs.min()), int(xs.max()) + 1
    y0, y1 = int(ys.min()), int(ys.max()) + 1
    # Scattered grey pixels have a large box and fill little of it.
    filled = len(ys) >= 0.9 * (x1 - x0) * (y1 - y0)
    return (x0, y0, x1, y1) if filled else None


def _rim_distance(picture: Array, hole: tuple[int, int, int, int], piece: Array) -> float:
    """Mean squared difference of the piece's edges and the pixels around the hole, stretched to one length."""
    x0, y0, x1, y1 = hole
    height, width = picture.shape[:2]
    # A hole at the border of the picture has no rim on that side.
    pairs = []
    if y0 > 0:
        pairs.append((picture[y0 - 1, x0:x1], piece[0]))
    if y1 < height:
        pairs.append((picture[y1, x0:x1], piece[-1]))
    if x0 > 0:
        pairs.append((picture[y0:y1, x0 - 1], piece[:, 0]))
    if x1 < width:
        pairs.append((picture[y0:y1, x1], piece[:, -1]))
    apart = [_stretched(rim, 32) - _stretched(edge, 32) for rim, edge in pairs]
    return float(np.mean([(difference**2).mean() for difference in apart]))


def _stretched(line: Array, length: int) -> Array:
    image = Image.fromarray(np.ascontiguousarray(line[None]))
    return np.asarray(image.resize((length, 1), Image.Resampling.BOX), dtype=np.float32)


def _grid_tiles(sample: Sample) -> list[Array]:
    picture, line = sample.visuals[0].pixels, 6
    rows, columns = int(sample.knobs["rows"]), int(sample.knobs["columns"])
    tall, wide = (picture.shape[0] - line) // rows, (picture.shape[1] - line) // columns
    tiles = []
    for row, column in product(range(rows), range(columns)):
        top, left = row * tall, column * wide
        tiles.append(picture[top + line : top + tall, left + line : left + wide])
    return tiles


def _mismatch(tiles: Sequence[Array], columns: int) -> list[float]:
    """Mean edge cost of every tile with its neighbours in place."""
    across, below = edge_costs(tiles)
    rows, found = len(tiles) // columns, []
    for place in range(len(tiles)):
        row, column = divmod(place, columns)
        costs = []
        if column > 0:
            costs.append(across[place - 1, place])
        if column < columns - 1:
            costs.append(across[place, place + 1])
        if row > 0:
            costs.append(below[place - columns, place])
        if row < rows - 1:
            costs.append(below[place, place + columns])
        found.append(float(np.mean(costs)))
    return found
