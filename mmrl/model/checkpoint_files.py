"""What is read from a checkpoint's folder beside its weights, and refused if it cannot be what it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrl.ground.faults import first_line
from mmrl.ground.progress import busy
from mmrl.ground.time_limit import GivenUp, TimeLimit
from mmrl.model.adapter_folder import config_place
from mmrl.model.families import Family, families, unknown
from mmrl.model.folders import UNREADABLE


def read_config(source: str | Path) -> Any:
    """The config of a supported model; ValueError says what else was found."""
    from transformers import AutoConfig

    known = ", ".join(families())
    allowed = f"give a folder with config.json or a hub id, of one of the families {known}"
    # Checked here, since the library would take a path that does not exist for a hub id and ask the network.
    local = isinstance(source, Path) or source.startswith((".", "/", "~"))
    if local and not Path(source).is_dir():
        raise ValueError(f"The model folder {source} does not exist; {allowed}.")
    if not Path(source).is_dir():
        allowed += "; without a network, a folder, or the tiny model of the preset embedded"
    try:
        # Of a hub that does not answer, the library tries for half a minute.
        with busy(f"Looking for {source}"):
            config = AutoConfig.from_pretrained(config_place(source))
    except UNREADABLE as error:
        raise ValueError(
            f"{source} is no model that can be read ({first_line(error)}); {allowed}."
        ) from error
    if config.model_type not in families():
        raise ValueError(f"{source} cannot be used: {unknown(config.model_type)}.")
    return config


def read_processor(source: str | Path, family: Family) -> Any:
    """The processor with its tokenizer; ValueError if there is none."""
    try:
        processor = family.processor(source)
    except UNREADABLE as error:
        raise ValueError(
            f"{source} has a config but no usable processor ({first_line(error)}); copy the processor and tokenizer "
            "files of the base model into the folder."
        ) from error
    if "video" in family.sees and not hasattr(processor, "video_processor"):
        raise ValueError(
            f"{source} has a tokenizer but no processor; copy the base model's processor files into it."
        )
    return processor


def refuse_other_tokenizer(
    source: str | Path, family: Family, config: Any, processor: Any
) -> None:
    """Raise ValueError for a tokenizer without words or of another model."""
    vocabulary = processor.tokenizer.get_vocab()
    for token, number in family.placeholder_ids(config).items():
        if vocabulary.get(token) != number:
            raise ValueError(
                f"{source}: the tokenizer gives {token} the id {vocabulary.get(token)}, the config {number} "
                f"({len(vocabulary)} tokens are known); copy tokenizer.json and its companions of the base model into "
                "the folder."
            )


def simplest_chat(
    source: str | Path, processor: Any, switches: Mapping[str, bool] | None = None
) -> str:
    """A question mark, as the chat template puts it and with what it begins of an answer. `switches`: its keywords.

    Raises ValueError for a template that cannot be used, or that does not return from this.
    """
    chat = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    try:
        with TimeLimit(patience=1).hold(f"The chat template of {source}"):
            text = processor.apply_chat_template(
                chat, add_generation_prompt=True, tokenize=False, **(switches or {})
            )
    except GivenUp:
        raise
    except (
        Exception
    ) as error:  # whatever a program of somebody else, which a template is, may raise
        text, reason = "", first_line(error)
    else:
        reason = f"it writes {text!r} for a question mark"
    if "?" not in text:
        raise ValueError(
            f"{source}: the chat template cannot be used ({reason}); copy chat_template.jinja of the base model into "
            "the folder."
        )
    return text


def stop_ids(
    source: str | Path, family: Family, config: Any, tokenizer: Any
) -> tuple[int, ...]:
    """The family's end of an answer first, then the end ids of generation config, config and tokenizer; each once."""
    from transformers import GenerationConfig

    try:
        named: Any = GenerationConfig.from_pretrained(str(source)).eos_token_id
    except UNREADABLE as error:
        if (Path(source) / "generation_config.json").is_file():
            raise ValueError(
                f"{source}/generation_config.json cannot be read ({first_line(error)}); copy it again, or delete it "
                "if the end tokens of config.json are enough."
            ) from error
        named = None  # a folder without generation config: the config's own end id remains
    found = [tokenizer.convert_tokens_to_ids(family.end)]
    for ids in (named, config.get_text_config().eos_token_id, tokenizer.eos_token_id):
        found += ids if isinstance(ids, list | tuple) else [ids]
    # A dict keeps the order: the first id is the one that is appended to expert answers.
    return tuple(dict.fromkeys(number for number in found if number is not None))
