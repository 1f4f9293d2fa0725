r"""The grader of mathruler 0.1.0 (EasyR1, PAPO and descendants), rebuilt so that published numbers are comparable.

Two answers are equal if their short forms agree as strings (the rules of the MATH benchmark), or their long forms agree
as strings or, element by element of a tuple, under sympy (the rules of PRM800K). Oddities that are kept on purpose:
1. No box, or one that is not closed, yields the text "None", which a reference "None" would pay.
2. Braces are counted without regard to escapes, so `\boxed{\{}` is not closed.
3. Per cent signs, currency and units are dropped: "12%" is not 0.12, but it is 12. "million" becomes "*10^6",
   and by rule 4 "5 million" is yet not 5000000.
4. An integer reference wants an integer written out: "\sqrt{4}" is not 2. A fraction that is not reduced is wrong,
   though "0.5" for 1/2 is right.
5. "^{" and powers of several digits are never evaluated, more than two distinct letters are not either; "9**9**9" is.
   sympy evaluates text that a model wrote: run it in a worker of `worker_pool` only.
6. Words are compared without case or spaces; "x=4" is 4, because a left side of up to two letters is dropped.

Departure: the original turns LaTeX into text with pylatexenc; `_latex_to_text` covers what occurs in answers
(fractions, roots, symbols, text and font commands, spacing) and treats other commands as pylatexenc does unknown ones:
dropped, their arguments kept. Accents, font styles and matrices are not reproduced character by character.
"""

from __future__ import annotations

import math
import re

from mmrl.ground.answers import boxed

_NUMBER_WORDS = {"million": 6, "billion": 9, "trillion": 12}
_UNITS = (
    "degree cm centimeter meter mile second minute hour day week month year foot feet inch yard"
)
_BRACKETS = "()[]"
_GREEK = "alpha beta gamma delta zeta eta theta iota kappa lambda mu nu xi omicron rho sigma tau upsilon chi psi omega"
_FUNCTIONS = "sin cos tan cot sec csc log ln exp lim max min gcd arcsin arccos arctan sinh cosh tanh deg det dim"
# pylatexenc's table of characters, as far as answers need it. Epsilon and phi have two forms, hence not in _GREEK.
_SYMBOLS = {
    "pi": "pi", "infty": "inf", "cup": "U", "cdot": "*", "times": "*", "pm": "±", "mp": "∓", "div": "÷", "circ": "∘",
    "le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "neq": "≠", "approx": "≈", "equiv": "≡", "in": "∈", "cap": "∩",
    "emptyset": "∅", "varnothing": "∅", "angle": "∠", "perp": "⊥", "parallel": "∥", "to": "→", "rightarrow": "→",
    "Rightarrow": "⇒", "ldots": "…", "dots": "…", "cdots": "⋯", "mid": "|", "lvert": "|", "rvert": "|", "prime": "'",
    "phi": "ϕ", "varphi": "φ", "epsilon": "ϵ", "varepsilon": "ε", "sum": "∑", "int": "∫", "langle": "⟨", "rangle": "⟩",
    "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉", "backslash": "\\", "quad": "  ", "qquad": "    ",
    " ": " ", ",": " ", ";": " ", ":": " ", "\\": "\n", "{": "{", "}": "}", "%": "%", "$": "$", "#": "#", "&": "&",
    "_": "_", "|": "‖", "Delta": "Δ", "Gamma": "Γ", "Theta": "Θ", "Lambda": "Λ", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ",
    "Omega": "Ω", "square": "□", "forall": "∀", "subset": "⊂", "subseteq": "⊆", "sim": "∼", "cong": "≅", "neg": "¬",
    "land": "∧", "lor": "∨", "wedge": "∧", "vee": "∨", "notin": "∉", "setminus": "∖", "star": "⋆", "ast": "∗",
}  # fmt: skip
_SYMBOLS |= {name: name for name in _FUNCTIONS.split()}
_SYMBOLS |= dict(zip(_GREEK.split(), "αβγδζηθικλμνξορστυχψω", strict=True))
_SPECIAL = {
    "~": "\N{NO-BREAK SPACE}",
    "&": " ",
    "√": "sqrt",
    "π": "pi",
    "∞": "inf",
    "∪": "U",
    "·": "*",
    "×": "*",
}
_DROPPED_WITH_ARGUMENT = ("mbox", "hspace", "vspace", "begin", "end", "label", "color")
_NAME = re.compile(r"(?:([A-Za-z]+)\s*|([^A-Za-z]))", re.DOTALL)
_INDEX = re.compile(r"\[[^\]]*\]")
_DASHES = re.compile("---?")
_AFTER_BREAK = re.compile(r"\s*\*?(?:\s*\[[^\]]*\])?")
_FRACTION = re.compile(r"^-?[0-9]+.?/0*[1-9][0-9]*.?$")
_POWERS = re.compile(r"\^[0-9]+\^|\^[0-9][0-9]+")


def extract_boxed_content(text: str) -> str:
    r"""The content of the last `\boxed{…}`, or the text "None"."""
    inside = boxed(text, escapes=False)
    return "None" if inside is None else inside


def grade_answer(given: str, ground_truth: str) -> bool:
    """Does the answer equal the reference by mathruler's rules?"""
    if _short_form(given) == _short_form(ground_truth):
        return True
    expected, answer = _long_form(ground_truth), _long_form(given)
    if expected == answer:
        return True
    if not answer:
        return False
    wanted, found = _elements(expected), _elements(answer)
    if not wanted or len(wanted) != len(found):
        return False
    # "(1, 2]" and "[1, 2)" are different intervals; around a single element brackets do not matter.
    same_ends = (expected[0], expected[-1]) == (answer[0], answer[-1])
    if len(wanted) > 1 and not same_ends:
        return False
    return all(_same_element(*pair) for pair in zip(wanted, found, strict=True))


def _short_form(answer: str) -> str:
    """The form of the MATH benchmark; an answer that its rules cannot treat stays as it is."""
    answer = answer.strip()
    if enclosed := re.search(r"^\\text\{(.+?)\}$", answer):
        answer = enclosed[1].strip()
    try:
        return _rewritten(answer)
    except (IndexError, ValueError):
        return answer


def _rewritten(text: str) -> str:
    """Raises IndexError for a command that ends the text, ValueError for two units in text commands."""
    # The rules of the benchmark, in its order: each reads what the ones before left.
    for dropped, instead in (
        ("\n", ""),
        ("\\!", ""),
        ("\\\\", "\\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
    ):
        text = text.replace(dropped, instead)
    for dropped in ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$"):
        text = text.replace(dropped, "")
    if text.count("\\text{ ") > 1:
        raise ValueError("more than one unit")
    text = text.partition("\\text{ ")[0]  # a unit stands behind the number
    text = text.replace("\\%", "").replace("%", "")
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    if text.startswith("."):
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    # Roots before spaces are dropped: "\sqrt 2" takes its space for the argument, as the original does.
    text = _braced_fractions(_braced_roots(text).replace(" ", ""))
    if text == "0.5":  # the only decimal that the original turns into a fraction
        return "\\frac{1}{2}"
    return _braced_slash(text)


def _braced_roots(text: str) -> str:
    r"""`\sqrt3` as `\sqrt{3}`. Raises IndexError for a root without argument."""
    head, *rest = text.split("\\sqrt")
    for part in rest:
        braced = part if part[0] == "{" else f"{{{part[0]}}}{part[1:]}"
        head += "\\sqrt" + braced
    return head


def _braced_fractions(text: str) -> str:
    r"""`\frac12` as `\frac{1}{2}`; the text as it was if a fraction lacks its second argument."""
    head, *rest = text.split("\\frac")
    for part in rest:
        if part[0] != "{":
            if len(part) < 2:
                return text
            second = part[1] if part[1] == "{" else f"{{{part[1]}}}"
            part = f"{{{part[0]}}}{second}{part[2:]}"
        head += "\\frac" + part
    return head


def _braced_slash(text: str) -> str:
    r"""A text that is nothing but `1/2`, integers without leading zeros, as `\frac{1}{2}`."""
    match = re.fullmatch(r"(0|-?[1-9]\d*)/(0|-?[1-9]\d*)", text, re.ASCII)
    return f"\\frac{{{match[1]}}}{{{match[2]}}}" if match else text


def _long_form(text: str) -> str:
    """The form of PRM800K: units, words for numbers and LaTeX resolved, lower case, no spaces."""
    if enclosed := re.search(r"^\\text\{(.+?)\}$", text):
        text = enclosed[1]
    for before, after in (
        ("\\%", "%"),
        ("\\$", "$"),
        ("$", ""),
        ("%", ""),
        (" or ", " , "),
        (" and ", " , "),
    ):
        text = text.replace(before, after)
    for word, power in _NUMBER_WORDS.items():
        text = text.replace(word, f"*10^{power}")
    for unit in _UNITS.split():
        text = re.sub(rf"{unit}(es)?(s)? *(\^[0-9]+)?", "", text)
    text = re.sub(r"\^ *\\circ", "", text)
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    text = re.sub(r",\\! *", "", text)
    value = _as_float(text)
    if value is not None and _near_integer(value):
        text = str(round(value))
    if "\\" in text:
        text = _without_latex(text)
    text = re.sub("- *", "-", text)
    text = re.sub("([0-9]) +([0-9])", r"\1+\2", text)  # a mixed number
    for dropped in " {}":
        text = text.replace(dropped, "")
    text = text.lower()
    # Through float, as the original: integers beyond 2^53 lose their last digits on both sides alike.
    if _is_integer(text):
        return str(int(float(text.replace(",", ""))))
    return text


def _without_latex(text: str) -> str:
    """LaTeX as text that sympy may read; unchanged if it cannot be resolved."""
    spaced = (
        text.replace("\\tfrac", "\\frac")
        .replace("\\dfrac", "\\frac")
        .replace("\\frac", " \\frac")
    )
    try:
        return _latex_to_text(spaced, 0, inside=False)[0].strip()
    except (IndexError, RecursionError):  # an argument is missing, or braces nest without end
        return text


def _latex_to_text(text: str, at: int, inside: bool) -> tuple[str, int]:
    """Resolve from a position to the end, or to the closing brace if `inside` a group; and where that is."""
    pieces: list[str] = []
    while at < len(text):
        char = text[at]
        if char == "\\":
            piece, at = _command(text, at + 1)
        elif char == "{":
            piece, at = _latex_to_text(text, at + 1, inside=True)
        elif char == "}":
            at += 1
            if inside:
                break
            continue  # a brace that closes nothing is dropped
        elif dashes := _DASHES.match(text, at):
            piece = "—" if dashes[0] == "---" else "–"
            at = dashes.end()
        else:
            piece, at = _SPECIAL.get(char, char), at + 1
        pieces.append(piece)
    return "".join(pieces), at


def _command(text: str, at: int) -> tuple[str, int]:
    """The text of the command whose name begins here. Raises IndexError if its arguments are missing."""
    match = _NAME.match(text, at)
    if match is None:
        return "", at
    name = match[1] or match[2]
    at = match.end()
    if name == "frac":
        top, at = _argument(text, at)
        bottom, at = _argument(text, at)
        return f"{top}/{bottom}", at
    if name == "sqrt":
        if index := _INDEX.match(text, at):
            at = index.end()  # the 3 of a cube root is lost, as in the original
        root, at = _argument(text, at)
        return f"sqrt({root})", at
    if name == "\\" and (options := _AFTER_BREAK.match(text, at)):
        # A line break may have a star and a distance; spaces alone belong to the text.
        return "\n", options.end() if options[0].strip() else at
    if name in _DROPPED_WITH_ARGUMENT:
        return "", _argument(text, at)[1]
    return _SYMBOLS.get(name, ""), at


def _argument(text: str, at: int) -> tuple[str, int]:
    """A group, a command, or the next character, as TeX reads an argument. Raises IndexError at the end."""
    while text[at].isspace():
        at += 1
    if text[at] == "{":
        return _latex_to_text(text, at + 1, inside=True)
    if text[at] == "\\":
        return _command(text, at + 1)
    return text[at], at + 1


def _elements(text: str) -> list[str]:
    """The elements of a tuple or interval, else the text as the only one."""
    text = _without_thousands(text)
    if not text:
        return []
    inner = text[1:-1]
    bracketed = len(text) > 2 and text[0] in _BRACKETS and text[-1] in _BRACKETS
    # With brackets inside, such as "(1, f(2))", commas are not known to separate elements.
    if bracketed and not set(inner) & set(_BRACKETS):
        return [element.strip() for element in inner.split(",")]
    return [text]


def _same_element(expected: str, answer: str) -> bool:
    """PRM800K's rules for one element: fractions as they are written, integers with integers, sympy for the rest."""
    if _FRACTION.search(expected) and _FRACTION.search(answer):
        return expected == answer
    if _is_integer(expected) != _is_integer(answer):
        return False
    return _same_under_sympy(f"({expected})-({answer})")


def _same_under_sympy(difference: str) -> bool:
    """Does sympy simplify the difference to 0? False for what it had better not try."""
    symbols = difference.replace("sqrt", "").replace("frac", "")
    letters = {char for char in symbols if char.isalpha()}
    if len(letters) > 2:  # words rather than variables
        return False
    # Towers of powers take for ever; the original refuses these spellings, and "9**9**9" passes.
    if "^{" in difference or "^(" in difference or _POWERS.search(difference):
        return False
    from sympy import simplify
    from sympy.parsing import sympy_parser as parser

    rules = (*parser.standard_transformations, parser.implicit_multiplication_application)
    try:
        expression = parser.parse_expr(difference.replace("^", "**"), transformations=rules)
        return bool(simplify(expression) == 0)
    except Exception:  # whatever a model wrote: sympy raises almost anything
        return False


def _without_thousands(text: str) -> str:
    # Repeated: matches of "1,234,567" overlap in the digit before the second comma.
    previous = None
    while previous != text:
        previous, text = text, re.sub(r"(\d),(\d\d\d)($|\D)", r"\1\2\3", text)
    return text


def _is_integer(text: str) -> bool:
    value = _as_float(_without_thousands(text))
    return value is not None and _near_integer(value)


def _near_integer(value: float) -> bool:
    # round() raises for NaN and infinities.
    return math.isfinite(value) and abs(value - round(value)) <= 1e-7


def _as_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
