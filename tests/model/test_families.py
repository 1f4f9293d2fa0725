"""What every family that is known is held to, on tiny random models: the registry is the list of cases.

An adapter that is added to `mmrl.model.families` with a tiny config is tested here without another line.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmrl.ground.faults import BadRow
from mmrl.grpo import GRPO
from mmrl.model import tiny
from mmrl.model.answer_media import observed
from mmrl.model.branches import Views
from mmrl.model.checkpoint_files import read_config
from mmrl.model.families import Family, families, family_of, register
from mmrl.model.families.family import _REGISTERED
from mmrl.model.load import LoRA, adapted
from mmrl.model.packing import Group
from mmrl.model.patches import PixelBudget
from mmrl.model.policy import Policy
from mmrl.model.processing import Processing
from mmrl.model.reference_scores import score_repeated
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.model.sizes import sizes
from mmrl.objectives.papo import PAPO
from mmrl.perception.masking import PatchMask, SaliencyMask
from mmrl.rewards.pay import Rewards, in_process
from mmrl.rollouts.engine import HFEngine
from mmrl.rollouts.groups import group_rollout
from mmrl.training.compatibility import check_branches
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.trainer import Trainer
from mmrl.types import Media, Now, Prompt, Prompts, Role, Rollout, Sampling, VisualBranch

SIZE = tiny.TinySize(
    hidden=64, layers=3, vision_hidden=32, vision_depth=2, merges=80, max_image_tokens=64
)
NOW = Now(step=0, progress=0.0, seed=5)
FPS = 2.0


@dataclass(frozen=True)
class Case:
    """One family with its tiny model."""

    family: Family
    folder: Path

    @property
    def blind(self) -> bool:
        return not self.family.sees

    def policy(self, dtype: str = "float32", **settings: Any) -> Policy:
        return Policy.load(self.folder, device="cpu", dtype=dtype, **settings)

    def prompts(self) -> list[Prompt]:
        """Text, one picture, two pictures of other shapes, a clip with a picture: what the family reads of them."""
        kinds = [[], ["image"], ["image", "image"], ["video", "image"]]
        return [
            ask(shown, seed) for seed, shown in enumerate(kinds) if not shown or not self.blind
        ]


@pytest.fixture(scope="module", params=list(families()))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("families") / request.param
    return Case(family_of(request.param), tiny.build(folder, request.param, SIZE))


@pytest.fixture(scope="module")
def policy(case: Case) -> Policy:
    """Not to be changed."""
    return case.policy()


def noise(seed: int, frames: int, height: int, width: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 3, height, width), generator=rng, dtype=torch.uint8)


def ask(kinds: list[str], seed: int, words: str = "What is at row 1 column 2?") -> Prompt:
    media: list[Media] = []
    for place, kind in enumerate(kinds):
        number = 10 * seed + place
        if kind == "image":
            media.append(Media(noise(number, 1, 32 + 48 * place, 48)))
        else:
            times = torch.arange(4, dtype=torch.float64) / FPS
            media.append(Media(noise(number, 4, 32, 48), times, 4 / FPS))
    parts = [*({"type": kind} for kind in kinds), {"type": "text", "text": words}]
    return Prompt(f"p{seed}", [{"role": "user", "content": parts}], tuple(media))


def grouped(
    policy: Policy, prompts: list[Prompt], lengths: list[list[int]]
) -> tuple[list[Group], tuple[int, int]]:
    rng = torch.Generator().manual_seed(3)
    words = torch.tensor([i for i in range(60, 300) if i not in policy.processing.banned_ids])
    groups: list[Group] = []
    row = 0
    for prompt, sizes_ in zip(prompts, lengths, strict=False):
        answers = tuple(words[torch.randint(len(words), (n,), generator=rng)] for n in sizes_)
        rows = tuple(range(row, row + len(answers)))
        encoded = policy.encode(prompt)
        groups.append(Group(encoded, encoded.visual, answers, rows, (1.0,) * len(answers)))
        row += len(answers)
    return groups, (row, max(n for sizes_ in lengths for n in sizes_))


LENGTHS = [[3, 7, 1], [5, 2], [4, 6, 1], [2, 4]]


def logp(policy: Policy, groups: list[Group], shape: tuple[int, int]) -> torch.Tensor:
    with torch.no_grad():
        return score_packed(policy, {"raw": groups}, {"raw": ScoreOutputs()}, shape)["raw"].logp


def gradients(
    policy: Policy, run: Any, groups: list[Group], shape: tuple[int, int]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs and the gradient of a weighted sum of them and of the entropies."""
    policy.model.zero_grad(set_to_none=True)
    policy.vision.clear()
    outputs = {"raw": ScoreOutputs(entropy=True, grad=True)}
    found = run(policy, {"raw": groups}, outputs, shape)["raw"]
    assert found.entropy is not None
    weights = torch.linspace(0.5, 1.5, found.logp.numel()).view(shape)
    (weights * (found.logp + 0.3 * found.entropy)).sum().backward()
    policy.vision.backward()
    grads = {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}
    return found.logp.detach(), grads


def assert_shared_is_repeated(policy: Policy, prompts: list[Prompt]) -> dict[str, torch.Tensor]:
    groups, shape = grouped(policy, prompts, LENGTHS)
    ours, mine = gradients(policy, score_packed, groups, shape)
    theirs, other = gradients(policy, score_repeated, groups, shape)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert set(mine) == set(other)
    whole = torch.cat([grad.flatten() for grad in other.values()]).norm()
    for name, grad in other.items():
        # A tensor that hardly learns is compared with all that does: its own gradient is rounding noise.
        scale = torch.maximum(grad.norm(), 1e-3 * whole)
        assert (mine[name] - grad).norm() / scale <= 1e-4, name
    return mine


def library_inputs(case: Case, processing: Processing, prompt: Prompt) -> dict[str, Any]:
    """The prompt as the checkpoint's own processor reads it."""
    chat = list(prompt.messages)
    text = processing.processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=False
    )
    if case.blind:
        return dict(processing.tokenizer([text], return_tensors="pt"))
    from transformers.video_utils import VideoMetadata

    images = [medium.frames[0] for medium in prompt.media if not medium.is_video]
    videos = [medium.frames for medium in prompt.media if medium.is_video]
    more: dict[str, Any] = {}
    if videos:
        more["video_metadata"] = [
            VideoMetadata(len(clip), fps=FPS, frames_indices=list(range(len(clip))))
            for clip in videos
        ]
        more |= {"videos": videos, "do_sample_frames": False}
    return dict(
        processing.processor(text=[text], images=images or None, return_tensors="pt", **more)
    )


def followed(inputs: dict[str, Any], answer: torch.Tensor) -> dict[str, Any]:
    """The library's inputs with an answer behind the prompt."""
    longer = dict(inputs)
    longer["input_ids"] = torch.cat([inputs["input_ids"], answer[None]], dim=1)
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        if name in inputs:
            after = torch.full((1, len(answer)), value, dtype=inputs[name].dtype)
            longer[name] = torch.cat([inputs[name], after], dim=1)
    return longer


def test_placeholders_are_features(case: Case, policy: Policy) -> None:
    for prompt in case.prompts():
        encoded = policy.encode(prompt)
        known = torch.tensor(sorted(case.family.placeholder_ids(policy.base.config).values()))
        found = torch.isin(encoded.ids, known)
        slots = torch.cat([*encoded.slots, torch.tensor([], dtype=torch.long)])
        assert torch.equal(found.nonzero().flatten(), slots.sort().values)
        assert torch.equal(encoded.types.bool(), found)
        with torch.no_grad():
            features = policy.vision.tower(encoded.visual) if encoded.visual else []
        assert [len(f.merged) for f in features] == [len(s) for s in encoded.slots]
        assert len(encoded.positions[0]) == len(encoded.ids)


def test_ids_and_log_probs_are_those_of_the_librarys_own_way(
    case: Case, policy: Policy
) -> None:
    """Processor, positions, tower and language model at once, without any of our own parts on the other side."""
    for prompt in case.prompts():
        if (
            any(m.is_video for m in prompt.media)
            and case.family.axes == 3
            and not case.family.stamps
        ):
            continue  # positions after such a clip differ on purpose (`mrope.py`)
        groups, shape = grouped(policy, [prompt], [[6]])
        inputs = library_inputs(case, policy.processing, prompt)
        assert torch.equal(inputs["input_ids"][0], groups[0].encoded.ids)
        answer = groups[0].answers[0]
        with torch.no_grad():
            logits = policy.base(**followed(inputs, answer)).logits[0, -len(answer) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, answer[:, None])[:, 0]
        torch.testing.assert_close(logp(policy, groups, shape)[0], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_shared_is_repeated(case: Case, checkpointing: bool) -> None:
    policy = case.policy(checkpointing=checkpointing)
    grads = assert_shared_is_repeated(policy, case.prompts())
    assert len(grads) == len(policy.parameters())


def test_positions_are_the_librarys_up_to_the_end_of_a_clip(case: Case, policy: Policy) -> None:
    """Behind a clip without stamps they differ on purpose (`mrope.py`)."""
    if case.family.axes == 1:
        for prompt in case.prompts():
            encoded = policy.encode(prompt)
            assert torch.equal(encoded.positions, torch.arange(len(encoded.ids)).expand(3, -1))
        return
    for prompt in (ask(["image", "image"], 1), ask(["video"], 2)):
        encoded = policy.encode(prompt)
        inputs = library_inputs(case, policy.processing, prompt)
        taken = inspect.signature(policy.base.model.get_rope_index).parameters
        known = {name: value for name, value in inputs.items() if name in taken}
        if "second_per_grid_ts" in inputs:
            known["second_per_grid_ts"] = inputs["second_per_grid_ts"]
        expected, _ = policy.base.model.get_rope_index(**known)
        end = int(encoded.slots[-1][-1]) + 1
        assert torch.equal(encoded.positions[:, :end], expected[:, 0, :end])


def test_shared_is_repeated_in_double_precision(case: Case) -> None:
    policy = case.policy(dtype="float64")
    groups, shape = grouped(policy, case.prompts(), LENGTHS)
    outputs = {"raw": ScoreOutputs()}
    with torch.no_grad():
        repeated = score_repeated(policy, {"raw": groups}, outputs, shape)["raw"].logp
    atol = 1e-5 if case.family.rounds_to_fp32 else 1e-7
    torch.testing.assert_close(logp(policy, groups, shape), repeated, rtol=0, atol=atol)


def test_packed_is_alone(case: Case, policy: Policy) -> None:
    prompts = case.prompts()
    groups, shape = grouped(policy, prompts, LENGTHS)
    together = logp(policy, groups, shape)
    for group in groups:
        alone = logp(policy, [group], shape)
        rows = torch.tensor(group.rows)
        torch.testing.assert_close(together[rows], alone[rows], rtol=0, atol=1e-5)


def test_padding_changes_nothing(case: Case, policy: Policy) -> None:
    groups, (rows, width) = grouped(policy, case.prompts(), LENGTHS)
    narrow, wide = logp(policy, groups, (rows, width)), logp(policy, groups, (rows, width + 9))
    assert torch.equal(narrow, wide[:, :width]) and not wide[:, width:].any()


def test_pictures_matter_and_the_tower_learns(case: Case) -> None:
    if case.blind:
        with pytest.raises(BadRow, match=rf"1 images, and {case.family.name} reads text only"):
            case.policy().encode(ask(["image"], 1))
        return
    policy = case.policy()
    for kinds in (["image"], ["video"]):
        prompt = ask(kinds, 4)
        medium = prompt.media[0]
        other = replace(prompt, media=(replace(medium, frames=255 - medium.frames),))
        scored = []
        for shown in (prompt, other):
            groups, shape = grouped(policy, [shown], [[5, 4]])
            scored.append(logp(policy, groups, shape))
        assert (scored[0] - scored[1]).abs().max() > 1e-3, kinds
    groups, shape = grouped(policy, [prompt], [[5, 4]])
    gradients(policy, score_packed, groups, shape)
    for part, weights in case.family.parts(policy.base).items():
        learning = [p for p in weights if p.grad is not None and p.grad.abs().max() > 0]
        assert len(learning) > 0.8 * len(weights), part


def test_parts_hold_every_weight_once(case: Case, policy: Policy) -> None:
    parts = case.family.parts(policy.base)
    counted = [id(p) for name, weights in parts.items() if name != "head" for p in weights]
    everything = {id(p) for p in policy.base.parameters()}
    assert len(counted) == len(set(counted)) and everything - set(counted) <= {
        id(policy.base.lm_head.weight)
    }
    frozen = case.policy(freeze=tuple(part for part in parts if part != "head"))  # type: ignore[arg-type]
    assert not any(p.requires_grad for p in frozen.base.parameters())


def test_lora_adapts_language_and_tower(case: Case) -> None:
    if case.blind:
        with pytest.raises(ValueError, match="no vision tower"):
            case.policy(lora=LoRA(rank=2, vision=True))
    policy = case.policy(lora=LoRA(rank=2, vision=not case.blind))
    names = [name for name, _ in policy.named_parameters()]
    towers = [
        name for name in names if case.family.tower_layers and case.family.tower_layers in name
    ]
    text = [name for name in names if f"{case.family.text_path}.layers." in name]
    assert names and all("lora_" in name for name in names)
    assert len(text) + len(towers) == len(names) and text and bool(towers) != case.blind
    assert not any("gate.weight" in name or "experts" in name for name in names)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    assert_shared_is_repeated(policy, case.prompts())
    groups, shape = grouped(policy, case.prompts(), LENGTHS)
    with policy.reference():
        before = logp(policy, groups, shape)
    plain = case.policy()
    torch.testing.assert_close(before, logp(plain, groups, shape), rtol=0, atol=1e-6)
    assert (logp(policy, groups, shape) - before).abs().max() > 1e-3


def test_what_lora_leaves_alone_is_said(case: Case) -> None:
    policy = case.policy(lora=LoRA(rank=2))
    words = adapted(policy.model, case.family)
    modules = dict(policy.base.named_modules())
    experts = any(name.endswith(".experts") for name in modules)
    assert experts == bool(case.family.left_out_of_lora)
    assert case.family.left_out_of_lora in words and "q_proj" in words


def test_save_merge_reload(case: Case, tmp_path: Path) -> None:
    plain = case.policy()
    groups, shape = grouped(plain, case.prompts(), LENGTHS)
    with torch.no_grad():
        for weight in plain.parameters():
            weight.add_(0.01)
    plain.stepped()
    plain.save(tmp_path / "full")
    again = Policy.load(tmp_path / "full", device="cpu", dtype="float32")
    torch.testing.assert_close(
        logp(again, groups, shape), logp(plain, groups, shape), rtol=0, atol=1e-6
    )
    policy = case.policy(lora=LoRA(rank=2, vision=not case.blind))
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    expected = logp(policy, groups, shape)
    for merge in (False, True):
        folder = tmp_path / f"merge-{merge}"
        policy.save(folder, merge=merge)
        again = Policy.load(folder, device="cpu", dtype="float32")
        assert again.has_adapter != merge
        torch.testing.assert_close(logp(again, groups, shape), expected, rtol=0, atol=1e-5)
        assert again.encode(case.prompts()[-1]).text == groups[-1].encoded.text


def test_greedy_is_the_librarys_generate(case: Case, policy: Policy) -> None:
    count = 2 if case.family.axes == 3 else 4
    prompts = case.prompts()[:count]
    found = HFEngine(policy).generate(prompts, Sampling(1, 0.0, max_tokens=8), NOW)
    for prompt, rollout in zip(prompts, found, strict=True):
        inputs = library_inputs(case, policy.processing, prompt)
        made = policy.base.generate(
            **inputs,
            max_new_tokens=8,
            do_sample=False,
            suppress_tokens=list(policy.processing.banned_ids),
        )[0, inputs["input_ids"].shape[1] :]
        assert torch.equal(rollout.tokens, made[: len(rollout.tokens)])
        assert rollout.logp is not None
        groups, shape = grouped(policy, [prompt], [[len(rollout.tokens)]])
        groups = [replace(groups[0], answers=(rollout.tokens,))]
        torch.testing.assert_close(
            rollout.logp, logp(policy, groups, shape)[0], rtol=0, atol=1e-5
        )


def test_saliency_is_read_or_refused(case: Case, policy: Policy) -> None:
    if case.blind:
        return
    (medium,) = policy.encode(ask(["image"], 1)).visual
    if not case.family.saliency:
        with pytest.raises(
            ValueError, match=rf"tower of {case.family.name} is not read.*SeenBy"
        ):
            policy.vision.saliency(medium)
        return
    found = policy.vision.saliency(medium)
    depth, rows, columns = medium.grid
    assert found.shape == (depth, rows // medium.merge, columns // medium.merge)
    assert found.isfinite().all() and found.min() >= 0


@pytest.mark.parametrize("lora", [LoRA(), LoRA(rank=2), LoRA(rank=2, vision=True)])
def test_sizes_are_those_of_the_model(case: Case, lora: LoRA) -> None:
    if case.blind and lora.vision:
        return
    policy = case.policy(lora=lora)
    planned = sizes(read_config(case.folder), torch.float32, (), lora)
    assert planned.parameters == sum(p.numel() for p in policy.model.parameters())
    assert planned.trainable == sum(p.numel() for p in policy.parameters())
    assert planned.layers == SIZE.layers and planned.layer_graph > 0
    assert (planned.active < planned.language) == bool(case.family.left_out_of_lora)
    if case.blind:
        assert planned.visual_tokens(10**6) == planned.depth == planned.block_graph == 0
        return
    assert (planned.block_graph > 0) == (lora.vision or not lora.rank)
    (medium,) = policy.encode(ask(["image"], 1)).visual
    assert planned.visual_tokens(medium.size[0] * medium.size[1]) == medium.tokens
    assert planned.patch_numbers == medium.values.shape[1] and planned.merge == medium.merge
    assert planned.depth == len(case.family.blocks(policy.base)) == SIZE.vision_depth


def test_a_view_that_changes_nothing_shows_the_same(case: Case, policy: Policy) -> None:
    """On the grids of the prompt, before and after the resize."""
    if case.blind:
        return
    prompt = ask(["image", "image", "video"], 2)
    encoded = policy.encode(prompt)
    for stage in ("original", "resized"):
        seen = policy.processing.rerender(prompt, encoded, lambda frames, _: frames, stage)  # type: ignore[arg-type]
        for ours, old in zip(seen, encoded.visual, strict=True):
            assert (ours.grid, ours.size) == (old.grid, old.size)
            # The square of the whole is made from what a view of stretched pixels returns (`tiles.py`).
            stretched = case.family.shape(policy.base.config).tile and ours.kind == "image"
            if stage == "original" or not (stretched and ours.grid[0] > 1):
                assert torch.equal(ours.values, old.values) and ours.key == old.key


def test_a_view_of_saliency_is_refused_before_a_run(case: Case, policy: Policy) -> None:
    branches = {"masked": VisualBranch(SaliencyMask())}
    if case.family.saliency:
        check_branches(branches, group_rollout, policy)
        return
    with pytest.raises(ValueError, match=r"'masked'.*is not read.*DinoSaliency"):
        check_branches(branches, group_rollout, policy)


def test_a_budget_of_visual_tokens_is_kept(case: Case) -> None:
    if case.blind:
        return
    policy = case.policy(budget=PixelBudget(max_visual_tokens=12))
    prompt = ask(["image", "image"], 1)
    big = tuple(Media(noise(n, 1, 96, 200 + 50 * n)) for n in range(2))
    free = case.policy().encode(replace(prompt, media=big))
    kept = policy.encode(replace(prompt, media=big))
    assert sum(map(len, free.slots)) > 12 >= sum(map(len, kept.slots)) > 2
    with pytest.raises(BadRow, match="max_visual_tokens is 1"):
        case.policy(budget=PixelBudget(max_visual_tokens=1)).encode(prompt)


def test_markers_in_a_text_are_refused_and_never_sampled(case: Case, policy: Policy) -> None:
    vocabulary = policy.processing.tokenizer.get_vocab()
    for token in case.family.structure:
        with pytest.raises(BadRow, match="special token"):
            policy.encode(ask([], 1, f"look {token} here"))
    banned = set(policy.processing.banned_ids)
    assert banned == {vocabulary[t] for t in case.family.vision_tokens if t in vocabulary}
    assert set(case.family.placeholder_ids(policy.base.config).values()) <= banned


class Asked(Prompts):
    """The prompts of a case as the rows of a run."""

    def __init__(self, rows: list[Prompt]) -> None:
        self.rows = [replace(row, answer="red") for row in rows]
        self.size = len(rows)

    def __getitem__(self, index: int) -> Prompt:
        return self.rows[index % len(self.rows)]


def test_a_step_of_papo_with_kl_trains(case: Case, tmp_path: Path) -> None:
    policy = case.policy()
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    views = {} if case.blind else {"masked": VisualBranch(PatchMask(0.5, 8), grad=True)}
    trainer = Trainer(
        policy,
        prompts=Asked(case.prompts()),
        rewards=Rewards(accuracy=in_process(lambda rollout: float(rollout.tokens[0]) % 7)),
        grpo=GRPO(kl=0.1),
        branches=views,
        objectives=[] if case.blind else [PAPO()],
        sampling=Sampling(3, max_tokens=4),
        optim=Optim(lr=1e-3),
        run=Run(output=tmp_path / "run", steps=2, prompts_per_step=2),
    )
    trainer.fit()
    moved = {n for n, p in policy.named_parameters() if not torch.equal(p, before[n])}
    assert len(moved) > 0.8 * len(before)


def test_an_unknown_family_is_told_what_an_adapter_needs() -> None:
    with pytest.raises(
        ValueError, match=r"'llava'.*placeholders.*positions.*register.*own_parts"
    ):
        family_of("llava")


def test_an_adapter_of_ones_own_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What docs/own_parts.md shows: a relative of a known family under a name of its own."""
    monkeypatch.setattr("mmrl.model.families.family._REGISTERED", dict(_REGISTERED))
    mine = register(replace(family_of("qwen2_5_vl"), name="mine", space="original"))
    assert family_of("qwen2_5_vl") is mine
    folder = tiny.build(tmp_path / "mine", "qwen2_5_vl", SIZE)
    assert Policy.load(folder, device="cpu", dtype="float32").family.name == "mine"


def test_the_router_learns_and_is_not_adapted(tmp_path: Path) -> None:
    folder = tiny.build(tmp_path / "moe", "qwen3_vl_moe", SIZE)
    policy = Policy.load(folder, device="cpu", dtype="float32")
    groups, shape = grouped(policy, [ask(["image"], 1)], [[5, 4]])
    _, grads = gradients(policy, score_packed, groups, shape)
    for part in ("mlp.gate.weight", "experts.gate_up_proj", "experts.down_proj"):
        assert any(
            name.endswith(part) and grad.abs().max() > 0 for name, grad in grads.items()
        ), part


def test_the_table_of_models_names_every_family() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    # Seven columns between eight bars.
    named = {row[2].strip(): row[1].strip() for row in rows if len(row) == 9}
    for model_type, family in families().items():
        assert named[f"`{model_type}`"].startswith(family.name)


def test_the_library_makes_no_mask_for_rows_with_a_layout(policy, case, monkeypatch):
    """It would be a square of the packed row, and ask the device whether there is one sequence or several."""
    from transformers import masking_utils

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a packed row or a step of sampling was searched for sequences")

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", refused)
    prompts = case.prompts()[:2]
    rollouts = HFEngine(policy).generate(prompts, Sampling(2, 1.0, max_tokens=3), NOW)
    assert len(rollouts) == 2 * len(prompts)


def test_a_picture_inside_an_answer_is_the_repeated_path(case: Case, policy: Policy) -> None:
    """Whatever the family: tiles, one axis of positions, features of deeper layers, linear attention."""
    if case.blind:
        pytest.skip("reads no pictures")
    family, prompt = policy.family, ask(["image"], 1)
    medium = prompt.media[0]
    shown = observed(policy.processing, family.image, [medium])
    tokens = torch.cat([torch.tensor([70, 71]), shown, torch.tensor([72, 73, 74])])
    roles = torch.zeros(len(tokens), dtype=torch.uint8)
    roles[2:-3] = int(Role.OBSERVATION)
    ids = policy.encode(prompt).ids
    one = Rollout(prompt, 0, ids, tokens, roles, "", "eos", media=(medium,))
    cut = len(tokens) - 2
    both = [replace(one, path=((0, cut), (number, 2))) for number in (1, 2)]
    groups = {"raw": Views(policy, both, {}, Now(0, 0.0)).groups("raw", [0, 1])}
    wanted, shape = {"raw": ScoreOutputs()}, (2, len(tokens))
    found = score_packed(policy, groups, wanted, shape)["raw"].logp
    right = score_repeated(policy, groups, wanted, shape)["raw"].logp
    assert (found - right).abs().max() < 1e-4
