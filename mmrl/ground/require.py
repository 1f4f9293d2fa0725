"""One way to refuse a setting: which record, which field, what was given, what is allowed."""

from __future__ import annotations


def require(record: object, **rules: tuple[bool, str]) -> None:
    """Check fields of a record: `require(self, top_p=(0 < self.top_p <= 1, "in (0, 1]"))`.

    Each rule is (holds?, what the field must be). Raises ValueError for the first field that breaks its rule, as in
    "Sampling.top_p is 0; it must be in (0, 1]."
    """
    for name, (holds, rule) in rules.items():
        if not holds:
            value = getattr(record, name)
            raise ValueError(f"{type(record).__name__}.{name} is {value!r}; it must be {rule}.")
