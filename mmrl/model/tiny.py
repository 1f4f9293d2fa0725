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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from mmrl.ground.checksums import damage, seal
from mmrl.ground.faults import first_line
from mmrl.ground.printable import tell
from mmrl.model import families as adapters
from mmrl.model.families import family_of
from mmrl.model.families.tiny_parts import TinySize as TinySize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

WORDS = """
red green blue yellow circle square triangle cell row column top bottom left right middle center
system user assistant You are a helpful assistant. seconds
Describe the picture. Describe the image. What is at row column ? How many are there ? Which color shape is it ?
What happens in the video ? When does it start end ? from to is in order of pieces and on with or no yes none
Answer with one word or number. Think step by step, then give the final answer. Put it in \\boxed{}
true false empty above below between same different count the of an image video frame first second third last next
"""


def build(
    folder: str | Path,
    family: str = "qwen2_5_vl",
    size: TinySize = TinySize(),
    corpus: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Write a randomly initialised model with its tokenizer and processor into `folder` and return it.

    The same arguments give the same bytes of weights and the same token ids. The global random state is left alone.
    Raises ValueError for an unknown family or a `vocab_size` below the tokenizer's.
    """
    import torch

    kind = family_of(family)
    folder = Path(folder)
    tokenizer = _train_tokenizer(corpus, size.merges, kind.tiny_tokens())
    config = kind.tiny_config(size, _special_ids(tokenizer), _vocabulary(size, tokenizer))
    # transformers draws weights from the global random state, which belongs to the caller.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.model_class().from_config(config, dtype=torch.float32)
        kind.tiny_weights(model)
    # As in released checkpoints: an answer ends with either, and the second one pads.
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config.eos_token_id = ends
    model.generation_config.pad_token_id = ends[1]
    # It learns with its tags as tokens from the start (`tags.py`).
    model.config.mmrl_tags = {"mode": "auto", "tokens": list(TAGS)}
    model.save_pretrained(folder)
    kind.tiny_processor(size, tokenizer).save_pretrained(folder)
    return folder


def cached(
    family: str = "qwen2_5_vl",
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
        *(file.read_bytes() for file in sorted(Path(adapters.__file__).parent.glob("*.py"))),
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


def _train_tokenizer(
    corpus: Sequence[str], merges: int, more: Mapping[str, str]
) -> PreTrainedTokenizerBase:
    """Qwen's tokenizer class over a byte-level BPE learned from the built-in words and `corpus`.

    `more`: further special tokens, by the name of the tokenizer's attribute.
    """
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
    extra: dict[str, Any] = {"extra_special_tokens": dict(more)} if more else {}
    tokenizer: Any = Qwen2Tokenizer(vocab=model["vocab"], merges=merged, **extra)
    tokenizer.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in TAGS])
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.padding_side = (
        "left"  # for the library's own `generate`; nothing here pads prompts
    )
    return tokenizer


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Special token -> id."""
    return {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}  # type: ignore[attr-defined]


def _vocabulary(size: TinySize, tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows of the embedding. Raises ValueError for fewer than the tokenizer needs."""
    if size.vocab_size is not None and size.vocab_size < len(tokenizer):
        raise ValueError(
            f"TinySize.vocab_size is {size.vocab_size}, but the tokenizer has {len(tokenizer)} entries; "
            "raise vocab_size, lower merges, or leave vocab_size None."
        )
    return size.vocab_size or len(tokenizer)
