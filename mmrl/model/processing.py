"""From a `Prompt` to what the model reads: token ids, patches, M-RoPE positions, and where each medium's tokens are.

Four files share the work: `chat.py` (is the prompt well formed), `patches.py` (sizes, patches, budget), `mrope.py`
(positions) and this one (chat template, placeholders, time stamps, decoding). Ids, patches, grids and token types equal
a call of the checkpoint's Hugging Face processor with the same sizes; positions equal the model's for images and text.

Decisions and departures:

1. Times come from `Media.times`. Qwen2.5-VL: seconds_per_grid = temporal patch * mean spacing of the times, which is
   temporal patch / sampled fps. The Hugging Face processor divides the number of sampled frames by the length of the
   video for the sampled fps, which is one frame in n too many if first and last frame were both sampled. Uneven times
   also give their mean spacing: Qwen2.5-VL cannot express more.
2. Qwen3-VL: a stamp `<t.t seconds>` is the mean of the real times of the first and last frame of one temporal patch.
   As in transformers 5 only the `<|video_pad|>` of the template is replaced, so a template that wraps it in
   vision_start and vision_end leaves an outer pair round the clip (transformers 4.57 replaced the wrapped form).
3. A video processor whose `cap_pixels_per_frame` is unset is read as False, the present default of transformers.
4. Tags such as `<think>` are spelt out where the checkpoint does not use the tokens that its tokenizer has for them;
   then ids differ from the processor's (`tags.py`).
5. A chat ends before the assistant's turn; the template then opens that turn, and with some models a thought in it
   (`thinking.py`).
6. Expert answers with a structural token in their text are refused, as prompts are.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmrl.ground.faults import BadRow, first_line, is_broken
from mmrl.ground.time_limit import GivenUp, TimeLimit
from mmrl.model.chat import (
    bad_row,
    check_media,
    plain_messages,
    structural_token,
    visual_kinds,
)
from mmrl.model.checkpoint_files import (
    read_config,
    read_processor,
    refuse_other_tokenizer,
    simplest_chat,
    stop_ids,
)
from mmrl.model.encoded import Encoded
from mmrl.model.families import Family, Shown, family_of
from mmrl.model.mrope import Block
from mmrl.model.patches import Patches, PixelBudget, PixelRules
from mmrl.model.tags import TagMode, Tags
from mmrl.model.thinking import ThinkingMode, behind, opened_thought, template_switch
from mmrl.model.words import marked, message_spans, starts_within, written_out
from mmrl.types import Media, Prompt


@dataclass(frozen=True)
class Plan:
    """How one medium will be shown, known before its pixels are touched."""

    medium: Media
    rules: PixelRules
    size: tuple[int, int]
    seconds: float
    """Seconds between temporal patches."""
    shown: Shown
    """How it stands in the text."""

    def patches(self) -> Patches:
        """The frames, resized and cut."""
        return self.rules.cut(self.medium.frames, self.size)


@dataclass(frozen=True, eq=False)
class Processing:
    """The text and pixel side of one checkpoint. Make it with `Processing.load`."""

    tokenizer: Any
    processor: Any
    family: Family
    config: Any
    """Of the checkpoint."""
    budget: PixelBudget
    pixels: tuple[PixelRules, PixelRules] | None
    """What is done to pictures and to clips; None for a model that reads text alone."""
    max_prompt_tokens: int
    stop_ids: tuple[int, ...]
    """Every id that ends an answer; the first is the one appended to expert answers."""
    banned_ids: tuple[int, ...]
    """Ids of vision markers and placeholders: sampled, they would claim pictures that are not there."""
    tags: Tags
    """How tags such as `<think>` are written."""
    pad_id: int
    switches: Mapping[str, bool] = field(default_factory=dict)
    """Keywords that the chat template is called with."""
    opened: str = ""
    """What the template begins of every answer (`thinking.py`)."""
    template_limit: TimeLimit = field(default_factory=TimeLimit)
    """Chat templates are code that comes with a checkpoint."""

    @classmethod
    def load(
        cls,
        source: str | Path,
        budget: PixelBudget = PixelBudget(),
        tags: TagMode = "auto",
        thinking: ThinkingMode = "auto",
    ) -> Processing:
        """Read tokenizer, processor and config of a model folder or hub id.

        Raises ValueError for a folder that is missing or no model, for an unsupported family, and for `thinking` "on"
        or "off" where the chat template has no such switch.
        """
        config = read_config(source)
        family = family_of(config.model_type)
        processor = read_processor(source, family)
        refuse_other_tokenizer(source, family, config, processor)
        tokenizer, vocabulary = processor.tokenizer, processor.tokenizer.get_vocab()
        ends = stop_ids(source, family, config, tokenizer)
        markers = family.vision_tokens
        vision = {vocabulary[token] for token in markers if token in vocabulary}
        switches = template_switch(processor, thinking)
        chat = simplest_chat(source, processor, switches)
        pixels = family.pixel_rules(processor, config)
        for rules in pixels or ():
            rules.refuse_limits(budget)
        return cls(
            tokenizer=tokenizer,
            processor=processor,
            family=family,
            config=config,
            budget=budget,
            pixels=pixels,
            max_prompt_tokens=budget.max_prompt_tokens
            or config.get_text_config().max_position_embeddings,
            stop_ids=ends,
            banned_ids=tuple(sorted(vision)),
            tags=Tags.read(
                processor, getattr(config, "mmrl_tags", None), tags, family.structure
            ),
            pad_id=ends[-1] if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
            switches=switches,
            opened=opened_thought(chat),
        )

    @property
    def images(self) -> PixelRules:
        """What is done to pictures."""
        if self.pixels is None:
            raise ValueError(
                f"{self.family.name} reads no pictures; choose a vision-language model."
            )
        return self.pixels[0]

    @property
    def videos(self) -> PixelRules:
        """What is done to clips."""
        if self.pixels is None:
            raise ValueError(
                f"{self.family.name} reads no clips; choose a vision-language model."
            )
        return self.pixels[1]

    def with_tags(self, tags: Tags) -> Processing:
        """The same with other tags spelt out."""
        return replace(self, tags=tags)

    @cached_property
    def encoder(self) -> Any:
        """The tokenizer's back-end under these tags: text -> ids."""
        # Made when it is first needed: of a large vocabulary it takes seconds, and tags may change until then.
        return self.tags.encoder(self.tokenizer)

    def encode(self, prompt: Prompt) -> Encoded:
        """Ids, patches and positions of a prompt. Raises `BadRow` for one that cannot be shown to the model."""
        return self._encode(prompt, None)

    def encode_words(self, prompt: Prompt, seen: Encoded) -> Encoded:
        """The same for a prompt whose media are those of `seen`, in this order: nothing is cut into patches again."""
        return self._encode(prompt, seen.visual)

    def _encode(self, prompt: Prompt, seen: tuple[Patches, ...] | None) -> Encoded:
        text = self.render(prompt)
        plans = self.plans(prompt)
        ids, types, blocks = self.expand(text, plans)
        if len(ids) > self.max_prompt_tokens:
            raise bad_row(
                prompt,
                f"it has {len(ids)} tokens ({len(ids) - types.count(0)} of them visual), at most "
                f"{self.max_prompt_tokens} are allowed; lower PixelBudget.max_visual_tokens, raise max_prompt_tokens, "
                "or drop the row",
            )
        positions = self.family.positions(len(ids), list(itertools.chain(*blocks)))
        slots = tuple(_token_places(runs) for runs in blocks)
        visual = tuple(plan.patches() for plan in plans) if seen is None else seen
        expected = [patches.tokens for patches in visual]
        assert [len(slot) for slot in slots] == expected, "placeholders and patches differ"
        return Encoded(
            ids=torch.tensor(ids),
            positions=positions,
            next_position=int(positions.max()) + 1,
            visual=visual,
            slots=slots,
            types=torch.tensor(types),
            text=text,
            seconds_per_grid=tuple(plan.seconds for plan in plans if plan.medium.is_video),
        )

    def rerender(
        self,
        prompt: Prompt,
        encoded: Encoded,
        transform: Callable[[Tensor, int], Tensor],
        stage: Literal["original", "resized"] = "original",
    ) -> tuple[Patches, ...]:
        """The prompt's media seen through `transform`, on the grids of `encoded`.

        `transform(frames, n)` gets the n-th medium's frames uint8 [F, 3, H, W], before ("original") or after
        ("resized") the resize, and returns the same shape and dtype; ValueError otherwise.
        """
        if stage not in ("original", "resized"):
            raise ValueError(f"stage is {stage!r}; it must be 'original' or 'resized'.")
        out = []
        for index, medium in enumerate(prompt.media):
            old = encoded.visual[index]
            rules = self._rules(medium)
            frames = medium.frames
            if stage == "resized":
                frames = rules.resize(frames, old.size)
            seen = transform(frames, index)
            if seen.shape != frames.shape or seen.dtype != frames.dtype:
                raise ValueError(
                    f"The view of medium {index} of prompt {prompt.id!r} returned {seen.dtype} {list(seen.shape)}, but "
                    f"got {frames.dtype} {list(frames.shape)}; a view must keep shape and dtype."
                )
            # Resized frames pass through unchanged: they have their size already.
            new = rules.cut(seen, old.size)
            assert new.grid == old.grid, f"grid changed from {old.grid} to {new.grid}"
            out.append(new)
        return tuple(out)

    def render(self, prompt: Prompt) -> str:
        """The chat as text with one placeholder per medium, opened for the assistant. Raises `BadRow`."""
        family = self.family
        messages = plain_messages(prompt, family.structure)
        kinds = visual_kinds(messages)
        check_media(prompt, kinds)
        self._refuse_unseen(prompt, kinds)
        text = self._templated(prompt, messages)
        wanted = [family.image if kind == "image" else family.video for kind in kinds]
        if (found := self._pads.findall(text)) != wanted:
            raise ValueError(
                f"The chat template of this checkpoint shows {found} for the media {kinds} of prompt "
                f"{prompt.id!r}; use a template that writes one placeholder per visual part, in order."
            )
        return text

    def _refuse_unseen(self, prompt: Prompt, kinds: Sequence[str]) -> None:
        """Raise `BadRow` for media that the family does not read."""
        sees = self.family.sees
        for kind in kinds:
            if kind not in sees:
                reads = " and ".join(["text", *(f"{seen}s" for seen in sees)])
                raise bad_row(
                    prompt,
                    f"it shows {kinds.count(kind)} {kind}s, and {self.family.name} reads {reads} only; choose a "
                    "vision-language model, or leave such rows out",
                )

    def _templated(self, prompt: Prompt, messages: Sequence[Mapping[str, Any]]) -> str:
        """The messages as the checkpoint's template writes them. Raises `BadRow`."""
        try:
            with self.template_limit.hold("The chat template of this checkpoint"):
                return self.processor.apply_chat_template(
                    messages, add_generation_prompt=True, tokenize=False, **self.switches
                )
        except GivenUp:  # a fault of the checkpoint, not of the row
            raise
        # A template is code, which may refuse or fail at what a row says.
        except Exception as error:
            why = f"{type(error).__name__}: {first_line(error)}"
            raise bad_row(
                prompt, f"the chat template of this checkpoint fails ({why})"
            ) from error

    def encode_answer(self, text: str) -> Tensor:
        """Ids long [T] of a given (expert) answer, end token included. Raises `BadRow` for structural tokens in it.

        A thought that the prompt has opened already is not opened again.
        """
        if is_broken(text):
            raise BadRow(f"The answer {text[:60]!r} holds half of a surrogate pair; mend it.")
        if found := structural_token(text, self.family.structure):
            raise BadRow(
                f"The answer {text[:60]!r} contains the special token {found}; remove it."
            )
        return torch.tensor([*self._ids(behind(self.opened, text)), self.stop_ids[0]])

    def answer_text(self, ids: Tensor | Sequence[int]) -> str:
        """The whole turn of an answer, for rewards and people: what the template began of it, and the ids' text."""
        return self.opened + self.decode(ids)

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of answer ids. Only end and padding tokens at the two ends are dropped; tags are kept."""
        numbers = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        # By hand: `skip_special_tokens` would also drop tags that are special tokens of some checkpoints.
        silent = {*self.stop_ids, self.pad_id}
        while numbers and numbers[-1] in silent:
            numbers.pop()
        return self.spell(list(itertools.dropwhile(silent.__contains__, numbers)))

    def spell(self, ids: Sequence[int]) -> str:
        """The text of ids, of all of them."""
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def stamps(self, medium: Media) -> tuple[float, ...]:
        """Seconds of each temporal patch of a video: the mean time of its first and last frame."""
        assert medium.times is not None
        size = self.videos.temporal_patch
        # In double precision: a float32 time that is halved could be written with another last digit.
        times = medium.times.double().tolist()
        # The last frame is repeated in time as it is among the patches.
        times += times[-1:] * (-len(times) % size)
        ends = zip(times[::size], times[size - 1 :: size], strict=True)
        stamps = tuple((first + last) / 2 for first, last in ends)
        steps = [after - before for before, after in itertools.pairwise(times)]
        slack = (size - 1) * max(steps, default=0.0) / 2 + 1e-9
        assert times[-1] - stamps[-1] <= slack, (
            f"last stamp {stamps[-1]}, clip ends {times[-1]}"
        )
        return stamps

    @cached_property
    def real_ids(self) -> Tensor:
        """bool [n]: which ids the tokenizer has; a model's vocabulary may be padded beyond them, or have gaps."""
        known = torch.tensor(sorted(self.tokenizer.get_vocab().values()))
        return torch.zeros(int(known.max()) + 1, dtype=torch.bool).index_fill(0, known, True)

    def words(self, prompt: Prompt, encoded: Encoded) -> Tensor:
        """Which ids of the encoded prompt are words of its messages, long [n]: no template, no picture, no time stamp.

        Raises ValueError if the chat template rewrites the messages, so that they cannot be told from it.
        """
        swapped, texts = marked(plain_messages(prompt, self.family.structure))
        spans = message_spans(encoded.text, self._templated(prompt, swapped), texts)
        found = self._pads.finditer(encoded.text)
        plans = self.plans(prompt)
        shown = [(pad.span(), plan.shown.text) for pad, plan in zip(found, plans, strict=True)]
        text, spans = written_out(encoded.text, shown, spans)
        read = self.encoder.encode(text)
        known = set(self.family.placeholder_ids(self.config).values())
        within = starts_within(read.offsets, spans)
        # Each placeholder stands for several ids in the prompt, all else for one.
        is_word = [
            word for number, word in zip(read.ids, within, strict=True) if number not in known
        ]
        return (encoded.types == 0).nonzero()[:, 0][torch.tensor(is_word)]

    def _ids(self, text: str) -> list[int]:
        # The backend itself: the same ids without the wrapper's padding and truncation around them.
        return self.encoder.encode(text).ids

    def _rules(self, medium: Media) -> PixelRules:
        return self.videos if medium.is_video else self.images

    def plans(self, prompt: Prompt) -> list[Plan]:
        """Sizes within the budget of the prompt, and times."""
        sizes = self._sizes(prompt)
        return [
            self._plan(medium, size) for medium, size in zip(prompt.media, sizes, strict=True)
        ]

    def _plan(self, medium: Media, size: tuple[int, int]) -> Plan:
        rules = self._rules(medium)
        depth, rows, columns = rules.grid(len(medium.frames), size)
        tokens = (depth, rows // rules.merge, columns // rules.merge)
        stamps = self.stamps(medium) if self.family.stamps and medium.is_video else ()
        seconds = seconds_per_patch(medium, self.videos.temporal_patch)
        shown = self.family.shown(medium.is_video, tokens, stamps)
        return Plan(medium, rules, size, seconds, shown)

    def _sizes(self, prompt: Prompt) -> list[tuple[int, int]]:
        """Height and width of each medium after the resize."""
        sizes = []
        for index, medium in enumerate(prompt.media):
            frames, _, height, width = medium.frames.shape
            try:
                rules = self._rules(medium)
                sizes.append(rules.size(frames, height, width, self.budget))
            except ValueError as error:
                raise bad_row(prompt, f"medium {index} cannot be shown: {error}") from error
        if self.budget.max_visual_tokens is None or not sizes:
            return sizes
        assert self.images.factor == self.videos.factor, (
            "image and video processor use different patches"
        )
        try:
            return self._shrunk(prompt, sizes)
        except ValueError as error:
            raise bad_row(prompt, f"{error}; raise it or show fewer media or frames") from error

    def _shrunk(self, prompt: Prompt, sizes: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Sizes that need at most `max_visual_tokens` in all, all shrunk alike; ValueError if there are none."""
        media: list[tuple[PixelRules, tuple[int, int, int]]] = []
        for medium in prompt.media:
            frames, _, height, width = medium.frames.shape
            media.append((self._rules(medium), (frames, height, width)))
        counts = [
            rules.grid(shape[0], size)
            for (rules, shape), size in zip(media, sizes, strict=True)
        ]
        tokens = sum(math.prod(count) for count in counts) // self.images.merge**2
        assert self.budget.max_visual_tokens is not None
        if tokens <= self.budget.max_visual_tokens:
            return sizes
        return self.images.shrunk(media, sizes, self.budget)

    @cached_property
    def _pads(self) -> re.Pattern[str]:
        """What the template writes for media."""
        return re.compile(f"{re.escape(self.family.image)}|{re.escape(self.family.video)}")

    def expand(
        self, text: str, plans: Sequence[Plan]
    ) -> tuple[list[int], list[int], list[list[Block]]]:
        """Ids and types [P] with placeholders repeated to the number of visual tokens, and each medium's blocks.

        Repeating ids equals tokenising the long text: placeholders are special tokens, so nothing merges with them.
        """
        # `re` calls the function once per placeholder, in order.
        left = iter(plans)
        short = self._ids(self._pads.sub(lambda _: next(left).shown.text, text))
        known = set(self.family.placeholder_ids(self.config).values())
        pads = [index for index, number in enumerate(short) if number in known]
        # A video with time stamps has one run per stamp, most others have one in all.
        runs = [(i, grid) for i, plan in enumerate(plans) for grid in plan.shown.runs]
        assert len(pads) == len(runs), f"{len(pads)} placeholders in {text!r}"
        ids: list[int] = []
        types: list[int] = []
        blocks: list[list[Block]] = [[] for _ in plans]
        done = 0
        for pad, (medium, grid) in zip(pads, runs, strict=True):
            ids += short[done:pad]
            types += [0] * (pad - done)
            block = Block(len(ids), grid, self._step(plans[medium]))
            ids += [short[pad]] * block.tokens
            types += [2 if plans[medium].medium.is_video else 1] * block.tokens
            blocks[medium].append(block)
            done = pad + 1
        ids += short[done:]
        types += [0] * (len(short) - done)
        return ids, types, blocks

    def _step(self, plan: Plan) -> float:
        """Temporal positions between neighbouring patches; an image has one patch, so any number will do."""
        if not plan.medium.is_video:
            return 1.0
        return self.family.time_step(self.config, plan.seconds)


def _token_places(runs: Sequence[Block]) -> Tensor:
    """Where the tokens of one medium's runs stand, long [n]."""
    return torch.cat([torch.arange(run.start, run.start + run.tokens) for run in runs])


def seconds_per_patch(medium: Media, temporal_patch: int) -> float:
    """Seconds between temporal patches; 1.0 (the library's default, without effect) for images and single frames."""
    if medium.times is None or len(medium.times) < 2:
        return 1.0
    length = float(medium.times[-1] - medium.times[0])
    return temporal_patch * length / (len(medium.times) - 1)
