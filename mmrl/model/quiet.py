"""Other libraries keep quiet between our lines."""

from __future__ import annotations

import logging


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


def _is_for_the_user(record: logging.LogRecord) -> bool:
    return "register_constant" not in record.getMessage()
