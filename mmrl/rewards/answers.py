r"""Take the final answer out of a text and compare it with the reference. No torch; no string raises.

Extraction (`boxed`, `tagged`, `final_answer`) looks at the *last* place where an answer is announced. A box, tag or
thought that is opened last and never closed gives nothing: the answer was cut off, an earlier one is not paid instead.

`same_math` takes the answer first, the reference second, and asks in this order. The first that knows decides, and
after a no of these rules math-verify is not asked:
1. option: a reference that is a letter ("B", "(B)") is hit by "B", "(b)", "B. dog" and by no other letter.
2. label: ranges, dates, clock times, ratios and identifiers are compared as they are written, never computed (`forms`).
3. series: lists are compared item by item in their order, sets (in braces) in any order; "x = 1, y = 2" by names.
4. number: exact values, an integer without tolerance (`numbers`); another unit is another answer unless it converts,
   and a missing one is not missed (`units`).
5. text: without case, spaces and dressing. A reference in words ("cat") is nothing but text: a symbolic grader reads
   c·a·t and accepts "act".
6. what would take for ever (towers of powers, giant factorials) is a no.
7. mathematics: math-verify, its yes confirmed to 15 digits where both sides are numbers.

Departures from the graders in use (mathruler, VLM-R1, R1-V; their exact forms are in `easyr1` and `mathruler`):
1. A missing box is None, not the text "None", so a reference that reads "None" cannot be hit by leaving the box out.
2. `<answer>` may span lines; of several only the last counts.
3. "(A)" is a choice; "A or B" and "a cat" are none.
4. "50%" equals 50 and 0.5: whether a question wants the share or the percentage cannot be read off the answer.
5. math-verify runs without its own signal time-outs, which work in no thread. `same_math` still belongs into a worker
   of `worker_pool`, where `Rewards` runs it: rule 6 knows the bombs that are known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from mmrl.ground.answers import after_thinking, boxed, cut_off, tagged
from mmrl.rewards.forms import Series, chain_items, read_label, read_series, same_label
from mmrl.rewards.numbers import (
    Number,
    TooLarge,
    arithmetic,
    close,
    in_base_units,
    last_number,
    plain,
    read_number,
)
from mmrl.rewards.units import known_unit, read_unit

__all__ = [
    "Number",
    "boxed",
    "final_answer",
    "last_number",
    "letters_of",
    "matches",
    "named_choice",
    "named_option",
    "plain",
    "read_number",
    "references",
    "same_choice",
    "same_math",
    "same_number",
    "same_text",
    "same_wording",
    "several_numbers",
    "tagged",
]

Same = Callable[[str, str], bool]
"""(answer, reference) -> are they equal?"""
MATH_LENGTH = 2000
"""Longest expression that is given to the symbolic grader, in characters."""
NESTED = 8
"""Deepest list of lists."""
DEEPEST = 20
"""Most brackets in one another that are given to the symbolic grader."""
LARGEST_SET = 100
"""Most items of a set, which are compared each with each."""
OPTIONS = "ABCDEFGHIJ"
"""Letters that a lone reference names an option by."""
_OPTION = re.compile(rf"[(\[]?([{OPTIONS}{OPTIONS.lower()}])[)\].:]+(?: |$)")
_LONE_OPTION = re.compile(rf"[(\[]?([{OPTIONS}])[)\].:]*")
# An integer of five digits as exponent or factorial, a power of a power, a sum or product over a huge range.
_ENDLESS = (
    re.compile(r"\^ ?\{? ?[-+]? ?\(?\d{4,}"),
    re.compile(r"\*\*|[-+ ]{8,}"),
    re.compile(r"\^ ?\{?[^{}^]{0,40}\^ ?\{?[^{}^]{0,40}\^"),
    re.compile(r"\^ ?\{?[^{}^]{0,40}\d{2}[^{}^]{0,9}\^ ?\{? ?\d{2}|\d\^ ?\{? ?\d+ ?\^"),
    re.compile(r"(?:\d{4,}|[)}!]) ?!"),
    re.compile(r"\\(?:sum|prod|int|lim|binom)(?![a-z])"),
)


def final_answer(text: str) -> str:
    """The tagged answer (its box, if the tag holds one), else the box, else the text behind `</think>`.

    Empty if a thought, a tag or a box is opened last and never closed: the answer was cut off.
    """
    if cut_off(text):
        return ""
    inside = tagged(text)
    if inside is not None:
        return boxed(inside) or inside
    box = boxed(text)
    if box is not None:
        return box
    return after_thinking(text).strip()


def references(answer: object) -> tuple[str, ...]:
    """The reference answers as strings: a list or tuple names alternatives, a box or tag is opened.

    Raises ValueError if there is none.
    """
    several = answer if isinstance(answer, list | tuple) else [answer]
    if not several or any(one is None for one in several):
        raise ValueError(
            f"The reference answer is {answer!r}; an accuracy reward needs a string, a number or a list."
        )
    # GSM8K writes its answers behind "####".
    texts = [str(one).rpartition("####")[2].strip() for one in several]
    return tuple(boxed(text) or tagged(text) or text for text in texts)


def same_text(answer: str, reference: str) -> bool:
    """Are the two equal up to case, spaces, text commands and a full stop?"""
    return _words(answer) == _words(reference) != ""


def same_wording(answer: str, reference: str) -> bool:
    """Is it the same text, or the same option: "B. dog" for B?"""
    option = _same_option(plain(answer), plain(reference))
    return same_text(answer, reference) if option is None else option


def named_option(text: str) -> str | None:
    """The letter of an option that is written with its mark: "B", "(B)", "b)", "B. dog"; None for anything else."""
    text = plain(text).strip("*'\" ")
    lone = _LONE_OPTION.fullmatch(text)
    if lone:
        return lone[1]
    label = _OPTION.match(text)
    if label is None:
        return None
    # "A) cat B) dog" repeats the options and names none.
    rivals = re.findall(rf"(?:^|[\s(,\[])([{OPTIONS}])[)\].:]", text, re.IGNORECASE)
    letter = label[1].upper()
    return letter if {rival.upper() for rival in rivals} <= {letter} else None


def named_choice(text: str, letters: str = "ABCDE") -> str | None:
    """The one option that an answer names: "B", "(b)", "B. a dog", "the answer is B"; None if it names none or two."""
    text = plain(text)
    alone = text.strip("()[]{}.:,;*'\" ")
    if len(alone) == 1 and alone.upper() in letters:
        return alone.upper()
    some = f"[{letters}]"
    label = re.match(rf"[(\[]?([{letters}{letters.lower()}])[.):\]]", text)
    labels = set(re.findall(rf"(?:^|[\s(,\[])({some})[.):\]]", text))
    if label:
        # "B. a dog" names B, but "A) cat B) dog" only repeats the options.
        unrivalled = labels <= {label.group(1)}
        return label.group(1).upper() if unrivalled else None
    isolated = _isolated_letter(letters)
    # "the answer is B", unless another letter follows: "the answer is B or C" names two.
    pattern = rf"\b(?:answer|option|choice)(?: is)?:? ?[(\[]?({isolated})[)\]]?(?! ?(?:or|and|,|/) ?[(\[]?{some}\b)"
    announced = re.findall(pattern, text)
    # The surest sign that occurs decides: the last announcement, else labels, else letters that stand alone.
    found = set(announced[-1:]) or labels or set(re.findall(isolated, text))
    return found.pop() if len(found) == 1 else None


def _isolated_letter(letters: str) -> str:
    """Pattern of an option's letter as a word of its own."""
    if "A" not in letters:
        return rf"\b[{letters}]\b"
    # "A cat" is an article before a word; "A is", "A or B", "A because" name the option.
    article = r"(?! (?!or\b|and\b|is\b|because\b|since\b|but\b)[a-z])"
    return rf"(?:\bA\b{article}|\b(?!A)[{letters}]\b)"


def same_choice(answer: str, reference: str, letters: str = "ABCDE") -> bool:
    """Do both name the same option? Raises ValueError if the reference names none."""
    expected = named_choice(reference, letters)
    if expected is None:
        raise ValueError(
            f"The reference answer {reference[:80]!r} names no option among {letters}."
        )
    return named_choice(answer, letters) == expected


def letters_of(reference: str) -> str:
    """The letters that options may have: A to E, or up to the letter of the reference where it is a later one."""
    named = named_option(reference) or "E"
    return OPTIONS[: max(OPTIONS.index(named) + 1, 5)]


def several_numbers(answer: str) -> bool:
    """Is this a range, list, date or clock time: digits that are not one number?"""
    text = plain(answer)
    series = read_series(text)
    numbers = series is not None and all(read_number(item) is not None for item in series.items)
    return numbers or read_label(text) is not None


def same_number(
    answer: str, reference: str, tolerance: float | None = None, letters: bool = True
) -> bool:
    """Are both numbers, equal by the rules of `numbers.close`, or within a relative `tolerance` if one is given?

    A unit counts only if both have one; units of the same kind are converted. With `letters=False` a single letter at
    its number may be a variable: then "5m" is not 5.
    """
    given, expected = read_number(answer), read_number(reference)
    return (
        given is not None
        and expected is not None
        and _equal_numbers(given, expected, tolerance, letters)
    )


def same_math(answer: str, reference: str) -> bool:
    """Are the two equal by the rules above? Run it where it can be killed."""
    return _same(answer, reference, NESTED)


def matches(answer: str | None, answers: Sequence[str], same: Same = same_math) -> float:
    """1.0 if the answer equals one of the references, else 0.0; None never matches."""
    if answer is None:
        return 0.0
    return float(any(same(answer, reference) for reference in answers))


def _same(answer: str, reference: str, depth: int) -> bool:
    """Ask the rules in turn; the first that knows decides."""
    if depth == 0 or max(len(answer), len(reference)) > MATH_LENGTH:
        return same_text(answer, reference)
    given, expected = plain(answer), plain(reference)
    if not given or not expected:
        return False
    for rule in (_same_option, _same_label):
        verdict = rule(given, expected)
        if verdict is not None:
            return verdict
    for verdict in (_same_series(given, expected, depth), _same_value(given, expected)):
        if verdict is not None:
            return verdict
    if same_text(given, expected):
        return True
    if not _is_mathematical(expected) or _is_endless(given) or _is_endless(expected):
        return False
    return _same_expression(given, expected)


def _same_option(given: str, expected: str) -> bool | None:
    """Where the reference is nothing but the letter of an option."""
    lone = _LONE_OPTION.fullmatch(expected)
    if lone is None:
        # The reference may itself be "B. dog"; then its letter alone is enough.
        option = named_option(expected)
        named = named_option(given) if option else None
        return named == option if named else None
    named = named_option(given)
    return None if named is None else named == lone[1]


def _same_label(given: str, expected: str) -> bool | None:
    label, wanted = read_label(given), read_label(expected)
    if label is not None and wanted is not None:
        return same_label(label, wanted)
    if label is None and wanted is None:
        return None
    # "3-1-2" and "A-B-C" are orders if the other side is a list.
    other, chain = (given, expected) if label is None else (expected, given)
    if read_series(other) is not None and chain_items(chain) is not None:
        return None
    return same_text(given, expected)


def _same_series(given: str, expected: str, depth: int) -> bool | None:
    series, wanted = read_series(given), read_series(expected)
    if series is None and wanted is None:
        return None
    # "1,234" is a number by itself, and two items beside a list.
    series = series or chain_items(given) or read_series(given, split_thousands=True)
    wanted = wanted or chain_items(expected) or read_series(expected, split_thousands=True)
    if series is None or wanted is None:
        single = given if series is None else expected
        # A single value is no list; an expression may still describe one: "\\pm 2", "x \\in \\{1, 2\\}".
        return False if _is_single(single) else None
    if series.relations != wanted.relations and series.relations and wanted.relations:
        series = series.turned()
    if series.relations != wanted.relations:
        return False
    return _same_items(series, wanted, depth)


def _same_items(series: Series, wanted: Series, depth: int) -> bool:
    def same(item: str, other: str) -> bool:
        return _same(item, other, depth - 1)

    if wanted.is_set and series.opening in ("", "{"):
        if max(len(series.items), len(wanted.items)) > LARGEST_SET:
            return series.items == wanted.items
        found = all(any(same(item, other) for other in wanted.items) for item in series.items)
        return found and all(
            any(same(item, other) for item in series.items) for other in wanted.items
        )
    if (
        wanted.is_set
        or len(series.items) != len(wanted.items)
        or not _same_ends(series, wanted)
    ):
        return False
    names, wanted_names = _names(series), _names(wanted)
    if names and set(names) == set(wanted_names):
        # Labelled items carry their place with them: x = 1, y = 2 is y = 2, x = 1.
        return all(same(names[name], value) for name, value in wanted_names.items())
    return all(map(same, series.items, wanted.items))


def _same_ends(series: Series, wanted: Series) -> bool:
    """Brackets differ only where they mean something: (1, 2) and [1, 2] are two intervals."""
    ends, others = series.opening + series.closing, wanted.opening + wanted.closing
    half_open = {ends, others} & {"(]", "[)"}
    if ends == others or (not half_open and "" in (ends, others)):
        return True
    if half_open or len(wanted.items) == 2:
        return "{}" in (ends, others) and not half_open
    return True


def _names(series: Series) -> dict[str, str]:
    """Items by their labels, if all have one and no two the same; else empty."""
    pairs = [re.fullmatch(r"(\\?[A-Za-z]\w{0,20}) ?[=:] ?(.+)", item) for item in series.items]
    named = {pair[1]: pair[2] for pair in pairs if pair is not None}
    return named if len(named) == len(series.items) else {}


def _same_value(given: str, expected: str) -> bool | None:
    """Where both are numbers, exactly computed. TooLarge for either is a no unless they are written the same."""
    try:
        number, wanted = _quantity(given), _quantity(expected)
    except TooLarge:
        return same_text(given, expected)
    if number is not None and wanted is not None:
        return _equal_numbers(number, wanted, None, letters=False)
    return None


def _quantity(text: str) -> Number | None:
    """A number with its unit, or an expression of digits with one. Raises TooLarge."""
    number = read_number(text)
    if number is not None:
        return number
    body, unit = _without_unit(text)
    value = arithmetic(body)
    return None if value is None else Number(value, unit=read_unit(unit) if unit else None)


def _without_unit(text: str) -> tuple[str, str]:
    """An expression and the known unit that follows it, or the text and nothing."""
    found = re.fullmatch(
        r"(.*[\d)}!]) ?((?: |\{)[^\d(){}\\+=*-]{1,30}\}?(?:\^ ?\{?-?\d\}?)?)", text
    )
    if found is None:
        return text, ""
    unit = found[2].strip()
    return (found[1].strip(), unit) if known_unit(unit) else (text, "")


def _equal_numbers(
    given: Number, expected: Number, tolerance: float | None, letters: bool
) -> bool:
    if given.unit is not None and expected.unit is not None:
        if given.unit.dimensions != expected.unit.dimensions:
            return False
        if given.unit != expected.unit:
            return close(in_base_units(given), in_base_units(expected), tolerance)
    one_unit = given.unit or expected.unit
    if (
        (given.unit is None) != (expected.unit is None)
        and one_unit
        and one_unit.letter
        and not letters
    ):
        return False
    if close(given, expected, tolerance):
        return True
    if given.percent == expected.percent:
        return False
    # One of the two has a percent sign: it may also be meant as a share.
    share = _divided(given) if given.percent else given
    wanted = _divided(expected) if expected.percent else expected
    return close(share, wanted, tolerance)


def _divided(number: Number) -> Number:
    return Number(number.value / 100, step=number.step / 100)


def _is_single(text: str) -> bool:
    """Is this one number or one word?"""
    try:
        return text.isalpha() or _quantity(text) is not None
    except TooLarge:
        return True


def _same_expression(given: str, expected: str) -> bool:
    """Mathematics, without the units behind it."""
    (body, unit), (wanted, wanted_unit) = _without_unit(given), _without_unit(expected)
    if unit and wanted_unit:
        one, other = read_unit(unit), read_unit(wanted_unit)
        if (
            one is None
            or other is None
            or one.dimensions != other.dimensions
            or one.offset != other.offset
        ):
            return False
        ratio = one.factor / other.factor
        body = f"({body})" + (
            f" \\cdot \\frac{{{ratio.numerator}}}{{{ratio.denominator}}}" if ratio != 1 else ""
        )
    return verified(body, wanted, exact=True)


def verified(answer: str, reference: str, exact: bool = False) -> bool:
    """What math-verify says. Run it where it can be killed.

    `exact` confirms its yes in digits: by itself it takes 2^-99·π and 2^-98·π for equal.
    """
    import logging

    from math_verify import parse, verify

    for module in ("parser", "grader"):  # it warns at each start that its own time-out is off
        logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
    expected = parse(f"${_undollar(reference)}$", parsing_timeout=None)  # type: ignore[arg-type]
    given = parse(f"${_undollar(answer)}$", parsing_timeout=None)  # type: ignore[arg-type]
    if not verify(expected, given, timeout_seconds=None):
        return False
    return not exact or _agree_in_digits(given, expected)


def _agree_in_digits(given: Sequence[object], expected: Sequence[object]) -> bool:
    """Do numbers among what was parsed agree: to 15 digits, to 6 with a rounded decimal, an integer exactly?"""
    from sympy import Expr, Float

    pairs = [
        (one, other)
        for one in given
        for other in expected
        if isinstance(one, Expr) and isinstance(other, Expr)
    ]
    numbers = [(one, other) for one, other in pairs if one.is_number and other.is_number]
    if not numbers:
        return True
    for one, other in numbers:
        rounded = one.has(Float) or other.has(Float)
        if rounded and (one.is_Integer or other.is_Integer):
            continue
        error, scale = abs((one - other).evalf(30)), abs(other.evalf(30))
        # An exact difference of zero may come out as 1e-31 of its terms.
        if error <= scale * (1e-6 if rounded else 1e-15) or error == 0:
            return True
    return False


def _words(text: str) -> str:
    """What is compared as text: without dressing, case, braces and quotes."""
    return plain(text).casefold().strip("{}\"'` ")


def _undollar(text: str) -> str:
    return text.strip().strip("$").strip()


def _is_mathematical(reference: str) -> bool:
    """Is this more than words? One or two letters may be variables; "cat" read as c·a·t would pay "act"."""
    undressed = plain(reference).strip("{}")
    letters = re.sub(r"[\s.,'\"-]", "", undressed)
    return not (letters.isalpha() and len(letters) > 2)


def _is_endless(text: str) -> bool:
    """Would a symbolic grader compute for ever?"""
    if any(pattern.search(text) for pattern in _ENDLESS):
        return True
    # The parser of LaTeX tries every way to close an open bracket.
    depth = deepest = 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        deepest = max(deepest, depth)
    return deepest > DEEPEST or depth != 0 or text.count(",") > LARGEST_SET
