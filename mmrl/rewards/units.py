r"""Units of measure as they stand behind a number: "cm", "km/h", "m s^{-1}", "square feet", "°C", "$", "apples".

`read_unit` gives dimensions and an exact factor, so that two answers in different units can be compared exactly:
35 cm is 0.35 m and is not 35 m. Any other word is a thing that is counted and converts to nothing but itself.

Own code rather than a library of units: those read "h" as Planck's constant, convert by floats or load sympy, and the
module must be small enough for a worker that starts in milliseconds. Factors are the legal definitions (SI brochure,
9th edition; the international yard and pound of 1959).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

Dimensions = tuple[tuple[str, int], ...]
"""Base and exponent, sorted by base: m s^-1 is (("m", 1), ("s", -1))."""


@dataclass(frozen=True)
class Unit:
    """value in base units = (value + offset) · factor."""

    dimensions: Dimensions
    factor: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)
    """Only temperatures have one."""
    letter: bool = False
    """Was it a single letter written at the number, so that it may be a variable as well?"""


LONGEST = 60
"""Longest text that is read as a unit, in characters."""
_PREFIXES = {
    "T": ("tera", "1e12"),
    "G": ("giga", "1e9"),
    "M": ("mega", "1e6"),
    "k": ("kilo", "1e3"),
    "d": ("deci", "1e-1"),
    "c": ("centi", "1e-2"),
    "m": ("milli", "1e-3"),
    "µ": ("micro", "1e-6"),
    "u": ("micro", "1e-6"),
    "n": ("nano", "1e-9"),
    "p": ("pico", "1e-12"),
}
# Symbols and words, the factor, and the dimensions as base and exponent.
_SCALED = """m meter metre | 1 | m 1
g gram gramme | 1 | g 1
s sec second | 1 | s 1
l L liter litre | 1e-3 | m 3
N newton | 1000 | g 1 m 1 s -2
J joule | 1000 | g 1 m 2 s -2
W watt | 1000 | g 1 m 2 s -3
Pa pascal | 1000 | g 1 m -1 s -2
V volt | 1000 | A -1 g 1 m 2 s -3
A amp ampere | 1 | A 1
Ω ohm | 1000 | A -2 g 1 m 2 s -3
Hz hertz | 1 | s -1
mol mole | 1 | mol 1
cal calorie | 4184 | g 1 m 2 s -2
Wh watthour | 3600000 | g 1 m 2 s -3 s 1
eV electronvolt | 1 | eV 1
bit | 1 | bit 1
B byte | 8 | bit 1"""
_FIXED = """in inch inches | 0.0254 | m 1
ft foot feet | 0.3048 | m 1
yd yard | 0.9144 | m 1
mi mile | 1609.344 | m 1
lb lbs pound | 453.59237 | g 1
oz ounce | 28.349523125 | g 1
t tonne | 1e6 | g 1
min mins minute | 60 | s 1
h hr hrs hour | 3600 | s 1
day days | 86400 | s 1
week wk | 604800 | s 1
month | 1 | month 1
year yr yrs | 12 | month 1
ha hectare | 10000 | m 2
acre | 4046.8564224 | m 2
gal gallon | 0.003785411784 | m 3
cc | 1e-6 | m 3
kmh kph | 5/18 | m 1 s -1
mph | 0.44704 | m 1 s -1
bar | 1e8 | g 1 m -1 s -2
atm | 101325000 | g 1 m -1 s -2
rpm | 1/60 | turn 1 s -1
° degree degrees deg | 1 | ° 1
arcmin arcminute | 1/60 | ° 1
rad radian | 1 | rad 1
K kelvin | 1 | kelvin 1
$ usd USD dollar | 1 | dollar 1
¢ cent ct | 1/100 | dollar 1
€ eur EUR euro | 1 | euro 1
£ gbp GBP | 1 | sterling 1
¥ yen JPY | 1 | yen 1
₹ rupee INR | 1 | rupee 1
px pixel | 1 | pixel 1"""
_TEMPERATURES = {
    "°c": Unit((("kelvin", 1),), Fraction(1), Fraction("273.15")),
    "celsius": Unit((("kelvin", 1),), Fraction(1), Fraction("273.15")),
    "°f": Unit((("kelvin", 1),), Fraction(5, 9), Fraction("459.67")),
    "fahrenheit": Unit((("kelvin", 1),), Fraction(5, 9), Fraction("459.67")),
}
_POWERS = {"square": 2, "sq": 2, "cubic": 3}
# Words that begin or join an expression: "2 sqrt" and "3 or 4" are no things that are counted.
_EXPRESSIONS = """sqrt sin cos tan cot sec csc log exp ln pi inf infty times and or to mod over plus minus not is per
frac cdot between from than the"""
_NO_THINGS = frozenset(_EXPRESSIONS.split())
_FACTOR = re.compile(r"(/)?\s*(°[CFcf]?|[^\W\d_]+|[$€£¥¢₹])\s*(?:\^?\s*(-?\d))?\s*")


def read_unit(text: str, attached: bool = False) -> Unit | None:
    """The unit that a text names, None if it names none; `attached`: it is written at its number without a space."""
    text = _folded(text)
    if not text or len(text) > LONGEST:
        return None
    if text.casefold() in _TEMPERATURES:
        return _TEMPERATURES[text.casefold()]
    unit = _product(text)
    if unit is not None:
        single = attached and len(text) == 1 and text.isalpha()
        return Unit(unit.dimensions, unit.factor, letter=single)
    words = text.casefold().split()
    counted = all(word.isalpha() and word not in _NO_THINGS for word in words)
    # "5 apples" is a number of things; "5x", "5 n" and "5abc" are products of letters.
    if attached or not counted or max(map(len, words)) < 3:
        return None
    return Unit(((_singular(" ".join(words)), 1),))


def known_unit(text: str) -> bool:
    """Is this a unit of measure, rather than a thing that is counted?"""
    text = _folded(text)
    return text.casefold() in _TEMPERATURES or (
        0 < len(text) <= LONGEST and _product(text) is not None
    )


def _folded(text: str) -> str:
    """Without braces, dots and multiplication signs; "per" as a slash; degrees as °."""
    text = re.sub(r"[{}~]|\\,", " ", text.replace("\\cdot", " "))
    text = re.sub(r"\\(?:circ|degree)\b|\bdegrees?\b", "°", text)
    text = (
        re.sub(r"\^\s*°", "°", text)
        .replace("\\mu", "µ")
        .replace("\\Omega", "Ω")
        .replace("\u2126", "Ω")
    )
    text = re.sub(r"°\s*(?=[cCfF]\b|celsius|fahrenheit)", "°", text, flags=re.IGNORECASE)
    text = re.sub(r"°(?=celsius|fahrenheit)", "", text, flags=re.IGNORECASE)
    text = re.sub(r"\bper\b", "/", text).replace("μ", "µ").replace("·", " ").replace("*", " ")
    # In "5 m." the dot ends a sentence.
    return re.sub(r"\s+", " ", text.replace(".", " ")).strip()


def _product(text: str) -> Unit | None:
    """A product of known units with exponents; None if one of them is unknown."""
    powers: dict[str, int] = {}
    factor, at, raised = Fraction(1), 0, 1
    while at < len(text):
        found = _FACTOR.match(text, at)
        if found is None:
            return None
        at = found.end()
        divided, name, written = found.groups()
        if name.casefold() in _POWERS:
            raised = _POWERS[name.casefold()]
            continue
        unit = _lookup(name)
        if unit is None:
            return None
        exponent = int(written or 1) * raised * (-1 if divided else 1)
        raised = 1
        factor *= unit.factor**exponent
        for base, power in unit.dimensions:
            powers[base] = powers.get(base, 0) + power * exponent
    dimensions = tuple(sorted((base, power) for base, power in powers.items() if power))
    return Unit(dimensions, factor) if powers and raised == 1 else None


def _lookup(name: str) -> Unit | None:
    """A unit by symbol, which knows capitals (mW, MW), or by word, which does not."""
    for spelling in (name, name.casefold(), _singular(name.casefold())):
        # Plurals of symbols are none: "ms" is a millisecond. Single letters keep their case: "n" is no newton.
        if spelling in _UNITS and (len(name) > 1 or spelling == name):
            return _UNITS[spelling]
    return _FOLDED.get(name.casefold()) if len(name) > 1 else None


def _singular(word: str) -> str:
    if word.endswith(("xes", "ches", "shes", "sses")):
        return word[:-2]
    long_enough = len(word) > 3
    return word[:-1] if long_enough and word.endswith("s") and word[-2] != "s" else word


def _table() -> dict[str, Unit]:
    units: dict[str, Unit] = {}
    scaled = _SCALED.splitlines()
    for line in (
        scaled + _FIXED.splitlines()
    ):  # what is fixed comes last and wins: "min" is a minute
        names, factor, dimensions = line.split("|")
        parts = dimensions.split()
        powers: dict[str, int] = {}
        for base, power in zip(parts[::2], parts[1::2], strict=True):
            powers[base] = powers.get(base, 0) + int(power)
        unit = Unit(tuple(sorted(powers.items())), Fraction(factor.strip()))
        units |= dict.fromkeys(names.split(), unit)
        if line in scaled:
            units |= _prefixed(names.split(), unit)
    return units


def _prefixed(names: Sequence[str], unit: Unit) -> dict[str, Unit]:
    """All names of a unit with all prefixes: symbols with symbols, words with words."""
    prefixed: dict[str, Unit] = {}
    for symbol, (word, power) in _PREFIXES.items():
        # Tenths and hundredths are in use for few units, and "dB" is no tenth of a byte.
        if symbol in "dc" and names[0] not in ("m", "g", "l"):
            continue
        scaled = Unit(unit.dimensions, unit.factor * Fraction(power))
        for name in names:
            is_symbol = len(name) < 3 or name in ("mol", "cal", "bit")
            prefixed[(symbol if is_symbol else word) + name] = scaled
    return prefixed


_UNITS = _table()
# Spellings in capitals ("KM", "Mhz"). Where two differ by case alone, the first counts, "mhz" being the exception.
_FOLDED = {name.casefold(): unit for name, unit in reversed(_UNITS.items()) if len(name) > 1}
_FOLDED |= {"mhz": _UNITS["MHz"], "mw": _UNITS["mW"], "mb": _UNITS["MB"], "gb": _UNITS["GB"]}
