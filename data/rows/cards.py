"""What the card of a hub folder (README.md, or the older dataset_infos.json) says of its columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmrl.ground.class_labels import Names, label_names
from mmrl.ground.faults import first_line


def card_label_names(folder: Path, subset: str | None = None) -> dict[str, Names]:
    """The columns with class labels that a hub folder names; empty without any.

    Raises ValueError for a card that cannot be read.
    """
    files = (folder / "README.md", folder / "dataset_infos.json")
    texts = [file.read_text("utf-8", "replace") for file in files if file.is_file()]
    # The card is read only where it can matter: `datasets` takes a second to import.
    if not any("class_label" in text or "ClassLabel" in text for text in texts):
        return {}
    import yaml
    from datasets.info import DatasetInfosDict

    try:
        infos = DatasetInfosDict.from_directory(str(folder))
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"The card of {folder} (README.md or dataset_infos.json) should name its class labels, but cannot be read "
            f"({first_line(error)}); mend or remove it."
        ) from None
    chosen = infos.get(subset or "default") or next(iter(infos.values()), None)
    if chosen is None or chosen.features is None:
        return {}
    features: Any = chosen.features.to_dict()
    return label_names(features)
