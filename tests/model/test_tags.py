"""Tags that a tokenizer has as tokens: which are spelt out, how, and what is said about them before a run."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copytree

import pytest
import torch

from mmrl.ground.checksums import LIST
from mmrl.model.policy import Policy
from mmrl.model.processing import Processing
from mmrl.model.tags import Tags, untrained
from mmrl.rewards.functions import answer_format, think_format
from mmrl.rewards.pay import Rewards
from mmrl.rollouts.engine import HFEngine
from mmrl.types import Media, Now, Prompt, Sampling

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
THINKING = "{{- '<|im_start|>assistant\n<think>\n' -}}"
"""How a thinking model's template opens its turn."""


def unsaid(folder: Path, place: Path, *, thinking: bool = False, stored: object = None) -> Path:
    """A copy of a tiny model that does not say which tags it uses, as released checkpoints do not."""
    copied = Path(copytree(folder, place))
    config = json.loads((copied / "config.json").read_text())
    del config["mmrl_tags"]
    if stored is not None:
        config["mmrl_tags"] = {"mode": "auto", "tokens": stored}
    (copied / "config.json").write_text(json.dumps(config))
    if thinking:
        template = copied / "chat_template.jinja"
        before = template.read_text()
        opened = before.replace("{{- '<|im_start|>assistant\n' -}}", THINKING)
        assert opened != before
        template.write_text(opened)
    return copied


def ask(text: str, images: int = 0) -> Prompt:
    parts = [{"type": "image"}] * images + [{"type": "text", "text": text}]
    pixels = torch.randint(
        0, 256, (1, 3, 32, 48), generator=torch.Generator().manual_seed(3), dtype=torch.uint8
    )
    return Prompt("q", [{"role": "user", "content": parts}], (Media(pixels),) * images, "red")


@pytest.fixture(params=["qwen2_5_vl", "qwen3_vl"])
def folder(request: pytest.FixtureRequest, tiny_folder: Path, tiny3_folder: Path) -> Path:
    return tiny_folder if request.param == "qwen2_5_vl" else tiny3_folder


WORDS = "Reason in <think> </think>, then <answer>red\n</answer>\n."


@pytest.mark.parametrize("images", [0, 1])
def test_unused_tags_are_spelt_out_everywhere_and_all_else_stays(
    folder: Path, tmp_path: Path, images: int
) -> None:
    processing = Processing.load(unsaid(folder, tmp_path / "model"))
    tokens = Processing.load(folder)
    vocabulary = tokens.tokenizer.get_vocab()
    ids = {vocabulary[tag] for tag in TAGS}
    prompt = ask(WORDS, images)
    plain, single = processing.encode(prompt), tokens.encode(prompt)
    # In prompts, and in given answers and forced prefixes.
    for spelt, kept in (
        (plain.ids, single.ids),
        (processing.encode_answer(WORDS), tokens.encode_answer(WORDS)),
    ):
        assert not ids & set(spelt.tolist()) and ids <= set(kept.tolist())
        assert len(spelt) > len(kept)
        assert processing.spell(spelt.tolist()) == tokens.spell(kept.tolist())
    # Pictures, turns and everything without a tag are as they were.
    for name in ("<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>"):
        number = vocabulary[name]
        assert (plain.ids == number).sum() == (single.ids == number).sum()
    other = ask("What is at row 1 < 2 > column?", images)
    assert torch.equal(processing.encode(other).ids, tokens.encode(other).ids)
    assert [len(slot) for slot in plain.slots] == [len(slot) for slot in single.slots]


@pytest.mark.parametrize("text", [*TAGS, WORDS, "a<think>b", "\n<answer>\n", "<<think>>"])
def test_plain_tags_are_read_as_by_a_tokenizer_without_them(
    folder: Path, tmp_path: Path, text: str
) -> None:
    processing = Processing.load(unsaid(folder, tmp_path / "model"))
    backend = processing.tokenizer.backend_tokenizer
    # The two steps of a byte-level BPE, of which added tokens are no part.
    pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    expected = [token.id for piece in pieces for token in backend.model.tokenize(piece)]
    assert processing.encoder.encode(text).ids == expected


@pytest.mark.parametrize(
    ("thinking", "stored", "mode", "tokens"),
    [
        (False, None, "auto", ()),
        (False, None, "token", TAGS),
        (False, None, "text", ()),
        (True, None, "auto", TAGS[:2]),
        (True, None, "text", ()),
        (True, None, "token", TAGS),
        (False, list(TAGS), "auto", TAGS),
        (False, list(TAGS), "text", ()),
        (False, list(TAGS[2:]), "auto", TAGS[2:]),
        (True, [], "auto", ()),
        (True, [], "token", TAGS),
    ],
)
def test_the_folder_the_template_and_the_switch_decide(
    folder: Path, tmp_path: Path, thinking: bool, stored: object, mode: str, tokens: tuple
) -> None:
    model = unsaid(folder, tmp_path / "model", thinking=thinking, stored=stored)
    processing = Processing.load(model, tags=mode)  # type: ignore[arg-type]
    assert processing.tags.tokens == tokens
    assert set(processing.tags.plain) == set(TAGS) - set(tokens)
    opened = processing.tokenizer.get_vocab()["<think>"] in processing.encode(ask("red")).ids
    assert opened == (thinking and "<think>" in tokens)


def test_an_unknown_switch_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match="tags is 'yes'; it must be 'auto', 'text'"):
        Processing.load(tiny_folder, tags="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "odd", "tokens"),
    [
        ((), (), ("<tool_call>", "</tool_call>", "<glue>")),
        ((), ("<tool_call>",), ("<glue>",)),
        (("<think>",), (), ("<think>", "</think>", "<tool_call>", "</tool_call>", "<glue>")),
        (("<think>",), ("</think>",), ("<tool_call>", "</tool_call>", "<glue>")),
        (("</answer>",), (), ("<answer>", "<tool_call>", "</tool_call>", "<glue>")),
    ],
)
def test_both_tags_of_a_pair_go_the_same_way(written: tuple, odd: tuple, tokens: tuple) -> None:
    names = ("<think>", "</think>", "<answer>", "<tool_call>", "</tool_call>", "<glue>")
    tags = Tags(
        added={name: number for number, name in enumerate(names)},
        written=frozenset(written),
        untrained=dict.fromkeys(odd, "odd"),
    )
    assert tags.tokens == tokens


def rows(case: str, spare: int = 0) -> tuple[torch.Tensor, dict[str, int]]:
    """An embedding of 200 trained rows, two tags of which something may be odd, and `spare` rows for no token."""
    rng = torch.Generator().manual_seed(0)
    scale = 0.5 + torch.rand(200, 1, generator=rng)
    weight = torch.randn(202 + spare, 64, generator=rng)
    weight[:200] = weight[:200] * scale + 0.3
    if case == "zero":
        weight[200] = 0
    if case == "small":
        weight[200] *= 0.2
    if case == "mean":
        weight[200:202] = weight[:200].mean(0) + 1e-3 * torch.randn(2, 64, generator=rng)
    if case == "twins":
        weight[201] = weight[200] + 1e-3
    if case == "as spare":
        weight[200:] = 2.0 * torch.nn.functional.normalize(weight[200:], dim=1) * 8
    return weight, {"<think>": 200, "</think>": 201}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("case", "spare", "odd", "reason"),
    [
        ("trained", 0, [], ""),
        ("trained", 30, [], ""),
        ("zero", 0, ["<think>"], "norm 0, where"),
        ("small", 0, ["<think>"], "is usual"),
        ("mean", 0, ["<think>", "</think>"], "mean of all|where .* is usual"),
        ("twins", 0, ["<think>", "</think>"], "that of </?think>"),
        ("as spare", 30, ["<think>", "</think>"], "stand for no token"),
        ("as spare", 0, [], ""),
    ],
)
def test_what_an_untrained_row_looks_like(
    case: str, spare: int, odd: list[str], reason: str, dtype: torch.dtype
) -> None:
    import re

    weight, added = rows(case, spare)
    found = untrained(weight.to(dtype), added, 200, 202)
    assert list(found) == odd
    assert all(re.search(reason, told) for told in found.values())


def forgetful(folder: Path, place: Path, *tags: str) -> Path:
    """A copy of a tiny model whose tags were never trained: rows of almost nothing."""
    policy = Policy.load(folder, device="cpu", dtype="float32")
    vocabulary = policy.processing.tokenizer.get_vocab()
    with torch.no_grad():
        for tag in tags:
            policy.base.get_input_embeddings().weight[vocabulary[tag]] *= 0.01
    policy.save(place)
    config = json.loads((place / "config.json").read_text())
    del config["mmrl_tags"]
    (place / "config.json").write_text(json.dumps(config))
    (place / LIST).unlink()  # whoever changes a file of a folder says so
    return place


def test_the_weights_decide_even_against_the_template(
    tiny3_folder: Path, tmp_path: Path
) -> None:
    thinking = unsaid(tiny3_folder, tmp_path / "thinking", thinking=True, stored=list(TAGS))
    assert Policy.load(thinking, device="cpu").processing.tags.tokens == TAGS
    model = forgetful(thinking, tmp_path / "model", "<think>")
    policy = Policy.load(model, device="cpu")
    assert policy.processing.tags.tokens == ()
    number = policy.processing.tokenizer.get_vocab()["<think>"]
    assert number not in policy.encode(ask(WORDS)).ids
    assert Processing.load(model).tags.tokens == TAGS[:2], (
        "without the weights the template decides"
    )
    forced = Policy.load(model, device="cpu", tags="token")
    assert number in forced.encode(ask(WORDS)).ids


def test_the_weights_decide_against_what_nobody_chose(
    tiny3_folder: Path, tmp_path: Path
) -> None:
    """The tiny model says that it uses its tags; with rows of nothing it does not, unless somebody had said so."""
    for mode, tokens in (("auto", TAGS[2:]), ("token", TAGS)):
        model = forgetful(tiny3_folder, tmp_path / mode, *TAGS[:2])
        config = json.loads((model / "config.json").read_text())
        config["mmrl_tags"] = {"mode": mode, "tokens": list(TAGS)}
        (model / "config.json").write_text(json.dumps(config))
        policy = Policy.load(model, device="cpu")
        assert policy.processing.tags.tokens == tokens
        policy.save(tmp_path / f"{mode} again")
        again = Policy.load(tmp_path / f"{mode} again", device="cpu")
        assert again.processing.tags.tokens == tokens


@pytest.mark.parametrize("value", [["<think>"], {"tokens": []}, "token", 3])
def test_an_odd_entry_of_the_config_is_refused(
    tiny_folder: Path, tmp_path: Path, value: object
) -> None:
    model = unsaid(tiny_folder, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "mmrl_tags": value}))
    with pytest.raises(
        ValueError, match=r"mmrl_tags in the model's config.json is .* Remove the"
    ):
        Processing.load(model)


def test_a_saved_model_keeps_its_tags(tiny3_folder: Path, tmp_path: Path) -> None:
    model = unsaid(tiny3_folder, tmp_path / "model")
    for mode, kept in (("auto", ()), ("token", TAGS)):
        policy = Policy.load(model, device="cpu", tags=mode)  # type: ignore[arg-type]
        policy.save(tmp_path / mode)
        again = Policy.load(tmp_path / mode, device="cpu")
        assert again.processing.tags.tokens == kept
        assert torch.equal(again.encode(ask(WORDS)).ids, policy.encode(ask(WORDS)).ids)
        assert policy.description.get("tags") == (None if mode == "auto" else mode)
        assert set(policy.description.get("plain_tags", ())) == set(TAGS) - set(kept)


NEEDED = ("<think>", "</think>")


@pytest.mark.parametrize(
    ("mode", "odd", "special", "said"),
    [
        ("token", True, False, "Warning: <think> .* hardly ever trained: .* --load.tags text"),
        ("token", False, True, "Warning: <think> .* the tokenizer calls special"),
        ("token", False, False, None),
        ("auto", True, False, r"^<think> </think>: written as plain text.*--load\.tags token"),
        ("auto", False, True, "^<think> </think>: written as plain text"),
        ("text", True, True, None),
    ],
)
@pytest.mark.parametrize("asked", ["by the prompt", "by the reward", "by nobody"])
def test_what_is_said_before_a_run(
    mode: str, odd: bool, special: bool, said: str | None, asked: str
) -> None:
    import re

    tags = Tags(
        mode,  # type: ignore[arg-type]
        added={"<think>": 7, "</think>": 8, "<tool_call>": 9},
        special=frozenset(NEEDED if special else ()),
        untrained=dict.fromkeys(NEEDED, "its norm is small") if odd else {},
    )
    text = "use <think> </think>" if asked == "by the prompt" else "use your head"
    needed = Rewards(format=think_format, isolate=False).needs_tags
    assert needed == NEEDED
    notes = tags.notes(text, needed if asked == "by the reward" else ())
    if said is None or asked == "by nobody":
        assert notes == []
    else:
        assert re.search(said, notes[0]) and "tool_call" not in " ".join(notes)


def test_each_format_says_which_tags_it_needs() -> None:
    rewards = Rewards(a=(0.5, answer_format), b=think_format, isolate=False)
    assert rewards.needs_tags == ("<answer>", "</answer>", "<think>", "</think>")


def test_an_answer_of_single_tokens_or_of_text_is_the_same_answer(
    tiny3_folder: Path, tmp_path: Path
) -> None:
    """A model that writes the token all the same is decoded, scored and paid like one that spells it."""
    policy = Policy.load(unsaid(tiny3_folder, tmp_path / "model"), device="cpu")
    text = "<think> red </think> \\boxed{red}"
    single = Processing.load(tiny3_folder).encode_answer(text)
    spelt = policy.processing.encode_answer(text)
    assert policy.processing.decode(single) == policy.processing.decode(spelt) == text
    now = Now(step=1, progress=0.1, seed=0)
    for prefix in (single[:-1], spelt[:-1]):
        sampling = Sampling(1, 1.0, max_tokens=len(prefix) + 2)
        (answer,) = HFEngine(policy).generate([ask("red?")], sampling, now, prefixes=[prefix])
        assert answer.text.startswith(text)
