"""Other libraries keep quiet between our lines."""

from __future__ import annotations

import logging
import warnings

FOREIGN = r"(transformers|huggingface_hub|peft|torch|torchao|torchvision|datasets|accelerate)\b"
"""Modules whose warnings of changes to come are for those who write them into programs."""


def quiet_libraries() -> None:
    """No bars and no notes of other libraries between our lines; downloads keep theirs, and errors are errors."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    no_downloads = are_progress_bars_disabled()  # by the user's environment
    disable_progress_bar()  # of weights that are read and written, and of downloads
    if not no_downloads:
        enable_progress_bars()
    # torchao, where it is installed, makes torch speak of changes to come in a class that no user has heard of.
    logging.getLogger("torch.utils._pytree").addFilter(_is_for_the_user)
    # Each try of a hub that is not there; what came of them is an error of ours, which names the model.
    logging.getLogger("huggingface_hub.utils._http").addFilter(_is_for_the_user)
    for kind in (FutureWarning, DeprecationWarning):
        # At the end, so that `python -W` decides first.
        warnings.filterwarnings("ignore", category=kind, module=FOREIGN, append=True)


def _is_for_the_user(record: logging.LogRecord) -> bool:
    said = record.getMessage()
    return not any(
        words in said for words in ("register_constant", "thrown while", "Retrying in")
    )
