"""Tags such as `<think>`: one token of the tokenizer, or plain text?

A tokenizer can hold a tag as one *added token* that its checkpoint never learned. Qwen3-VL-Instruct shares the
vocabulary of its thinking sibling: asked for `<think>`, it reads a token without meaning and answers without tags, or
with `<tool_call>` in their place, so that a format reward stays at 0 (QwenLM/Qwen3-VL issue 1663, EasyR1 issue 597).
Spelt out as text (`<`, `think`, `>`), the same tag is a word like others. In prompts, forced prefixes and given answers
a tag is therefore one token only where the checkpoint uses it so. What the model itself writes is decoded alike, so a
reward sees the same text either way.

`auto` decides for opening and closing tag together, by the first rule that applies:

1. A model that was trained and saved under `token` keeps its tokens (`mmrl_tags` in config.json).
2. A tag whose embedding looks untrained is text (see `untrained`).
3. Other models that we saved say which tags were tokens, also in `mmrl_tags`.
4. A tag that the chat template writes by itself is a token: thinking models open their turn with `<think>`.
5. Other tags of reasoning (`THOUGHT`) are text, all others (`<tool_call>`) tokens.

`text` and `token` decide for all tags at once: `token` is right for a checkpoint fine-tuned with its tags as tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mmrl.ground.time_limit import TimeLimit

TagMode = Literal["auto", "text", "token"]
TAG = re.compile(r"</?[A-Za-z][\w-]*>")
THOUGHT = frozenset({"think", "thinking", "thought", "reason", "reasoning", "answer"})
"""Names of tags that answers are asked to be written in."""
SMALL = 0.5
"""A row is untrained below this share of the usual (median) norm."""
NEAR = 0.1
"""Two rows are the same if they differ by less than this share of the usual norm."""
ENDS = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True)
class Tags:
    """Which tags a tokenizer has as added tokens, and how they are written in prompts. Make it with `read`."""

    mode: TagMode = "auto"
    added: Mapping[str, int] = field(default_factory=dict)
    """Tag -> id of its added token, by id."""
    special: frozenset[str] = frozenset()
    """Those that are special tokens, which other engines leave out of the text."""
    stored: frozenset[str] | None = None
    """Those that were tokens when the model was saved; None if nobody said."""
    chosen: bool = False
    """Were they tokens because somebody said so (`token`)?"""
    written: frozenset[str] = frozenset()
    """Those that the chat template writes by itself."""
    untrained: Mapping[str, str] = field(default_factory=dict)
    """Tag -> what is odd about its embedding; empty until the weights have been looked at."""

    def __post_init__(self) -> None:
        if self.mode not in get_args(TagMode):
            raise ValueError(
                f"tags is {self.mode!r}; it must be 'auto', 'text' (spelt out) or 'token' (as the tokenizer has them)."
            )

    @classmethod
    def read(
        cls,
        processor: Any,
        stored: Any,
        mode: TagMode = "auto",
        structure: Collection[str] = (),
    ) -> Tags:
        """What tokenizer and chat template say. `stored`: `mmrl_tags` of the model's config, if it has any.

        `structure`: tokens of the family that are no tags, whatever they look like (`<img>`).
        """
        kept, chosen = _stored(stored)
        tokenizer = processor.tokenizer
        others = {*structure, *(getattr(tokenizer, name) for name in ENDS)}
        added: dict[str, int] = {}
        special: set[str] = set()
        for number, token in sorted(tokenizer.added_tokens_decoder.items()):
            if TAG.fullmatch(token.content) and token.content not in others:
                added[token.content] = number
                special |= {token.content} if token.special else set()
        written = _written_by_template(processor) if added else frozenset()
        return cls(mode, added, frozenset(special), kept, chosen, written & added.keys())

    @property
    def to_store(self) -> dict[str, Any]:
        """What the config of a saved model keeps as `mmrl_tags`."""
        lasting = self.mode == "token" or (self.mode == "auto" and self.chosen)
        return {"mode": "token" if lasting else "auto", "tokens": list(self.tokens)}

    @property
    def tokens(self) -> tuple[str, ...]:
        """Tags that are written as one token."""
        return tuple(tag for tag in self.added if self._is_token(tag))

    @property
    def plain(self) -> tuple[str, ...]:
        """Tags that are spelt out although the tokenizer has a token for them."""
        return tuple(tag for tag in self.added if not self._is_token(tag))

    def with_weights(self, weights: Sequence[Tensor], tokenizer: Any) -> Tags:
        """The same after a look at the model's matrices [V, D] of one row per token (embedding, head)."""
        if not self.added:
            return self
        first = min(tokenizer.added_tokens_decoder)
        odd: dict[str, str] = {}
        for weight in weights:
            odd |= untrained(weight.detach(), self.added, first, len(tokenizer))
        return replace(self, untrained=odd)

    def encoder(self, tokenizer: Any) -> Any:
        """The tokenizer's back-end, which reads the plain tags as text."""
        if not self.plain:
            return tokenizer.backend_tokenizer
        return _without(tokenizer.backend_tokenizer, self.plain)

    def notes(self, text: str, needed: Collection[str] = ()) -> list[str]:
        """What a person should know before a run: about the tags in a prompt's text and those that a reward needs."""
        asked = {*TAG.findall(text), *needed}
        here = [tag for tag in self.added if tag in asked]
        notes = [self._warning(tag) for tag in here if self._is_token(tag)]
        plain = [tag for tag in here if not self._is_token(tag)]
        if plain and self.mode == "auto":
            notes.append(
                f"{' '.join(plain)}: written as plain text, since this checkpoint does not use the tokens that its "
                "tokenizer has for them (--load.tags token writes them as tokens)."
            )
        return [note for note in notes if note]

    def _warning(self, tag: str) -> str:
        """What speaks against writing this tag as one token; empty if nothing does."""
        start = f"Warning: {tag} is asked for and is one token (id {self.added[tag]})"
        if tag in self.untrained:
            return (
                f"{start} that was hardly ever trained: {self.untrained[tag]}. The model will not write it, and a "
                "reward for the format stays at 0; use --load.tags text."
            )
        if tag in self.special:
            return (
                f"{start} that the tokenizer calls special: engines that skip special tokens show answers without it. "
                "Use --load.tags text, or make it no special token."
            )
        return ""

    def _is_token(self, tag: str) -> bool:
        """Is the tag written as one token? See the rules at the head of this file."""
        if self.mode != "auto":
            return self.mode == "token"
        if self.stored is not None and self.chosen:
            return tag in self.stored
        name = _name(tag)
        if name in map(_name, self.untrained):
            return False
        if self.stored is not None:
            return tag in self.stored
        return name in map(_name, self.written) or name not in THOUGHT


def untrained(
    weight: Tensor, added: Mapping[str, int], first: int, known: int
) -> dict[str, str]:
    """Tags whose row of `weight` [V, D] looks untrained, each with the reason.

    `first`: id of the first added token, so that rows below it are ordinary ones; `known`: size of the tokenizer, rows
    beyond which stand for no token. A row is untrained if its norm is below `SMALL` of the median of ordinary rows; if
    it is (within `NEAR`) the mean of all ordinary rows, as new tokens start, or another tag's row; or if its norm is
    that of the rows beyond the tokenizer and the ordinary rows' is not. The rule is ours; the idea that untrained
    tokens show in the embedding is that of Land and Bartolo (2024).
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    # Piece by piece, so that no wide copy of a large vocabulary is made.
    pieces = [torch.linalg.vector_norm(part, dim=1, dtype=wide) for part in weight.split(8192)]
    norms = torch.cat(pieces)
    usual = norms[:first].median()
    mean = weight[:first].mean(0, dtype=wide)
    rows = {tag: weight[number].to(wide) for tag, number in added.items()}
    near = partial(_near, most=NEAR * usual)
    beyond = norms[known:]
    odd: dict[str, str] = {}
    for tag, number in added.items():
        twins = [other for other, row in rows.items() if other != tag and near(row, rows[tag])]
        if norms[number] < SMALL * usual:
            odd[tag] = (
                f"its embedding has the norm {norms[number]:.3g}, where {usual:.3g} is usual"
            )
        elif near(rows[tag], mean):
            odd[tag] = "its embedding is the mean of all, as that of a new token"
        elif twins:
            odd[tag] = f"its embedding is that of {twins[0]}"
        elif len(beyond) > 1 and _as_beyond(norms[number], usual, beyond):
            odd[tag] = (
                f"its embedding has the norm {norms[number]:.3g} of rows that stand for no token"
            )
    return odd


def _as_beyond(norm: Tensor, usual: Tensor, beyond: Tensor) -> bool:
    """Is a norm that of the unused rows, and the usual one not?"""
    middle, spread = beyond.mean(), beyond.std().clamp_min(1e-3 * usual)
    within = (norm - middle).abs() < 3 * spread
    return bool(within and (usual - middle).abs() > 6 * spread)


def _stored(value: Any) -> tuple[frozenset[str] | None, bool]:
    """`mmrl_tags` of a config: the tags that were tokens, and whether somebody had said so. Raises ValueError."""
    if value is None:
        return None, False
    try:
        tokens, mode = frozenset(value["tokens"]), value["mode"]
    except (TypeError, KeyError) as error:
        raise ValueError(
            f"mmrl_tags in the model's config.json is {value!r}; it must be a mapping with 'mode' and 'tokens'. "
            "Remove the entry to have it worked out anew."
        ) from error
    return tokens, mode == "token"


def _near(first: Tensor, second: Tensor, most: Tensor) -> bool:
    return bool((first - second).norm() < most)


def _name(tag: str) -> str:
    """The word in a tag, which opening and closing tag share."""
    return tag.strip("</>")


def _written_by_template(processor: Any) -> frozenset[str]:
    """Tags that the chat template writes of its own accord: around an answer, a call of a tool or what it returns."""
    question = {"role": "user", "content": [{"type": "text", "text": "question"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "answer"}]}
    function = {"name": "look", "arguments": {}}
    call = {**answer, "tool_calls": [{"type": "function", "function": function}]}
    returned = {"role": "tool", "content": [{"type": "text", "text": "seen"}]}
    chats = ([question], [question, answer], [question, call, returned])
    found: set[str] = set()
    for chat in chats:
        try:
            with TimeLimit(patience=1).hold("The chat template"):
                text = processor.apply_chat_template(
                    chat, add_generation_prompt=chat[-1] is not answer, tokenize=False
                )
        # Whatever a template that knows no such turn may raise: it then writes no tags for it either.
        except Exception:
            continue
        found |= set(TAG.findall(text))
    return frozenset(found)


def _without(backend: Any, tags: Collection[str]) -> Any:
    """A copy of a `tokenizers.Tokenizer` to which these added tokens are plain text; all ids stay."""
    from tokenizers import Tokenizer

    spec = json.loads(backend.to_str())
    for entry in spec["added_tokens"]:
        if entry["content"] in tags:
            # Renamed rather than removed, since ids are counted through; noncharacters occur in no text.
            entry["content"] = f"\ufdd0{entry['id']}\ufdd1"
    copy = Tokenizer.from_str(json.dumps(spec))
    for entry in spec["added_tokens"]:
        assert copy.token_to_id(entry["content"]) == entry["id"], f"the id of {entry} moved"
    return copy
