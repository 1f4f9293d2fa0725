"""Adapters of the families of models that are known; the only place that knows them by name."""

from mmrl.model.families import internvl, qwen, qwen_hybrid, text
from mmrl.model.families.family import (
    Family,
    Grid,
    Shown,
    Space,
    TowerShape,
    families,
    family_of,
    register,
    unknown,
)

for _family in (
    *qwen.FAMILIES,
    *qwen_hybrid.FAMILIES,
    *internvl.FAMILIES,
    *text.FAMILIES,
):
    register(_family)

__all__ = [
    "Family",
    "Grid",
    "Shown",
    "Space",
    "TowerShape",
    "families",
    "family_of",
    "register",
    "unknown",
]
