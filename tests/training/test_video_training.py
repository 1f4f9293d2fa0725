"""Clips in training: rollout and update see the same bits, work is done once, and objectives look at events."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.data.grounding.formats import span_lines
from mmrl.data.grounding.sets import GroundingPrompts
from mmrl.data.grounding.time_encodings import TimeEncoded
from mmrl.data.video.frame_cache import FrameCache
from mmrl.data.video.video import ClipReader, ClipSampling
from mmrl.ground.quarantine import Guarded
from mmrl.losses.schedules import Linear
from mmrl.model.branches import Views
from mmrl.model.packing import collate
from mmrl.model.policy import Policy
from mmrl.model.scoring import ScoreOutputs, score_packed
from mmrl.objectives.dvrp import DVRP
from mmrl.objectives.papo import PAPO
from mmrl.objectives.vogue import VOGUE
from mmrl.perception.masking import EvidenceMask, PatchMask
from mmrl.perception.noise import GaussianNoise
from mmrl.rewards.pay import Rewards, in_process
from mmrl.rollouts.engine import HFEngine
from mmrl.training.optim import Optim
from mmrl.training.run import Run
from mmrl.training.tracking import read_metrics
from mmrl.training.trainer import Trainer
from mmrl.types import Media, Now, Prompt, Sampling, VisualBranch

NOW = Now(1, 0.0, 3)


def picture(seed, frames=1):
    return torch.randint(
        0,
        256,
        (frames, 3, 32, 48),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(seed),
    )


def clip(seed, frames=6, step=0.5):
    return Media(picture(seed, frames), torch.arange(frames).double() * step, frames * step)


KINDS = {
    "image": (Media(picture(0)),),
    "several images": (Media(picture(1)), Media(picture(2))),
    "video": (clip(3),),
    "two videos": (clip(4), clip(5, 5, 0.8)),
    "mixed": (Media(picture(6)), clip(7)),
}


def asked(media):
    parts = [{"type": "video" if medium.is_video else "image"} for medium in media]
    return Prompt(
        "p",
        ({"role": "user", "content": [*parts, {"type": "text", "text": "When?"}]},),
        media,
        "1 to 2",
    )


class Seen:
    """What reaches the two networks: patches and grids of the tower; embeddings and positions of the language model."""

    def __init__(self, policy):
        self.patches, self.rows, self.positions = [], [], []
        policy.base.model.visual.register_forward_pre_hook(self.tower, with_kwargs=True)
        policy.base.model.language_model.register_forward_pre_hook(
            self.language, with_kwargs=True
        )

    def tower(self, module, args, kwargs):
        self.patches.append((args[0].detach().clone(), kwargs["grid_thw"].clone()))

    def language(self, module, args, kwargs):
        self.rows.append(kwargs["inputs_embeds"][0].detach().clone())
        self.positions.append(kwargs["position_ids"][:, 0].clone())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["tiny_folder", "tiny3_folder"])
def test_rollout_and_training_forward_see_the_same_bits(family, kind, request):
    policy = Policy.load(request.getfixturevalue(family), device="cpu", dtype="float32")
    prompt = asked(KINDS[kind])
    seen = Seen(policy)
    with policy.vision.no_update():
        answers = HFEngine(policy).generate([prompt], Sampling(2, max_tokens=3), NOW)
    first = len(seen.patches), len(seen.rows)
    policy.vision.clear()
    answers = [replace(answer, reward=1.0) for answer in answers]
    batch = collate(answers)
    views = Views(policy, answers, {}, NOW)
    score_packed(
        policy,
        {"raw": views.groups("raw", range(2))},
        {"raw": ScoreOutputs(grad=True)},
        tuple(batch.tokens.shape),
    )
    once, again = seen.patches[: first[0]], seen.patches[first[0] :]
    assert once and len(once) == len(again), "the tower ran once for each"
    for (values, grid), (other, other_grid) in zip(once, again, strict=True):
        assert torch.equal(values, other) and torch.equal(grid, other_grid)
    encoded, length = policy.encode(prompt), len(policy.encode(prompt).ids)
    assert all(torch.equal(answer.prompt_ids, encoded.ids) for answer in answers)
    prefill, update = seen.positions[0], seen.positions[first[1]]
    assert torch.equal(prefill[:, :length], update[:, :length])
    assert torch.equal(prefill[:, :length], encoded.positions)
    assert torch.equal(seen.rows[0][:length], seen.rows[first[1]][:length]), "ids and features"
    if family == "tiny3_folder" and any(medium.is_video for medium in prompt.media):
        text = policy.processing.tokenizer.decode(answers[0].prompt_ids)
        stamps = [
            f"<{stamp:.1f} seconds>"
            for m in prompt.media
            if m.is_video
            for stamp in policy.processing.stamps(m)
        ]
        assert [text.count(stamp) >= 1 for stamp in stamps] == [True] * len(stamps)


def write(path, shade):
    import av

    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=4)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(
                np.full((32, 32, 3), shade + 4 * number, np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = number, Fraction(1, 4)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


@pytest.fixture
def files(tmp_path):
    rows = []
    for number in range(4):
        write(tmp_path / f"{number}.mp4", 20 * number)
        rows.append(
            {
                "video": f"{number}.mp4",
                "query": f"number {number}",
                "span": [1.0, 2.0],
                "duration": 3.0,
            }
        )
    (tmp_path / "spans.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@in_process
def pay(rollout):
    return float(int(rollout.tokens.sum()) % 7) / 7


def train(folder, prompts, output, objectives=(), branches=None, steps=2, per_step=2):
    policy = Policy.load(folder, device="cpu", dtype="float32")
    Trainer(
        policy,
        prompts=prompts,
        rewards=Rewards(accuracy=pay),
        objectives=objectives,
        branches=branches,
        sampling=Sampling(4, max_tokens=3),
        optim=Optim(lr=1e-3),
        run=Run(output=output, steps=steps, prompts_per_step=per_step),
    ).fit()
    return policy, read_metrics(output)


def test_each_clip_is_decoded_once_and_each_branch_sees_the_tower_once(files, tiny_folder):
    reader = ClipReader("pyav", cache=FrameCache(files / "frames"))
    prompts = Guarded(
        GroundingPrompts(span_lines(files / "spans.jsonl"), reader, ClipSampling(num_frames=6))
    )
    masked = {"masked": VisualBranch(PatchMask(0.5, 8))}
    policy, rows = train(tiny_folder, prompts, files / "run", [PAPO()], masked, steps=4)
    reader.close()
    assert sum(row.get("data/clips_decoded", 0) for row in rows) == 4, "two epochs, four clips"
    patches = sum(len(item.values) for item in policy.encode(prompts[0]).visual)
    for row in rows:
        assert row["patches/tower"] == 2 * 2 * patches, (
            "two clips, raw and masked: rollout and update share the raw one"
        )


MASKS = {
    "patches of each frame": PatchMask(0.5, 8),
    "tubes": PatchMask(0.5, 8, tube=True),
    "the event": EvidenceMask("inside"),
    "all but the event": EvidenceMask("outside"),
}


@pytest.mark.parametrize("telling", ["native", "interleaved_times"])
@pytest.mark.parametrize("mask", MASKS)
def test_papo_looks_at_clips(mask, telling, tiny_folder, tmp_path):
    clips = TimeEncoded(Drawn("clips", size=2, frames=6), telling)
    _, rows = train(
        tiny_folder,
        clips,
        tmp_path / "run",
        [PAPO()],
        {"masked": VisualBranch(MASKS[mask])},
        steps=1,
    )
    assert rows[-1]["branch/masked/kl"] > 0 and abs(rows[-1]["loss/perception"]) > 0


@pytest.mark.parametrize("mask", MASKS)
def test_vogue_and_dvrp_look_at_clips(mask, tiny_folder, tmp_path):
    clips = Drawn("clips", size=2, frames=6)
    dvrp = (
        [DVRP()],
        {"masked": VisualBranch(MASKS[mask]), "noisy": VisualBranch(GaussianNoise(0.3))},
    )
    vogue = (
        [VOGUE(noisy="masked", probability=Linear(1.0, 1.0))],
        {"masked": VisualBranch(MASKS[mask])},
    )
    _, rows = train(tiny_folder, clips, tmp_path / "dvrp", *dvrp, steps=1)
    assert rows[-1]["dvrp/kl_masked"] > 0 and rows[-1]["dvrp/kl_noisy"] > 0
    _, rows = train(tiny_folder, clips, tmp_path / "vogue", *vogue, steps=1)
    assert rows[-1]["vogue/uncertainty"] > 0


def test_the_event_is_hidden_wherever_an_encoding_shows_it(tiny_folder):
    """Inside and outside share no frame, and together hide all; the frames of the event are those of the clip."""
    native, apart = (
        TimeEncoded(Drawn("clips", size=3, frames=12), telling)
        for telling in ("native", "interleaved_times")
    )
    for index in range(3):
        start, end = native[index].answer[0]
        wanted = [start <= time < end for time in native[index].media[0].times.tolist()]
        for prompts in (native, apart):
            found, first = Counter(), 0
            prompt = prompts[index]
            regions = {
                region["visual"]: region["frames"] for region in prompt.extra["evidence"]
            }
            for number, medium in enumerate(prompt.media):
                found.update(first + frame for frame in regions.get(number, []))
                first += len(medium.frames)
            assert [i in found for i in range(first)] == wanted and prompt.answer == [
                (start, end)
            ]
