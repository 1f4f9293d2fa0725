"""From a `Prompt` to what the model reads: token ids, patches, M-RoPE positions, and where each medium's tokens are.

Three files share the work: `pixels.py` (sizes, patches, budget), `positions.py` (M-RoPE) and this one (chat template,
placeholders, time stamps, decoding). Ids, patches, grids and token types equal a call of the checkpoint's Hugging Face
processor with the same sizes (tested); positions equal the model's own for images and text.

Decisions and departures:

1. Text that contains a structural token of the family (`<|im_start|>`, `<|image_pad|>`, ...) is refused with `BadRow`,
   in prompts and in expert answers: tokenised as ordinary text it would be a different question, taken literally it would
   forge turns or pictures. `<image>` and other plain words are ordinary text here.
2. Times come from `Media.times`. Qwen2.5-VL's seconds_per_grid is temporal_patch / sampled fps with the sampled fps as
   1 / (mean spacing of the times); the processor divides the number of sampled frames by the length of the video, which is
   off by one frame in n if both ends were sampled. With uneven times the mean spacing is used as well: Qwen2.5-VL
   cannot express more.
3. A Qwen3-VL stamp `<t.t seconds>` is the mean time of the frames of one temporal patch, from the real times rather than
   index / fps. As in transformers 5 only the `<|video_pad|>` of the template is replaced, so a template that wraps it in
   vision_start and vision_end leaves one outer pair round the clip (transformers 4.57 replaced the wrapped placeholder).
4. A processor whose `cap_pixels_per_frame` is unset is read as False, transformers' present default.
5. A chat must end before the assistant's turn; the template then opens it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from mmrl.pixels import Patches, PixelBudget, PixelRules, shrink_to_tokens
from mmrl.positions import Block, mrope_positions
from mmrl.types import BadRow, Media, Prompt

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", IMAGE_PAD, VIDEO_PAD)
STRUCTURE = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *VISION_TOKENS)
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, eq=False)
class Encoded:
    """One prompt as the model reads it (length P)."""

    ids: Tensor
    """long [P]."""
    positions: Tensor
    """long [3, P]: time, row, column."""
    next_position: int
    """Position of the first answer token, on all three axes."""
    visual: tuple[Patches, ...]
    """One per medium, in the order of the prompt."""
    slots: tuple[Tensor, ...]
    """Per medium, long [its tokens]: where its placeholders stand in `ids`."""
    types: Tensor
    """long [P]: 0 text, 1 image, 2 video (`mm_token_type_ids`)."""
    text: str
    """The rendered chat, placeholders not expanded."""
    seconds_per_grid: tuple[float, ...] = ()
    """Per video, seconds between temporal patches."""


@dataclass(frozen=True, eq=False)
class Processing:
    """The text and pixel side of one checkpoint. Make it with `Processing.load`."""

    tokenizer: Any
    processor: Any
    family: str
    """One of `FAMILIES`."""
    budget: PixelBudget
    images: PixelRules
    videos: PixelRules
    tokens_per_second: float
    """Qwen2.5-VL: temporal positions per second of video, from the checkpoint's config."""
    max_prompt_tokens: int
    stop_ids: tuple[int, ...]
    """Every id that ends an answer; the first is the one appended to expert answers."""
    banned_ids: tuple[int, ...]
    """Ids of vision markers and placeholders: sampled, they would claim pictures that are not there."""
    pad_id: int

    @classmethod
    def load(cls, source: str | Path, budget: PixelBudget = PixelBudget()) -> Processing:
        """Read tokenizer, processor and config of a model folder or hub id.

        Raises ValueError for a folder that is missing or no model, and for an unsupported family.
        """
        from transformers import AutoProcessor

        config = _config(source)
        family = config.model_type
        if family not in FAMILIES:
            raise ValueError(f"{source} is a {family!r} model; supported families are {', '.join(FAMILIES)}.")
        try:
            processor = AutoProcessor.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{source} has a config but no usable processor ({_first_line(error)}); copy the processor and "
                "tokenizer files of the base model into the folder."
            ) from error
        tokenizer, text = processor.tokenizer, config.get_text_config()
        stop_ids = _stop_ids(source, config, tokenizer)
        vision = {tokenizer.convert_tokens_to_ids(token) for token in VISION_TOKENS if token in tokenizer.get_vocab()}
        vision |= {config.image_token_id, config.video_token_id, config.vision_start_token_id}
        return cls(
            tokenizer=tokenizer,
            processor=processor,
            family=family,
            budget=budget,
            images=PixelRules.read(processor.image_processor, "image"),
            videos=PixelRules.read(processor.video_processor, "video", whole_clip=family == "qwen3_vl"),
            tokens_per_second=getattr(config.vision_config, "tokens_per_second", 1.0),
            max_prompt_tokens=budget.max_prompt_tokens or text.max_position_embeddings,
            stop_ids=stop_ids,
            banned_ids=tuple(sorted(vision)),
            pad_id=stop_ids[-1] if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )

    def encode(self, prompt: Prompt) -> Encoded:
        """Ids, patches and positions of a prompt. Raises `BadRow` for one that cannot be shown to the model."""
        text = self.render(prompt)
        sizes = self._sizes(prompt)
        depths = [self._rules(medium).depth(len(medium.frames)) for medium in prompt.media]
        tokens = [h * w // self._rules(m).factor ** 2 for m, (h, w) in zip(prompt.media, sizes, strict=True)]
        ids, types, starts = self._tokenize(prompt, text, depths, tokens)
        if len(ids) > self.max_prompt_tokens:
            visual = int((types > 0).sum())
            raise _bad(
                prompt,
                f"it has {len(ids)} tokens ({visual} of them visual), more than {self.max_prompt_tokens}; lower "
                "PixelBudget.max_visual_tokens or max_pixels, raise max_prompt_tokens, or drop the row",
            )
        seconds = [self._seconds_per_grid(medium) for medium in prompt.media]
        blocks, slots = self._blocks(prompt.media, sizes, depths, seconds, starts)
        positions = mrope_positions(len(ids), blocks)
        visual = tuple(self._patches(medium, size) for medium, size in zip(prompt.media, sizes, strict=True))
        assert tuple(len(slot) for slot in slots) == tuple(patches.tokens for patches in visual)
        per_video = tuple(s for s, medium in zip(seconds, prompt.media, strict=True) if medium.is_video)
        return Encoded(ids, positions, int(positions.max()) + 1, visual, slots, types, text, per_video)

    def rerender(
        self,
        prompt: Prompt,
        encoded: Encoded,
        transform: Callable[[Tensor, int], Tensor],
        stage: Literal["original", "resized"] = "original",
    ) -> tuple[Patches, ...]:
        """The prompt's media seen through `transform`, on the grids of `encoded`.

        `transform(frames, n)` gets the n-th medium's frames uint8 [F, 3, H, W], before ("original") or after ("resized")
        the resize, and returns the same shape and dtype; ValueError otherwise.
        """
        if stage not in ("original", "resized"):
            raise ValueError(f"stage is {stage!r}; it must be 'original' or 'resized'.")
        out = []
        for index, (medium, old) in enumerate(zip(prompt.media, encoded.visual, strict=True)):
            rules = self._rules(medium)
            frames = medium.frames if stage == "original" else rules.resize(medium.frames, old.size)
            seen = transform(frames, index)
            if seen.shape != frames.shape or seen.dtype != frames.dtype:
                raise ValueError(
                    f"The view of medium {index} of prompt {prompt.id!r} returned {seen.dtype} {list(seen.shape)}, but got "
                    f"{frames.dtype} {list(frames.shape)}; a view must keep shape and dtype."
                )
            new = rules.patches(rules.resize(seen, old.size))
            assert new.grid == old.grid, f"grid changed from {old.grid} to {new.grid}"
            out.append(new)
        return tuple(out)

    def render(self, prompt: Prompt) -> str:
        """The chat as text with one placeholder per medium, opened for the assistant. Raises `BadRow`."""
        messages, kinds = _plain_messages(prompt)
        _check_media(prompt, kinds)
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        shown = [pad[2:7] for pad in re.findall(f"{re.escape(IMAGE_PAD)}|{re.escape(VIDEO_PAD)}", text)]
        if shown != kinds:
            raise ValueError(
                f"The chat template of this checkpoint shows {shown} for the media {kinds} of prompt {prompt.id!r}; use a "
                "template that writes one placeholder per visual part, in order."
            )
        return text

    def encode_answer(self, text: str) -> Tensor:
        """Ids long [T] of a given (expert) answer, end token included. Raises `BadRow` for structural tokens in it."""
        if found := _structural(text):
            raise BadRow(f"The answer {text[:60]!r} contains the special token {found}; remove it.")
        return torch.tensor([*self._ids(text), self.stop_ids[0]], dtype=torch.long)

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of answer ids. Only end and padding tokens at the two ends are dropped; tags are kept."""
        numbers = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        silent = {*self.stop_ids, self.pad_id}
        while numbers and numbers[-1] in silent:
            numbers.pop()
        first = next((n for n, number in enumerate(numbers) if number not in silent), len(numbers))
        return self.tokenizer.decode(numbers[first:], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.backend_tokenizer.encode(text).ids

    def _rules(self, medium: Media) -> PixelRules:
        return self.videos if medium.is_video else self.images

    def _patches(self, medium: Media, size: tuple[int, int]) -> Patches:
        rules = self._rules(medium)
        return rules.patches(rules.resize(medium.frames, size))

    def _sizes(self, prompt: Prompt) -> list[tuple[int, int]]:
        """Height and width of each medium after the resize, within the budget of the prompt."""
        sizes = []
        for index, medium in enumerate(prompt.media):
            frames, _, height, width = medium.frames.shape
            try:
                sizes.append(self._rules(medium).size(frames, height, width, self.budget))
            except ValueError as error:
                raise _bad(prompt, f"medium {index} cannot be shown: {error}") from error
        if self.budget.max_visual_tokens is None or not sizes:
            return sizes
        depths = [self._rules(medium).depth(len(medium.frames)) for medium in prompt.media]
        assert self.images.factor == self.videos.factor, "image and video processor use different patches"
        try:
            return shrink_to_tokens(sizes, depths, self.images.factor, self.budget.max_visual_tokens)
        except ValueError as error:
            raise _bad(prompt, f"{error}; raise it or show fewer media or frames") from error

    def _tokenize(
        self, prompt: Prompt, text: str, depths: Sequence[int], tokens: Sequence[int]
    ) -> tuple[Tensor, Tensor, list[list[int]]]:
        """Ids [P] and types [P] with expanded placeholders, and where each medium's blocks of tokens start."""
        repeats: list[list[int]] = []  # per medium, the length of each of its blocks
        media = iter(zip(prompt.media, depths, tokens, strict=True))

        def expand(match: re.Match[str]) -> str:
            medium, depth, per_patch = next(media)
            if not (medium.is_video and self.family == "qwen3_vl"):
                repeats.append([depth * per_patch])
                return match.group()
            repeats.append([per_patch] * depth)
            block = f"<|vision_start|>{VIDEO_PAD}<|vision_end|>"
            return "".join(f"<{stamp:.1f} seconds>{block}" for stamp in self.stamps(medium))

        expanded = re.sub(f"{re.escape(IMAGE_PAD)}|{re.escape(VIDEO_PAD)}", expand, text)
        short = torch.tensor(self._ids(expanded), dtype=torch.long)
        types = (short == self._image_id).long() + 2 * (short == self._video_id).long()
        counts = torch.ones_like(short)
        flat = [count for blocks in repeats for count in blocks]
        pads = types.nonzero().flatten()
        assert len(pads) == len(flat), f"{len(pads)} placeholders in the ids, {len(flat)} expected"
        counts[pads] = torch.tensor(flat, dtype=torch.long)
        begins = iter((counts.cumsum(0) - counts)[pads].tolist())
        starts = [[next(begins) for _ in blocks] for blocks in repeats]
        return short.repeat_interleave(counts), types.repeat_interleave(counts), starts

    @property
    def _image_id(self) -> int:
        return self.processor.image_token_id

    @property
    def _video_id(self) -> int:
        return self.processor.video_token_id

    def _blocks(
        self,
        media: Sequence[Media],
        sizes: Sequence[tuple[int, int]],
        depths: Sequence[int],
        seconds: Sequence[float],
        starts: Sequence[Sequence[int]],
    ) -> tuple[list[Block], tuple[Tensor, ...]]:
        """Blocks of visual tokens in order, and per medium the indices of its tokens."""
        blocks, slots = [], []
        for medium, (height, width), depth, second, begins in zip(media, sizes, depths, seconds, starts, strict=True):
            factor = self._rules(medium).factor
            grid = (depth // len(begins), height // factor, width // factor)
            step = self.tokens_per_second * second if medium.is_video else 1.0
            own = [Block(begin, grid, step) for begin in begins]
            blocks += own
            slots.append(torch.cat([torch.arange(block.start, block.start + block.tokens) for block in own]))
        return blocks, tuple(slots)

    def stamps(self, medium: Media) -> list[float]:
        """Seconds shown for each temporal patch of a video: the mean time of its first and last frame."""
        assert medium.times is not None
        times, size = medium.times.double().tolist(), self.videos.temporal_patch
        times += times[-1:] * (-len(times) % size)
        stamps = [(times[i] + times[i + size - 1]) / 2 for i in range(0, len(times), size)]
        widest = max((b - a for a, b in zip(times, times[1:], strict=False)), default=0.0)
        assert times[-1] - stamps[-1] <= widest + 1e-9, f"last stamp {stamps[-1]} is far from {times[-1]}"
        return stamps

    def _seconds_per_grid(self, medium: Media) -> float:
        """Seconds between temporal patches; 1.0 (the library's default, without effect) for a single frame."""
        if medium.times is None or len(medium.times) < 2:
            return 1.0
        spacing = float(medium.times[-1] - medium.times[0]) / (len(medium.times) - 1)
        return self.videos.temporal_patch * spacing


def _config(source: str | Path) -> Any:
    from transformers import AutoConfig

    if not Path(source).is_dir() and (isinstance(source, Path) or str(source).startswith((".", "/", "~"))):
        raise ValueError(f"The model folder {source} does not exist; give a folder with config.json or a hub id.")
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{source} is not a model that can be read ({_first_line(error)}); give a folder with config.json, or a hub id "
            f"that is reachable, of one of the families {', '.join(FAMILIES)}."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _stop_ids(source: str | Path, config: Any, tokenizer: Any) -> tuple[int, ...]:
    """`<|im_end|>` first, then the end ids of generation config, config and tokenizer, without repetition."""
    from transformers import GenerationConfig

    try:
        named = GenerationConfig.from_pretrained(source).eos_token_id
    except OSError:
        named = None  # older folders have none; the config's own end id remains
    found: list[int] = [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    for ids in (named, config.get_text_config().eos_token_id, tokenizer.eos_token_id):
        found += ids if isinstance(ids, list | tuple) else [ids]
    return tuple(dict.fromkeys(number for number in found if number is not None))


def _bad(prompt: Prompt, what: str) -> BadRow:
    return BadRow(f"Prompt {prompt.id!r}: {what}.")


def _structural(text: str) -> str | None:
    return next((token for token in STRUCTURE if token in text), None)


def _plain_messages(prompt: Prompt) -> tuple[list[dict[str, Any]], list[str]]:
    """The messages reduced to role, text and placeholders, and the kinds of the visual parts in order."""
    if not prompt.messages:
        raise _bad(prompt, "it has no messages; a prompt needs at least one user message")
    messages, kinds = [], []
    for turn, message in enumerate(prompt.messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise _bad(prompt, f"message {turn} has the role {role!r}; roles are {', '.join(ROLES)}")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, Sequence):
            raise _bad(prompt, f"message {turn} has the content {content!r}; it must be a string or a list of parts")
        parts = [_plain_part(prompt, turn, part) for part in content]
        kinds += [part["type"] for part in parts if part["type"] != "text"]
        messages.append({"role": role, "content": parts})
    if messages[-1]["role"] == "assistant":
        raise _bad(prompt, "the last message is the assistant's; a prompt must end with a user or tool message")
    return messages, kinds


def _plain_part(prompt: Prompt, turn: int, part: Any) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("image", "video"):
        return {"type": cast(str, kind)}
    text = part.get("text") if kind == "text" else None
    if not isinstance(text, str):
        raise _bad(
            prompt,
            f"message {turn} has the part {part!r}; parts are {{'type': 'text', 'text': ...}}, {{'type': 'image'}} and "
            "{'type': 'video'}",
        )
    if found := _structural(text):
        raise _bad(
            prompt,
            f"message {turn} contains the special token {found} as text; remove it, and use an image or video part where a "
            "picture is meant",
        )
    return {"type": "text", "text": text}


def _check_media(prompt: Prompt, kinds: Sequence[str]) -> None:
    """Do the visual parts and the media match in number, kind, shape and times?"""
    if len(kinds) != len(prompt.media):
        raise _bad(
            prompt,
            f"its messages show {len(kinds)} images or videos, but it has {len(prompt.media)} media; add or remove "
            "{'type': 'image'} or {'type': 'video'} parts until both are equal",
        )
    for index, (kind, medium) in enumerate(zip(kinds, prompt.media, strict=True)):
        frames, times = medium.frames, medium.times
        if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8:
            raise _bad(
                prompt,
                f"medium {index} is {frames.dtype} {list(frames.shape)}; frames must be uint8 [F, 3, H, W] (RGB)",
            )
        if kind != ("video" if medium.is_video else "image"):
            raise _bad(
                prompt,
                f"visual part {index} is of type {kind!r}, but medium {index} is "
                + ("a video (it has times)" if medium.is_video else "an image (it has no times)"),
            )
        if times is None and len(frames) != 1:
            raise _bad(prompt, f"medium {index} is an image with {len(frames)} frames; give one frame, or times")
        if times is not None:
            _check_times(prompt, index, times, len(frames))


def _check_times(prompt: Prompt, index: int, times: Tensor, frames: int) -> None:
    if times.shape != (frames,):
        raise _bad(prompt, f"medium {index} has {frames} frames, but times of shape {list(times.shape)}")
    if not bool(times.isfinite().all()) or bool((times < 0).any()) or bool((times.diff() < 0).any()):
        raise _bad(
            prompt, f"medium {index} has the times {times.tolist()}; they must be finite, from 0 on, not falling"
        )
