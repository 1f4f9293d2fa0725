"""Tiny but genuine Qwen-VL models: built from config in a second, so that every recipe and test runs on a CPU.

A folder made here holds what a released checkpoint holds (weights, tokenizer, image and video processor, processor
class, chat template, generation config) and loads through `AutoModelForImageTextToText`, `AutoProcessor` and
`AutoTokenizer` without a network. It differs from a released checkpoint in size and in these points:

1. The tokenizer is a byte-level BPE trained on a short word list plus the given `corpus`, with Qwen's own splitting
   rule (every digit is a token of its own). `<think>`, `</think>`, `<answer>`, `</answer>` are ordinary added tokens:
   they survive `skip_special_tokens`. config.json says so (`mmrl_tags`, see `tags.py`).
2. Patches are 8 pixels wide (released: 14 or 16), so one visual token covers 16 x 16 pixels.
3. Every vision block attends to the whole picture; the released Qwen2.5-VL does so in every eighth block only.
4. Weights are drawn with standard deviation 0.08 (released configs: 0.02). With 0.02 a model of this size stays at the
   language prior for hundreds of steps.
5. The chat template adds no system message of its own.
6. The rotary base is 10 (released: 1,000,000). Height and width get the slow frequencies; with a large base and a dozen
   frequencies, neighbouring rows and columns would turn them by a hundredth of a radian, and a model of this size never
   learns to look where a question says.

Models only: pictures, tasks and warm-up live elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError

from mmrl.ground.checksums import damage, seal
from mmrl.ground.faults import first_line
from mmrl.ground.printable import tell

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

Family = Literal["qwen2_5_vl", "qwen3_vl"]

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ROPE_THETA = 10.0
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

WORDS = """
red green blue yellow circle square triangle cell row column top bottom left right middle center
system user assistant You are a helpful assistant. seconds
Describe the picture. Describe the image. What is at row column ? How many are there ? Which color shape is it ?
What happens in the video ? When does it start end ? from to is in order of pieces and on with or no yes none
Answer with one word or number. Think step by step, then give the final answer. Put it in \\boxed{}
true false empty above below between same different count the of an image video frame first second third last next
"""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part['type'] == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class TinySize:
    """Widths and depths. The defaults give about half a million parameters."""

    hidden: int = 96
    """Width of the language model."""
    layers: int = 3
    """Blocks of the language model."""
    heads: int = 4
    """Query heads of the language model."""
    kv_heads: int = 2
    """Key/value heads of the language model."""
    intermediate: int | None = None
    """Width of the language model's MLP; None means three times `hidden`."""
    vision_hidden: int = 64
    """Width of the vision tower."""
    vision_depth: int = 1
    """Blocks of the vision tower."""
    vision_heads: int = 2
    """Heads of the vision tower."""
    patch: int = 8
    """Side of one patch in pixels; one visual token covers twice that in each direction."""
    max_image_tokens: int = 1024
    """Largest number of visual tokens of one image before the processor shrinks it."""
    max_frame_tokens: int = 256
    """Largest number of visual tokens of one pair of video frames before the processor shrinks it."""
    vocab_size: int | None = None
    """Rows of the embedding; None means as many as the tokenizer has. Must not be smaller than that."""
    merges: int = 300
    """Most byte-pair merges the tokenizer may learn."""
    initializer_range: float = 0.08
    """Standard deviation of the drawn weights."""

    def __post_init__(self) -> None:
        head, vision_head = self.hidden / self.heads, self.vision_hidden / self.vision_heads
        # Rotary positions turn pairs of numbers: on three axes in the language model, on two in the tower.
        rules = {
            f"hidden / heads is {head}": (
                head % 2 == 0 and head >= 8,
                "an even number of at least 8",
            ),
            f"heads / kv_heads is {self.heads / self.kv_heads}": (
                self.heads % self.kv_heads == 0,
                "a whole number",
            ),
            f"vision_hidden / vision_heads is {vision_head}": (
                vision_head % 4 == 0,
                "a multiple of 4",
            ),
            f"vocab_size is {self.vocab_size}": (
                self.vocab_size is None or self.vocab_size > 0,
                "positive or None",
            ),
        }
        for found, (fine, rule) in rules.items():
            if not fine:
                raise ValueError(
                    f"TinySize: {found}; it must be {rule}. Change one of the fields named."
                )


def build(
    folder: str | Path,
    family: Family = "qwen2_5_vl",
    size: TinySize = TinySize(),
    corpus: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Write a randomly initialised model with its tokenizer and processor into `folder` and return it.

    The same arguments give the same bytes of weights and the same token ids. The global random state is left alone.
    Raises ValueError for an unknown family or a `vocab_size` below the tokenizer's.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    if family not in ("qwen2_5_vl", "qwen3_vl"):
        raise ValueError(
            f"Unknown family {family!r}; a tiny model can be 'qwen2_5_vl' or 'qwen3_vl'."
        )
    folder = Path(folder)
    tokenizer = _train_tokenizer(corpus, size.merges)
    config = _config(family, size, tokenizer)
    # transformers draws weights from the global random state, which belongs to the caller.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    # As in released checkpoints: an answer ends with either, and the second one pads.
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config.eos_token_id = ends
    model.generation_config.pad_token_id = ends[1]
    # It learns with its tags as tokens from the start (`tags.py`).
    model.config.mmrl_tags = {"mode": "auto", "tokens": list(TAGS)}
    model.save_pretrained(folder)
    _processor(family, size, tokenizer).save_pretrained(folder)
    return folder


def cached(
    family: Family = "qwen2_5_vl",
    size: TinySize = TinySize(),
    corpus: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """A folder made by `build`, kept in the user's cache and found again by what went into it.

    The key covers the arguments, this file and the versions of torch, transformers and tokenizers.
    """
    from importlib.metadata import version

    # Another version may draw other weights or learn other merges.
    versions = [version(name) for name in ("torch", "transformers", "tokenizers")]
    parts = (
        family,
        sorted(asdict(size).items()),
        tuple(corpus),
        seed,
        versions,
        Path(__file__).read_bytes(),
    )
    key = hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()
    return publish(
        cache_folder() / "tiny" / f"{family}-{key}",
        lambda place: build(place, family, size, corpus, seed),
    )


def cache_folder() -> Path:
    """Where mmrl keeps what it can rebuild: `$XDG_CACHE_HOME/mmrl`, else the platform's own place (`~/.cache/mmrl`)."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "mmrl"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mmrl"
    if sys.platform == "win32":
        return (
            Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
            / "mmrl"
            / "Cache"
        )
    return Path.home() / ".cache" / "mmrl"


def publish(folder: Path, make: Callable[[Path], object]) -> Path:
    """Return `folder`, filled by `make` if it did not exist or no longer agrees with its checksums.

    `make` writes into a fresh folder beside it, which is renamed when complete: a killed process leaves no half-filled
    `folder`, and of several processes that build at once the first one wins and the others use its result. Raises
    ValueError if the place cannot be written.
    """
    draft: Path | None = None
    try:
        if folder.is_dir() and not _heal(folder):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside its target, for a rename over the border of a disk is a copy and can be seen half done.
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        make(draft)
        draft.chmod(0o755)  # mkdtemp hides the folder from other users of a shared cache
        seal(draft)
        os.rename(draft, folder)
    except (OSError, SafetensorError) as error:
        # Another process was faster, and a full folder cannot be replaced: its result serves as well.
        if not folder.is_dir() or damage(folder):
            raise ValueError(
                f"The cache folder {folder.parent} cannot be written to ({first_line(error)}); free space there, or "
                "set XDG_CACHE_HOME to a folder that can."
            ) from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _heal(folder: Path) -> bool:
    """Take a damaged folder of the cache away, so that it is made again; False for a whole one."""
    problem = damage(folder)
    if not problem:
        return False
    tell(f"{folder} in the cache is damaged ({problem}); it is made again.")
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    # Another process may have healed it meanwhile; then its work is done twice, which harms nothing.
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, aside / "damaged")
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _train_tokenizer(corpus: Sequence[str], merges: int) -> PreTrainedTokenizerBase:
    """Qwen's tokenizer class over a byte-level BPE learned from the built-in words and `corpus`."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    blank: Any = Qwen2Tokenizer(vocab={}, merges=[])
    learner: Any = Tokenizer(models.BPE())
    learner.normalizer, learner.pre_tokenizer = (
        blank._tokenizer.normalizer,
        blank._tokenizer.pre_tokenizer,
    )
    # Sorted, since the order decides the ids and the library's own is not fixed.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    settings: dict[str, Any] = {
        "vocab_size": len(alphabet) + merges,
        "initial_alphabet": alphabet,
    }
    # Each word also with a leading space, so that whole words win over chance pairs across words.
    words = [f" {word}\n{word}\n {word}" for word in dict.fromkeys(WORDS.split())]
    texts = [*words, *WORDS.splitlines(), *corpus]
    learner.train_from_iterator(texts, trainers.BpeTrainer(show_progress=False, **settings))
    model = json.loads(learner.to_str())["model"]
    merged: Any = [tuple(merge) for merge in model["merges"]]
    tokenizer: Any = Qwen2Tokenizer(vocab=model["vocab"], merges=merged)
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS])
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.padding_side = (
        "left"  # for the library's own `generate`; nothing here pads prompts
    )
    return tokenizer


def _config(
    family: Family, size: TinySize, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedConfig:
    from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

    ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL_TOKENS}  # type: ignore[arg-type]
    if size.vocab_size is not None and size.vocab_size < len(tokenizer):
        raise ValueError(
            f"TinySize.vocab_size is {size.vocab_size}, but the tokenizer has {len(tokenizer)} entries; "
            "raise vocab_size, lower merges, or leave vocab_size None."
        )
    names = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        # As in the smaller released models.
        "tie_word_embeddings": True,
    }
    text, vision = (
        _text_config(size, ids, size.vocab_size or len(tokenizer)),
        _vision_config(size),
    )
    sides = size.hidden // size.heads // 2
    if family == "qwen2_5_vl":
        text["rope_parameters"]["mrope_section"] = _sections(sides, share=3 / 8)
        vision |= {
            "tokens_per_second": 2,
            "window_size": 8 * size.patch,
            "fullatt_block_indexes": list(range(size.vision_depth)),
        }
        return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **names)
    text["rope_parameters"] |= {
        "mrope_section": _sections(sides, share=5 / 16),
        "mrope_interleaved": True,
    }
    text["head_dim"] = size.hidden // size.heads
    # After each quarter of the tower as in released models; one level goes into one language layer.
    quarters = {size.vision_depth * part // 4 for part in (1, 2, 3)}
    vision |= {
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": sorted(quarters)[: size.layers],
    }
    return Qwen3VLConfig(text_config=text, vision_config=vision, **names)


def _text_config(size: TinySize, ids: dict[str, int], vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate or 3 * size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": 32768,
        "initializer_range": size.initializer_range,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }


def _vision_config(size: TinySize) -> dict[str, Any]:
    return {
        "depth": size.vision_depth,
        "hidden_size": size.vision_hidden,
        "intermediate_size": 3 * size.vision_hidden,
        "num_heads": size.vision_heads,
        "patch_size": size.patch,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": size.hidden,
        "initializer_range": size.initializer_range,
    }


def _sections(sides: int, share: float) -> list[int]:
    """Split head_dim / 2 rotary frequencies among time, height and width; height and width get `share` each.

    3/8 gives the released [16, 24, 24] of Qwen2.5-VL for 64, 5/16 the [24, 20, 20] of Qwen3-VL. With few frequencies
    time gets two and the rest is shared, because a tiny model needs them to tell rows and columns apart.
    """
    side = round(sides * share) if sides >= 16 else (sides - 2) // 2
    return [sides - 2 * side, side, side]


def _processor(
    family: Family, size: TinySize, tokenizer: PreTrainedTokenizerBase
) -> ProcessorMixin:
    from transformers import (
        Qwen2_5_VLProcessor,
        Qwen2VLVideoProcessor,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    grid: dict[str, Any] = {"patch_size": size.patch, "temporal_patch_size": 2, "merge_size": 2}
    token = (2 * size.patch) ** 2
    image_size = {"shortest_edge": token, "longest_edge": size.max_image_tokens * token}
    frame_size = {"shortest_edge": token, "longest_edge": size.max_frame_tokens * token}
    if family == "qwen2_5_vl":
        return Qwen2_5_VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=image_size, **grid),
            tokenizer=tokenizer,
            video_processor=Qwen2VLVideoProcessor(
                size=frame_size, cap_pixels_per_frame=False, **grid
            ),
            chat_template=CHAT_TEMPLATE,
        )
    half: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    # The limits of Qwen3-VL count all frames of a clip, not one.
    clip_size = {"shortest_edge": 2 * token, "longest_edge": 32 * size.max_frame_tokens * token}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=image_size, **half, **grid),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(
            size=clip_size, cap_pixels_per_frame=False, **half, **grid
        ),
        chat_template=CHAT_TEMPLATE,
    )
