"""The strategies behind the auditors: functions (task, sample) → answer body or None.

They see what the model sees (pixels, times, labels, words) and the knobs that the prompt tells; never the truth, only
the shape of an answer: how many entries, which options.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, permutations

import numpy as np
from PIL import Image

from mmrl.data.pretext.contract import Array, Sample, Task, Visual
from mmrl.data.pretext.craft.coordinates import SCALE
from mmrl.data.pretext.craft.degenerate_checks import thumbnail


def prompt_words(sample: Sample) -> list[str]:
    """Words of the prompt."""
    return sample.messages[0]["content"][-1]["text"].lower().split()


def echo(task: Task, sample: Sample) -> str | None:
    """The worked example, if there is one."""
    text = sample.messages[0]["content"][-1]["text"]
    return text.split("For example: ")[1].split("\n")[0] if "For example: " in text else None


def metadata(sample: Sample) -> list[float]:
    """Sizes, counts and durations."""
    shapes = [list(visual.pixels.shape[-3:-1]) for visual in sample.visuals[:4]] + [[0, 0]] * 4
    lengths = [
        len(visual.times) * 1.0 for visual in sample.visuals[:4] if visual.times is not None
    ] + [0.0] * 4
    ends = [
        float(visual.times[-1]) for visual in sample.visuals[:4] if visual.times is not None
    ] + [0.0] * 4
    text = len(sample.messages[0]["content"][-1]["text"])
    flat = [float(value) for shape in shapes[:4] for value in shape]
    return [*flat, *lengths[:4], *ends[:4], float(len(sample.visuals)), float(text)]


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
        spans = truth["answer"] if isinstance(truth["answer"], list) else None
        return (
            f"{0.5 * end:.1f}"
            if spans is None
            else "; ".join(_third(i, len(spans), end) for i in range(len(spans)))
        )
    if task.name in ("crop-location", "differences"):
        return "; ".join(
            ["300, 300, 700, 700"]
            * (1 if task.name == "crop-location" else len(truth["answer"]))
        )
    return "500, 500" if task.name == "correspondence" else None


def boundary(task: Task, sample: Sample) -> str | None:
    """Continuity of borders: a jigsaw, a hole, a grid, or clips."""
    if task.name == "jigsaw" and "turns" not in sample.truth and not sample.knobs["given"]:
        return _listed(
            solve_grid([v.pixels for v in sample.visuals], int(sample.knobs["rows"]))
        )
    if (
        _is_order(sample)
        and sample.visuals
        and all(visual.is_video for visual in sample.visuals)
    ):
        return _listed(chained([visual.pixels for visual in sample.visuals]))
    options = option_visuals(sample)
    hole = (
        _hole(sample.visuals[0].pixels) if options and not sample.visuals[0].is_video else None
    )
    if options and hole is not None:
        rim = [
            float(_rim_distance(sample.visuals[0].pixels, hole, visual.pixels))
            for visual in options
        ]
        return sample.truth["options"][int(np.argmin(rim))]
    if task.name == "odd-tile":
        tiles = _grid_tiles(sample)
        return sample.truth["options"][
            int(np.argmax(_mismatch(tiles, int(sample.knobs["columns"]))))
        ]
    return None


def boundary_relative(task: Task, sample: Sample) -> str | None:
    """Continuity of brightness and colour relative to each piece's own mean (against colour jitter)."""
    if task.name == "jigsaw" and "turns" not in sample.truth and not sample.knobs["given"]:
        pieces = [
            np.log(visual.pixels.astype(np.float32) + 8.0) * 50.0 for visual in sample.visuals
        ]
        return _listed(
            solve_grid(
                [piece - piece.mean(axis=(0, 1)) for piece in pieces], int(sample.knobs["rows"])
            )
        )
    return None


def histogram_near(task: Task, sample: Sample) -> str | None:
    """The option most like the first picture (or the rim of its hole); neighbours by mean colour in a jigsaw."""
    if task.name == "jigsaw" and "turns" not in sample.truth and not sample.knobs["given"]:
        flat = [np.broadcast_to(v.pixels.mean(axis=(0, 1)), (4, 4, 3)) for v in sample.visuals]
        return _listed(solve_grid(flat, int(sample.knobs["rows"])))
    options = option_visuals(sample)
    if not options or options[0].is_video or sample.visuals[0].is_video:
        return None
    base, hole = sample.visuals[0].pixels, _hole(sample.visuals[0].pixels)
    if hole is not None:
        x0, y0, x1, y1 = hole
        reach = x1 - x0
        near = base[max(0, y0 - reach) : y1 + reach, max(0, x0 - reach) : x1 + reach]
        base = near[~np.all(near == 128, axis=2)][None]
    distances = [np.abs(colours(visual.pixels) - colours(base)).sum() for visual in options]
    return sample.truth["options"][int(np.argmin(distances))]


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
    small = np.stack([thumbnail(picture, 8).reshape(-1) for picture in pictures]).astype(
        np.float64
    )
    apart = np.abs(small[:, None] - small[None]).mean(axis=2).sum(axis=1)
    return sample.truth["options"][int(np.argmin(apart))]


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
    if (
        "frames" not in truth
        or not isinstance(truth["answer"], list)
        or not sample.visuals[-1].is_video
    ):
        return None
    count, jumps = len(truth["answer"]), frame_jumps(sample.visuals[-1].pixels)
    strongest = sorted(int(i) + 1 for i in np.argsort(-jumps, kind="stable")[: 2 * count])
    spans = zip(strongest[::2], strongest[1::2], strict=True)
    return "; ".join(f"{a * truth['step']:.1f}-{b * truth['step']:.1f}" for a, b in spans)


def cut_moment(task: Task, sample: Sample) -> str | None:
    """The moment, or the join, of the strongest jump."""
    truth = sample.truth
    if not any(visual.is_video for visual in sample.visuals):
        return None
    clip = max((v for v in sample.visuals if v.is_video), key=lambda v: len(v.pixels))
    jump = int(np.argmax(frame_jumps(clip.pixels))) + 1
    if "frames" in truth and not isinstance(truth["answer"], list):
        return f"{jump * truth['step']:.1f}"
    if "options" in truth:
        return truth["options"][
            min(int(jump / len(clip.pixels) * len(truth["options"])), len(truth["options"]) - 1)
        ]
    return None


def changed_boxes(task: Task, sample: Sample) -> str | None:
    """Boxes around the largest differences of two pictures of one size (after their mean colours are matched)."""
    if task.name != "differences":
        return None
    from scipy.ndimage import find_objects, label, uniform_filter

    first, second = (visual.pixels.astype(np.float32) for visual in sample.visuals[:2])
    gains = np.median(second / np.maximum(first, 8.0), axis=(0, 1))
    apart = uniform_filter(np.abs(second - first * gains).mean(axis=2), 9)
    found = np.asarray(label(apart > 10.0)[0])  # type: ignore[index]
    regions = sorted(
        find_objects(found), key=lambda r: -(r[0].stop - r[0].start) * (r[1].stop - r[1].start)
    )
    height, width = first.shape[:2]
    boxes = [
        [r[1].start / width, r[0].start / height, r[1].stop / width, r[0].stop / height]
        for r in regions[: len(sample.truth["answer"])]
    ]
    return "; ".join(", ".join(str(round(v * SCALE)) for v in box) for box in boxes) or None


def solve_grid(tiles: Sequence[Array], rows: int) -> Array:
    """Place tiles so that the squared differences along touching edges are least: int [K], tile index per place.

    Exchanges of two places from 24 random starts until nothing improves."""
    count, columns = len(tiles), len(tiles) // rows
    across, below = edge_costs(tiles)
    grid = np.arange(count).reshape(rows, columns)
    pairs = np.array([(a, b) for a in range(count) for b in range(a + 1, count)])
    rng = np.random.Generator(np.random.Philox(key=1))

    def cost(orders: Array) -> Array:  # [N, K] to [N]
        right = across[orders[:, grid[:, :-1].ravel()], orders[:, grid[:, 1:].ravel()]].sum(
            axis=1
        )
        return right + below[orders[:, grid[:-1].ravel()], orders[:, grid[1:].ravel()]].sum(
            axis=1
        )

    best, least = np.arange(count), np.inf
    for _ in range(24):
        order = rng.permutation(count)
        now = float(cost(order[None])[0])
        while len(pairs):
            trials = np.repeat(order[None], len(pairs), axis=0)
            rows_ = np.arange(len(pairs))
            trials[rows_, pairs[:, 0]], trials[rows_, pairs[:, 1]] = (
                order[pairs[:, 1]],
                order[pairs[:, 0]],
            )
            costs = cost(trials)
            if float(costs.min()) >= now - 1e-9:
                break
            order, now = trials[int(costs.argmin())], float(costs.min())
        if now < least:
            best, least = order, now
    return best


def edge_costs(tiles: Sequence[Array]) -> tuple[Array, Array]:
    """[K, K] each: mean squared difference of i's right edge and j's left edge; of i's lower and j's upper edge."""
    stack = np.stack([np.asarray(tile, dtype=np.float32) for tile in tiles])
    right, left, low, up = stack[:, :, -1], stack[:, :, 0], stack[:, -1], stack[:, 0]
    across = ((right[:, None] - left[None]) ** 2).mean(axis=(2, 3))
    below = ((low[:, None] - up[None]) ** 2).mean(axis=(2, 3))
    return across, below


def chained(clips: Sequence[Array]) -> Array:
    """Order clips so that last and first frames agree best: int [K], clip index per place. All orders up to seven."""
    small = np.stack([[thumbnail(clip[0]), thumbnail(clip[-1])] for clip in clips]).astype(
        np.float32
    )
    cost = np.abs(small[:, None, 1] - small[None, :, 0]).mean(
        axis=(2, 3, 4)
    )  # from the end of i to the start of j
    if len(clips) <= 7:
        orders = np.array(list(permutations(range(len(clips)))))
        return orders[int(cost[orders[:, :-1], orders[:, 1:]].sum(axis=1).argmin())]
    paths = [_greedy(cost, start) for start in range(len(clips))]
    return np.array(min(paths, key=lambda path: sum(cost[a, b] for a, b in pairwise(path))))


def frame_jumps(frames: Array) -> Array:
    """float [F − 1]: mean change between neighbouring frames above the local level."""
    small = np.stack([thumbnail(frame, 24) for frame in frames])
    jumps = np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3))
    return jumps - np.median(jumps)


def colours(picture: Array) -> Array:
    """float [24]: eight bins per colour plane."""
    flat = picture.reshape(-1, 3)
    return np.concatenate(
        [np.bincount(flat[:, c] >> 5, minlength=8) / len(flat) for c in range(3)]
    )


def sharpness(picture: Array) -> float:
    """Mean squared difference of neighbouring pixels, relative to the variance."""
    grey = picture.astype(np.float32).mean(axis=2)
    edges = (np.diff(grey, axis=0) ** 2).mean() + (np.diff(grey, axis=1) ** 2).mean()
    return float(edges / (grey.var() + 1.0))


def blockiness(picture: Array) -> float:
    """How much more neighbouring columns differ at the strongest phase of a period of eight than elsewhere."""
    grey = picture.astype(np.float32).mean(axis=2)
    steps = np.abs(np.diff(grey, axis=1)).mean(axis=0)
    phases = [steps[phase::8].mean() for phase in range(min(8, len(steps)))]
    return float(max(phases) / (np.mean(phases) + 1e-6))


def option_visuals(sample: Sample) -> list[Visual]:
    """The visuals that are options, in their order; empty if the options are not shown as visuals."""
    options = sample.truth.get("options", [])
    named = {visual.label.rstrip(":"): visual for visual in sample.visuals}
    return (
        [named[option] for option in options]
        if options and all(option in named for option in options)
        else []
    )


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
    if task.name == "odd-tile":
        return _grid_tiles(sample)
    if _is_order(sample) and len(sample.visuals) == len(sample.truth["answer"]):
        return [
            visual.pixels.mean(axis=0) if visual.is_video else visual.pixels
            for visual in sample.visuals
        ]
    return [visual.pixels for visual in option_visuals(sample) if not visual.is_video]


def _by_value(task: Task, sample: Sample, value) -> str | None:
    pictures = [np.asarray(picture, dtype=np.uint8) for picture in _comparable(task, sample)]
    if not pictures or "turns" in sample.truth:
        return None
    values = [value(picture) for picture in pictures]
    if _is_order(sample):
        return _listed(np.argsort(values, kind="stable"))
    return sample.truth["options"][int(np.argmin(values))]


def _is_order(sample: Sample) -> bool:
    answer = sample.truth["answer"]
    if "instance" in sample.truth:  # a set of numbers, which may look like an order
        return False
    return isinstance(answer, list) and sorted(map(str, answer)) == sorted(
        str(i + 1) for i in range(len(answer))
    )


def _listed(order: Array) -> str:
    return ", ".join(str(int(i) + 1) for i in order)


def _third(place: int, count: int, end: float) -> str:
    share = end / count
    return f"{(place + 1 / 3) * share:.1f}-{(place + 2 / 3) * share:.1f}"


def _greedy(cost: Array, start: int) -> list[int]:
    path, left = [start], set(range(len(cost))) - {start}
    while left:
        path.append(min(left, key=lambda j: cost[path[-1], j]))
        left.discard(path[-1])
    return path


def _hole(picture: Array) -> tuple[int, int, int, int] | None:
    """The box of the pixels that are exactly mid-grey, if they fill a box of some size."""
    ys, xs = np.nonzero((picture == 128).all(axis=2))
    if len(ys) < 256:
        return None
    box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    return box if len(ys) >= 0.9 * (box[2] - box[0]) * (box[3] - box[1]) else None


def _rim_distance(picture: Array, hole: tuple[int, int, int, int], piece: Array) -> float:
    """Mean squared difference of the piece's edges and the pixels around the hole, stretched to one length."""
    x0, y0, x1, y1 = hole
    height, width = picture.shape[:2]
    pairs = []
    if y0 > 0:
        pairs.append((picture[y0 - 1, x0:x1], piece[0]))
    if y1 < height:
        pairs.append((picture[y1, x0:x1], piece[-1]))
    if x0 > 0:
        pairs.append((picture[y0:y1, x0 - 1], piece[:, 0]))
    if x1 < width:
        pairs.append((picture[y0:y1, x1], piece[:, -1]))
    return float(
        np.mean([((_stretched(a, 32) - _stretched(b, 32)) ** 2).mean() for a, b in pairs])
    )


def _stretched(line: Array, length: int) -> Array:
    image = Image.fromarray(np.ascontiguousarray(line[None]))
    return np.asarray(image.resize((length, 1), Image.Resampling.BOX), dtype=np.float32)


def _grid_tiles(sample: Sample) -> list[Array]:
    picture, line = sample.visuals[0].pixels, 6
    rows, columns = int(sample.knobs["rows"]), int(sample.knobs["columns"])
    tall, wide = (picture.shape[0] - line) // rows, (picture.shape[1] - line) // columns
    return [
        picture[
            row * tall + line : (row + 1) * tall, column * wide + line : (column + 1) * wide
        ]
        for row in range(rows)
        for column in range(columns)
    ]


def _mismatch(tiles: Sequence[Array], columns: int) -> list[float]:
    """Mean edge cost of every tile with its neighbours in place."""
    across, below = edge_costs(tiles)
    rows, found = len(tiles) // columns, []
    for place in range(len(tiles)):
        row, column = divmod(place, columns)
        costs = [across[place - 1, place]] if column else []
        costs += [across[place, place + 1]] if column < columns - 1 else []
        costs += [below[place - columns, place]] if row else []
        costs += [below[place, place + columns]] if row < rows - 1 else []
        found.append(float(np.mean(costs)))
    return found
