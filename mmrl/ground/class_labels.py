"""Class labels: stored as numbers, meant as names.

`datasets` keeps the names beside the table: in its own features, in the metadata of a parquet file, or on the card of a
hub folder (`mmrl.data.rows.cards`). -1 stands for "no label" and becomes None.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Names = Any
"""What a feature says of labels: a list of names; {"each": Names} for a list; {field: Names} under "fields"; None."""


def label_names(features: Mapping[str, Any]) -> dict[str, Names]:
    """The columns with class labels at any depth, from features as `datasets` writes them in JSON."""
    found = {name: _names_of(feature) for name, feature in features.items()}
    return {name: names for name, names in found.items() if names}


def parquet_label_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, Names]:
    """The same from the metadata of a parquet file; empty without any."""
    written = (metadata or {}).get(b"huggingface")
    try:
        features = json.loads(written or b"{}")["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return label_names(features) if isinstance(features, Mapping) else {}


def with_names(row: Mapping[str, Any], names: Mapping[str, Names]) -> Mapping[str, Any]:
    """The row with labels as names."""
    if not names:
        return row
    return {key: _named(value, names.get(key)) for key, value in row.items()}


def _names_of(feature: Any) -> Names:
    """The names in one feature; None if it has no label."""
    if isinstance(feature, list):  # the oldest way of writing a list
        return _each(feature[0]) if feature else None
    if not isinstance(feature, Mapping):
        return None
    if feature.get("_type") == "ClassLabel":
        return list(feature.get("names") or ())
    if "feature" in feature:
        return _each(feature["feature"])
    fields = {name: _names_of(part) for name, part in feature.items() if name != "_type"}
    labelled = {name: names for name, names in fields.items() if names}
    return {"fields": labelled} if labelled else None


def _each(feature: Any) -> Names:
    names = _names_of(feature)
    return {"each": names} if names else None


def _named(value: Any, names: Names) -> Any:
    """A value with its labels as names."""
    if not names or value is None:
        return value
    if isinstance(names, list):
        if not isinstance(value, int) or isinstance(value, bool) or value >= len(names):
            return value  # somebody has put a name there already
        return names[value] if value >= 0 else None
    if "each" in names and isinstance(value, list):
        return [_named(part, names["each"]) for part in value]
    # A list of records may be stored as one list per field.
    inner = names.get("each", names)
    if isinstance(value, Mapping) and isinstance(inner, Mapping):
        fields = inner.get("fields", {})
        return {key: _per_field(part, fields.get(key)) for key, part in value.items()}
    return value


def _per_field(value: Any, names: Names) -> Any:
    if isinstance(names, list) and isinstance(value, list):
        return [_named(part, names) for part in value]
    return _named(value, names)
