"""One way to refuse a setting: which record, which field, what was given, what is allowed."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass


def require(record: object, **rules: tuple[bool, str]) -> None:
    """Check fields of a record: `require(self, top_p=(0 < self.top_p <= 1, "in (0, 1]"))`.

    Each rule is (holds?, what the field must be). Raises ValueError for the first field that breaks its rule, as in
    "Sampling.top_p is 0; it must be in (0, 1].", and for any number of a dataclass that is infinite or not a number.
    """
    for name, (holds, rule) in rules.items():
        if not holds:
            value = getattr(record, name)
            raise ValueError(f"{type(record).__name__}.{name} is {value!r}; it must be {rule}.")
    for each in fields(record) if is_dataclass(record) else ():
        value = getattr(record, each.name, None)
        # No setting means anything at infinity, and a comparison alone lets it pass.
        if not _is_finite(value):
            raise ValueError(
                f"{type(record).__name__}.{each.name} is {value!r}; it must be a finite number."
            )


def _is_finite(value: object) -> bool:
    """Is it a finite number, or several, or none at all?"""
    if isinstance(value, tuple | list):
        return all(_is_finite(part) for part in value)
    return not isinstance(value, float) or math.isfinite(value)
