"""Each paper's published scorer, answer for answer, holes included.

Use these to reproduce a paper; the tasks' own rewards (`rewards`) close the holes. Scores may leave [0, 1] where the
paper's do. Sources: VideoSSR (lcqysl/VideoSSR, described in its paper and pinned by reference values), Visual Jigsaw
(penghao-wu/visual_jigsaw), Jigsaw-R1 (zifuwanggg/Jigsaw-R1), AGILE (yuzeng0-0/AGILE), SSL4RL (public copy ss8319/verl,
its first scorer without a format term), ViCrit's evaluation script. NP-Engine's validators are in `compat_np`.

Known holes, kept on purpose:
1. VideoSSR grounding refuses units, prose and en-dashes; counting ignores a minus sign and pays about 5e-10 for zeros.
2. Visual Jigsaw checks that K entries are distinct, not that they are 1..K, and reads no further than K entries; its
   clip splitter drops the remainder of the frames from the start.
3. Jigsaw-R1 and SSL4RL pay repeated entries; SSL4RL also short and long lists.
4. AGILE counts four right blocks as solved whatever the number of blocks.

Departures: regular expressions are replaced by scans where the original could take quadratic time; ViCrit's fallback
without a box (the whole reply) and its case-folding are our reading of the reference values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import product

from mmrl.ground import answers

_SECONDS = re.compile(r"\s*([\d.]+)\s*-\s*([\d.]+)\s*", re.ASCII)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def videossr_grounding(prediction: str, ground_truth: str) -> float:
    """IoU of "start-end" with the true interval; 0 unless the whole reply is two numbers and a hyphen."""
    guess, truth = _seconds(prediction), _seconds(ground_truth)
    if guess is None or truth is None or guess[0] > guess[1]:
        return 0.0
    both = max(0.0, min(guess[1], truth[1]) - max(guess[0], truth[0]))
    either = (guess[1] - guess[0]) + (truth[1] - truth[0]) - both
    return both / either if either > 0 else 0.0


def videossr_counting(prediction: str, ground_truth: str) -> float:
    """Mean of max(0, 1 − |ŷ − y|/(y + 1e-9)) over three counts; all digit runs of the reply, exactly three of them."""
    guess, truth = _digit_runs(prediction), _digit_runs(ground_truth)
    if len(guess) != 3 or len(truth) != 3:
        return 0.0
    return sum(_near(given, right) for given, right in zip(guess, truth, strict=True)) / 3


def _near(given: int, right: int) -> float:
    if given == right:
        return 1.0
    # The addend is the paper's guard against a count of 0, and pays about 5e-10 for a 0 where there is more.
    return max(0.0, 1.0 - abs(given - right) / (right + 1e-9))


def _digit_runs(text: str) -> list[int]:
    return [int(run) for run in re.findall(r"\d+", text)]


def videossr_jigsaw(prediction: str, ground_truth: str) -> float:
    """1 − footrule/⌊n²/2⌋ on two strings of characters; 0 unless one is a permutation of the other."""
    guess, truth = prediction.strip(), ground_truth.strip()
    if sorted(guess) != sorted(truth) or not truth:
        return 0.0
    worst = len(truth) ** 2 // 2
    moved = sum(abs(guess.index(character) - place) for place, character in enumerate(truth))
    return 1.0 - moved / worst if worst else 1.0


def visual_jigsaw(
    response: str, ground_truth: Sequence[int], nothink: bool = False
) -> dict[str, float]:
    """Format 0.2 + accuracy − 0.5 for repetition -> score, acc_reward, format_reward, acc."""
    truth = list(ground_truth)
    if not nothink and not _thinks_then_boxes(response):
        # The penalty for repetition is not taken here: the reference returns before it.
        return {"score": 0.0, "acc_reward": 0.0, "format_reward": 0.0, "acc": 0}
    penalty = -0.5 if _repeats(response, words=7, run=3) else 0.0
    form = 0.0 if nothink else 0.2
    body = response if nothink else _last_box(response)
    guess = _integers(body.split(","))
    exact = guess == truth
    accuracy = 1.0 if exact else _visual_jigsaw_share(guess, truth)
    return {
        "score": form + accuracy + penalty,
        "acc_reward": accuracy,
        "format_reward": form,
        "acc": int(exact),
    }


def _visual_jigsaw_share(guess: Sequence[int], truth: Sequence[int]) -> float:
    # Distinct entries, as many as the truth has, are all that is asked; further entries are not read.
    if len(set(guess)) != len(truth) or len(truth) <= 4:
        return 0.0
    hits = [given == right for given, right in zip(guess, truth, strict=False)]
    return sum(hits) / len(truth) * 0.2


def visual_jigsaw_tile_sizes(
    width: int, height: int, rows: int, columns: int
) -> list[tuple[int, int]]:
    """(width, height) of each tile in raster order; the first columns and rows take the remainder."""
    widths = _parts(width, columns)
    heights = _parts(height, rows)
    return [(wide, tall) for tall in heights for wide in widths]


def _parts(side: int, count: int) -> list[int]:
    smaller, left_over = divmod(side, count)
    return [smaller + (index < left_over) for index in range(count)]


def visual_jigsaw_clip_ranges(
    num_frames: int, clips: int, trim_ratio: float
) -> list[tuple[int, int]]:
    """Half-open frame ranges of equal clips, trimmed at both ends; the remainder is dropped at the start."""
    if not 0 <= trim_ratio < 0.5:
        raise ValueError(
            f"trim_ratio is {trim_ratio}; a share cut from both ends of a clip must lie in [0, 0.5)."
        )
    ratio = Fraction(trim_ratio).limit_denominator()
    skip = num_frames % (clips * ratio.denominator) if clips > 1 else 0
    length = (num_frames - skip) // clips
    cut = length * ratio.numerator // ratio.denominator
    if 2 * cut >= length:
        raise ValueError(
            f"{num_frames} frames are too few for {clips} clips trimmed by {trim_ratio} at both ends."
        )
    return [(skip + i * length + cut, skip + (i + 1) * length - cut) for i in range(clips)]


def jigsaw_r1(
    response: str,
    solution: Sequence[int] | str,
    rows: int,
    columns: int,
    *,
    answer_type: str = "grid",
    think: bool = True,
    use_connections: bool = False,
    forward: bool = True,
) -> dict[str, object]:
    """Extracted answer, score, correct, accuracy_reward and format_reward for answer types grid, letter, digit and
    box (corners in pixels)."""
    extracted = jigsaw_r1_extract(response, rows, columns, answer_type, think)
    if answer_type == "grid":
        truth = [int(tile) for tile in solution]
        if use_connections:
            score = _jigsaw_r1_connections(extracted, truth, (rows, columns), forward)
        else:
            score = _jigsaw_r1_places(extracted, truth)
        correct, accuracy = float(extracted == truth), score
    elif answer_type in ("letter", "digit"):
        same = str(extracted).lower() == str(solution).lower()
        # "07" is the digit 7.
        numeric = answer_type == "digit" and _same_integer(str(extracted), str(solution))
        score, correct = 0.0, float(same or numeric)
        accuracy = correct
    elif answer_type == "box":
        score = _jigsaw_r1_box(extracted, [float(side) for side in solution])
        correct, accuracy = float(score > 0.5), score
    else:
        raise ValueError(
            f"answer_type is {answer_type!r}; it must be 'grid', 'letter', 'digit' or 'box'."
        )
    form = float(_jigsaw_r1_format(response, extracted, rows * columns, answer_type, think))
    return {
        "extracted": extracted,
        "score": score,
        "correct": correct,
        "accuracy_reward": accuracy,
        "format_reward": form,
    }


def jigsaw_r1_extract(
    response: str, rows: int, columns: int, answer_type: str = "grid", think: bool = True
) -> list[int] | list[float] | str | None:
    """The first answer tag (or the whole reply), read as a grid of tile numbers, the last capital, the first digits or
    the first four numbers.

    None if a grid holds anything but numbers from 1 to rows·columns."""
    tag = _ANSWER.search(response) if think else None
    body = (tag[1] if tag else response).strip()
    if answer_type == "letter":
        # The last capital is the first of the reversed text; without one the reference gives the reversed text.
        found = re.search(r"[A-Z]", body[::-1])
        return found[0] if found else body[::-1]
    if answer_type == "digit":
        found = re.search(r"\d+", body)
        return found[0] if found else body
    if answer_type == "box":
        box = re.search(r"(\d+),\s*(\d+),\s*(\d+),\s*(\d+)", body)
        return [float(side) for side in box.groups()] if box else body
    spaced = re.sub(r"[`,;\n]", " ", body)
    tokens = re.sub(r"\s{2,}", " ", spaced).strip().split(" ")
    if not all(re.fullmatch(r"[0-9]+", token) for token in tokens):
        return None
    tiles = [int(token) for token in tokens]
    return tiles if all(1 <= tile <= rows * columns for tile in tiles) else None


def agile(response: str, ground_truth: str) -> dict[str, float]:
    """0.8·acc + 0.2·format + turn term; `ground_truth` is a JSON list of [block, angle]."""
    images = response.count("<|vision_start|><|image_pad|>")
    answer_part = response.split("</think>")[-1]
    formatted = (
        response.count("<think>") == response.count("</think>")
        and images == response.count("<|image_pad|><|vision_end|>")
        and answer_part.count("<answer>") == answer_part.count("</answer>")
    )
    body = response.split("<answer>")[-1].split("</answer>")[0].strip()
    right = _agile_blocks(body, ground_truth)
    if right is None or len(body) >= 1000:
        formatted, right = False, 0
    solved, form = float(right > 3.5), float(formatted)
    turn = -0.05 * images if solved else -0.25
    return {
        "score": 0.8 * solved + 0.2 * form + turn,
        "acc": solved,
        "acc_reward": solved,
        "format_reward": form,
    }


def ssl4rl_jigsaw(response: str, ground_truth: str) -> float:
    """Share of true places whose entry in the first answer tag is the same integer; no permutation check."""
    tag = _ANSWER.search(_assistant(response))
    if tag is None:
        return 0.0
    guess, truth = tag[1].strip().split(","), ground_truth.split(",")
    right = [_same_integer(given, wanted) for given, wanted in zip(guess, truth, strict=False)]
    return sum(right) / len(truth)


def _same_integer(one: str, other: str) -> bool:
    return _integers([one]) == _integers([other]) != []


def ssl4rl_exact(response: str, ground_truth: str) -> float:
    """1 if the first answer tag equals one of the comma-separated accepted strings."""
    tag = _ANSWER.search(_assistant(response))
    accepted = [text.strip() for text in ground_truth.split(",")]
    return float(tag is not None and tag[1].strip() in accepted)


def vicrit_eval(response: str, original_phrase: str, changed_phrase: str) -> bool:
    """Whether the first word that the change introduced occurs, as a substring, in the boxed answer.

    IndexError if the phrases have the same words, as in the reference."""
    before = original_phrase.lower().split()
    new = [word for word in changed_phrase.lower().split() if word not in before]
    boxed = _last_box(response)
    return new[0] in (response if boxed == "None" else boxed).lower()


def _seconds(text: str) -> tuple[float, float] | None:
    match = _SECONDS.fullmatch(text)
    if match is None or any(part.count(".") > 1 or part == "." for part in match.groups()):
        return None
    return float(match[1]), float(match[2])


def _integers(tokens: Sequence[str]) -> list[int]:
    """All tokens as integers, or an empty list if one is none."""
    try:
        return [int(token.strip()) for token in tokens]
    except ValueError:
        return []


def _last_box(text: str) -> str:
    """Content of the last \\boxed{} with balanced braces; the literal "None" when absent."""
    inside = answers.boxed(text, escapes=False)
    return "None" if inside is None else inside


def _thinks_then_boxes(text: str) -> bool:
    """The whole text is <think>…</think>…\\boxed{…}…"""
    if not text.startswith("<think>"):
        return False
    closed = text.find("</think>", len("<think>"))
    boxed = text.find("\\boxed{", closed)
    return closed >= 0 and boxed >= 0 and text.find("}", boxed) >= 0


def _repeats(text: str, words: int, run: int) -> bool:
    """Whether one line of at least `words` words follows itself so that more than `run` equal lines stand in a row."""
    length, previous = 0, None
    for line in text.strip().splitlines():
        line = line.strip().lower()
        if not line:
            continue
        # A short line ends a run, though it is not counted itself.
        long = len(line.split()) >= words
        length = length + 1 if long and line == previous else int(long)
        previous = line if long else None
        if length > run:
            return True
    return False


def _jigsaw_r1_places(guess: object, truth: list[int]) -> float:
    if not isinstance(guess, list) or len(guess) != len(truth):
        return 0.0
    return sum(a == b for a, b in zip(guess, truth, strict=True)) / len(truth)


def _jigsaw_r1_connections(
    guess: object, truth: list[int], grid: tuple[int, int], forward: bool
) -> float:
    """Share of neighbouring guessed entries whose true places are neighbours in the same direction."""
    rows, columns = grid
    total = 2 * rows * columns - rows - columns
    if not isinstance(guess, list) or len(guess) != len(truth) or total == 0:
        return 0.0
    if forward:
        place: Mapping[int, int] = {tile: index for index, tile in enumerate(truth)}
    else:
        place = {tile + 1: index - 1 for tile, index in enumerate(truth)}
    cells = [divmod(place[tile], columns) for tile in guess]
    kept = 0
    for row, column in product(range(rows), range(columns)):
        here = row * columns + column
        true_row, true_column = cells[here]
        if column + 1 < columns:
            kept += cells[here + 1] == (true_row, true_column + 1)
        if row + 1 < rows:
            kept += cells[here + columns] == (true_row + 1, true_column)
    return kept / total


def _jigsaw_r1_box(guess: object, truth: list[float]) -> float:
    """IoU in whole pixels; an overlap one pixel wide or high counts as none."""
    if not isinstance(guess, list):
        return 0.0
    width = min(guess[2], truth[2]) - max(guess[0], truth[0])
    height = min(guess[3], truth[3]) - max(guess[1], truth[1])
    both = width * height if width > 1 and height > 1 else 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (guess, truth)]
    either = sum(areas) - both
    return both / either if either else 0.0


def _jigsaw_r1_format(
    response: str, extracted: object, tiles: int, answer_type: str, think: bool
) -> bool:
    if think and not _thinks_then_answers(response):
        return False
    if answer_type == "grid":
        return isinstance(extracted, list) and len(extracted) == tiles
    if answer_type == "box":
        return isinstance(extracted, list)
    # Without thoughts the reply itself must be the digit or the letter.
    text = str(extracted) if think else response
    if answer_type == "digit":
        return text.isdigit()
    return len(text) == 1 and text.isupper()


def _thinks_then_answers(text: str) -> bool:
    """The first <think>…</think> <answer>…</answer> of the text is the whole text."""
    thought, closing, rest = text.partition("</think>")
    while closing and not rest.lstrip().startswith("<answer>"):
        more, closing, rest = rest.partition("</think>")
        thought += more
    ends_once = rest.endswith("</answer>") and rest.count("</answer>") == 1
    return bool(closing) and thought.startswith("<think>") and ends_once


def _agile_blocks(body: str, ground_truth: str) -> int | None:
    """How many blocks are right; 0 for a list of another length, None if the answer has no length."""
    try:
        guess, truth = json.loads(body), json.loads(ground_truth)
    except (ValueError, RecursionError):
        return None
    if not isinstance(guess, list | str | dict):
        return None
    if len(guess) != len(truth):
        return 0
    return sum(block == wanted for block, (wanted, _) in zip(guess, truth, strict=True))


def _assistant(text: str) -> str:
    return text.rpartition("assistant\n")[2].strip()
