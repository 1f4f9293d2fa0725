"""Which of several data sets a row belongs to: the column that a mixture gives its rows. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping

COLUMN = "mixed_from"
"""Column of a row with the name of its domain; a mixture writes it, whatever the row had there."""
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
"""What a domain may be called; it becomes a part of metrics' names."""
SCORE = "score"
"""Reward part with the measure of a domain that has no part `accuracy`: what its evaluation is about."""


def domain_of(extra: Mapping[str, object]) -> str:
    """Name of the domain that a row with these columns was drawn from; "" outside a mixture."""
    return str(extra.get(COLUMN, ""))
