"""What is scored when, and that the split of an update never matters."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
import torch

from mmrl.data.drawn.drawn import Drawn
from mmrl.grpo import GRPO
from mmrl.losses.advantages import group_normalized
from mmrl.losses.surrogates import clipped, gspo
from mmrl.model.packing import collate
from mmrl.model.policy import Policy
from mmrl.model.scoring import ScoreOutputs
from mmrl.objectives.base import Objective, ScoreRequest
from mmrl.objectives.papo import PAPO
from mmrl.perception.masking import PatchMask
from mmrl.rollouts.engine import HFEngine
from mmrl.training.learner import Learner, accumulate, gathered, update_rows
from mmrl.training.optim import Optim, Optimizer
from mmrl.training.rollout_metrics import rollout_metrics
from mmrl.training.run import PhaseTimer
from mmrl.training.score_plan import plan_scores
from mmrl.types import Now, Prompt, Role, Rollout, Sampling, Scores, Shaped, VisualBranch

NOW = Now(step=2, progress=0.25, seed=11)
MASK = PatchMask(0.5, 8)


@dataclass(frozen=True)
class Reads(Objective):
    """An objective that only reads."""

    what: tuple[ScoreRequest, ...]

    def score_requests(self):
        return self.what


# the score plan: (GRPO, needs of each objective, branch "b", updates) -> (stored, live besides raw, live raw)

PLAIN, GRAD = ScoreOutputs(), ScoreOutputs(grad=True)
FORWARD = ScoreOutputs(divergence="forward")
B, B_SHAPE = ScoreRequest("b"), ScoreRequest("b", stage="shape")
B_FORWARD = ScoreRequest("b", divergence="forward")
STILL, LIVE, AGAIN = (
    VisualBranch(MASK),
    VisualBranch(MASK, grad=True),
    VisualBranch(MASK, refresh=True),
)
K3, IN_REWARD = GRPO(kl=0.1), GRPO(kl=0.1, kl_in="reward", kl_kind="k1")
EXACT, EXACT_IN_REWARD = (
    GRPO(kl=0.1, kl_kind="exact"),
    GRPO(kl=0.1, kl_in="reward", kl_kind="exact"),
)

PLANS = {
    "grpo": (GRPO(), [], STILL, 1, {}, {}),
    "several updates": (GRPO(), [], STILL, 2, {"raw": PLAIN}, {}),
    "mismatch truncated": (GRPO(mismatch="truncate"), [], STILL, 1, {"raw": PLAIN}, {}),
    "mismatch masked": (GRPO(mismatch="mask"), [], STILL, 1, {"raw": PLAIN}, {}),
    "kl in loss": (K3, [], STILL, 1, {"ref": PLAIN}, {}),
    "kl in loss, several updates": (K3, [], STILL, 3, {"ref": PLAIN, "raw": PLAIN}, {}),
    "exact kl in loss": (EXACT, [], STILL, 1, {}, {"ref": FORWARD}),
    "kl in reward": (IN_REWARD, [], STILL, 1, {"ref": PLAIN, "raw": PLAIN}, {}),
    "exact kl in reward": (EXACT_IN_REWARD, [], STILL, 1, {"ref": FORWARD, "raw": PLAIN}, {}),
    "kl in reward that is off": (GRPO(kl_in="reward"), [], STILL, 1, {}, {}),
    "branch in a term": (GRPO(), [[B]], STILL, 1, {"b": PLAIN}, {}),
    "branch with gradient": (GRPO(), [[B]], LIVE, 1, {}, {"b": GRAD}),
    "branch scored again": (GRPO(), [[B]], AGAIN, 1, {}, {"b": PLAIN}),
    "branch, several updates": (GRPO(), [[B]], STILL, 2, {"b": PLAIN, "raw": PLAIN}, {}),
    "divergence in a term": (GRPO(), [[B_FORWARD]], STILL, 1, {}, {"b": FORWARD}),
    "divergence with gradient": (
        GRPO(),
        [[B_FORWARD]],
        LIVE,
        1,
        {},
        {"b": replace(FORWARD, grad=True)},
    ),
    "branch in shape": (GRPO(), [[B_SHAPE]], STILL, 1, {"b": PLAIN}, {}),
    "branch in shape never has gradient": (GRPO(), [[B_SHAPE]], LIVE, 1, {"b": PLAIN}, {}),
    "branch in shape is not scored again": (GRPO(), [[B_SHAPE]], AGAIN, 1, {"b": PLAIN}, {}),
    "divergence in shape": (
        GRPO(),
        [[replace(B_FORWARD, stage="shape")]],
        STILL,
        1,
        {"b": FORWARD, "raw": PLAIN},
        {},
    ),
    "raw in shape": (
        GRPO(),
        [[ScoreRequest("raw", stage="shape")]],
        STILL,
        1,
        {"raw": PLAIN},
        {},
    ),
    "entropy of raw in shape": (
        GRPO(),
        [[ScoreRequest("raw", stage="shape", entropy=True)]],
        STILL,
        1,
        {"raw": ScoreOutputs(entropy=True)},
        {},
    ),
    "entropy of raw in a term": (
        GRPO(),
        [[ScoreRequest("raw", entropy=True)]],
        STILL,
        1,
        {},
        {"raw": ScoreOutputs(True, grad=True)},
    ),
    "shape and term": (GRPO(), [[B_SHAPE, B]], STILL, 1, {"b": PLAIN}, {}),
    "shape and term with gradient": (
        GRPO(),
        [[B_SHAPE, B]],
        LIVE,
        1,
        {"b": PLAIN},
        {"b": GRAD},
    ),
    "shape and fresh term": (GRPO(), [[B_SHAPE, B]], AGAIN, 1, {"b": PLAIN}, {"b": PLAIN}),
    "equal requests of two": (GRPO(), [[B], [B]], STILL, 1, {"b": PLAIN}, {}),
    "entropy for one of two": (
        GRPO(),
        [[B], [ScoreRequest("b", entropy=True)]],
        STILL,
        1,
        {"b": ScoreOutputs(entropy=True)},
        {},
    ),
    "a fresh request serves the other": (
        GRPO(),
        [[B], [B_FORWARD]],
        STILL,
        1,
        {},
        {"b": FORWARD},
    ),
    "the other order": (GRPO(), [[B_FORWARD], [B]], STILL, 1, {}, {"b": FORWARD}),
    "reference in a term": (GRPO(), [[ScoreRequest("ref")]], STILL, 1, {"ref": PLAIN}, {}),
    "reference in term and kl": (
        K3,
        [[ScoreRequest("ref", divergence="forward")]],
        STILL,
        1,
        {},
        {"ref": FORWARD},
    ),
    "reference in term and reward": (
        IN_REWARD,
        [[ScoreRequest("ref", divergence="forward")]],
        STILL,
        1,
        {"ref": PLAIN, "raw": PLAIN},
        {"ref": FORWARD},
    ),
    "everything at once": (
        replace(EXACT, mismatch="truncate"),
        [[ScoreRequest("raw", entropy=True), B], [replace(B_FORWARD, stage="shape")]],
        LIVE,
        2,
        {"b": FORWARD, "raw": PLAIN},
        {"raw": ScoreOutputs(True, grad=True), "b": GRAD, "ref": FORWARD},
    ),
}


@pytest.mark.parametrize("case", PLANS)
def test_score_plan(case):
    grpo, needs, branch, updates, stored, live = PLANS[case]
    plan = plan_scores(grpo, [Reads(tuple(n)) for n in needs], {"b": branch}, updates)
    assert plan.stored == stored
    assert plan.live == {"raw": GRAD, **live}


def test_the_entropy_bonus_scores_the_entropy_of_the_update():
    plan = plan_scores(GRPO(entropy=1e-3), [], {}, 2)
    assert plan.live == {"raw": ScoreOutputs(True, grad=True)} and plan.stored == {"raw": PLAIN}


def test_branches_that_nobody_reads_are_not_scored():
    plan = plan_scores(GRPO(), [PAPO(0.0, 0.0, 0.0)], {"masked": STILL, "other": LIVE}, 1)
    assert not plan.stored and list(plan.live) == ["raw"]


def test_an_unknown_branch_and_two_divergences_are_refused():
    with pytest.raises(
        ValueError, match=r"PAPO reads the visual branch 'masked', but the branches are \['b'\]"
    ):
        plan_scores(GRPO(), [PAPO()], {"b": STILL}, 1)
    kinds = [Reads((B_FORWARD,)), Reads((ScoreRequest("b", divergence="reverse"),))]
    with pytest.raises(
        ValueError, match=r"'b' is asked for two exact divergences, \['forward', 'reverse'\]"
    ):
        plan_scores(GRPO(), kinds, {"b": STILL}, 1)
    with pytest.raises(ValueError, match="'ref' is asked for two"):
        plan_scores(EXACT, [Reads((ScoreRequest("ref", divergence="js"),))], {}, 1)


# learning from fixed answers


class Recorded(Optimizer):
    """Keeps the gradients of each update."""

    def __init__(self, *args):
        super().__init__(*args)
        self.names = [n for n, _ in args[0]]
        self.gradients = []

    def step(self, planned):
        self.gradients.append(
            {
                n: p.grad.clone()
                for n, p in zip(self.names, self.parameters, strict=True)
                if p.grad is not None
            }
        )
        return super().step(planned)


DATA = [
    Drawn("lookup", size=9)[0],
    Drawn("lookup", size=9, pictures=2)[1],
    Drawn("lookup", size=9, pictures=0)[2],
    Drawn("clips", size=9, frames=6)[3],
]


def load(folder):
    return Policy.load(folder, device="cpu", dtype="float64")


@pytest.fixture(scope="module")
def rollouts(tiny_folder):
    """Four answers each to a picture, two pictures, text and a clip. Lengths differ; sums of the rewards are exact."""
    found = HFEngine(load(tiny_folder)).generate(DATA, Sampling(4, 1.3, max_tokens=9), NOW)
    out = []
    for i, r in enumerate(found):
        keep = 2 + (5 * i) % 8
        r = replace(r, tokens=r.tokens[:keep], roles=r.roles[:keep], logp=r.logp[:keep])
        out.append(
            replace(
                r,
                stop="eos",
                reward=[0.0, 1.0, 0.5, 0.25][(i + i // 4) % 4],
                parts={"accuracy": 1.0},
            )
        )
    return out


def learner(
    folder,
    grpo=GRPO(),
    objectives=(),
    branch=STILL,
    updates=1,
    tokens=100_000,
    surrogate=clipped,
    lr=1e-3,
):
    policy = load(folder)
    policy.freeze_reference()
    if grpo.kl:  # a reference that is not the policy
        with torch.no_grad():
            for i, p in enumerate(policy.parameters()):
                p.mul_(1 + 0.01 * (i % 3))
    optimizer = Recorded(policy.named_parameters(), Optim(lr=lr, max_grad_norm=0))
    branches = {"masked": branch, "b": branch}
    return Learner(
        policy,
        optimizer,
        group_normalized,
        surrogate,
        grpo,
        branches,
        objectives,
        updates,
        tokens,
        10,
    )


def learned(box, answers, now=NOW):
    metrics = box.learn(answers, now, PhaseTimer())
    return metrics, box.optimizer.gradients


def close(mine, theirs, tolerance=1e-6):
    """Relative gap of each gradient; norms and rotations of the library compute in fp32 even in an fp64 model."""
    assert mine.keys() == theirs.keys() and mine
    largest = max(g.norm() for g in theirs.values())
    for name, g in theirs.items():
        gap = (mine[name] - g).norm()
        assert gap <= tolerance * max(g.norm(), 1e-3 * largest), f"{name}: {gap / g.norm()}"


KINDS = {
    "grpo": {},
    "papo": {"objectives": [PAPO()]},
    "papo with gradient": {"objectives": [PAPO()], "branch": LIVE},
    "papo exact": {"objectives": [PAPO(kl="exact", entropy="exact")], "branch": LIVE},
    "kl, sequence mean": {"grpo": GRPO(kl=0.5, reduction="sequence")},
    "exact kl": {"grpo": GRPO(kl=0.5, kl_kind="exact")},
    "kl in reward": {"grpo": GRPO(kl=0.5, kl_kind="k1", kl_in="reward")},
    "gspo, constant": {
        "surrogate": gspo,
        "grpo": GRPO(reduction="constant", length_constant=9, clip_low=1.0),
    },
    "mismatch": {"grpo": GRPO(mismatch="truncate", mismatch_level="sequence")},
}


@pytest.fixture(scope="module")
def whole(tiny_folder, rollouts):
    """Metrics and gradients of each kind, computed in one packed pass."""
    return {
        kind: learned(learner(tiny_folder, **args), rollouts) for kind, args in KINDS.items()
    }


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [
        *((kind, 70) for kind in KINDS),
        ("papo exact", 1),
        ("gspo, constant", 1),
        ("kl in reward", 1),
    ],
)
def test_the_split_into_passes_does_not_matter(tiny_folder, rollouts, whole, kind, tokens):
    """Nor does the order of rows and groups."""
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = [rollouts[i] for i in order]
    metrics, gradients = learned(learner(tiny_folder, tokens=tokens, **KINDS[kind]), shuffled)
    close(gradients[0], whole[kind][1][0])
    for name in ("loss/total", "policy/surprise", "policy/ratio_max", "optim/grad_norm"):
        assert metrics[name] == pytest.approx(whole[kind][0][name], rel=1e-7, abs=1e-12), name


def test_slices_of_wide_groups_read_each_prompt_once(tiny_folder, rollouts):
    """Whatever is scored of it: raw, masked with gradient, the reference; and for the norm of each loss term."""
    found = {}
    for tokens in (100_000, 1):
        box = learner(tiny_folder, tokens=tokens, **KINDS["papo with gradient"])
        box.norms_every = 1
        metrics, _ = learned(box, rollouts)
        norms = {k: v for k, v in metrics.items() if k.startswith("grad_norm/")}
        counters = box.policy.counters
        counts = {k: counters[k] for k in ("tokens/update", "tokens/score", "tokens/head")}
        found[tokens] = norms, counts
        assert not box.policy.prompts.waiting
    # In one row a text is laid out once per view; sliced it is opened once, for no view changes it.
    words = {r.group: len(r.prompt_ids) for r in rollouts if not r.prompt.media}
    passes = 1 + len(found[1][0])
    found[1][1]["tokens/update"] += passes * sum(words.values())
    assert found[1][1] == found[100_000][1]
    assert found[1][0] == pytest.approx(found[100_000][0], rel=1e-6) and len(found[1][0]) > 1


@pytest.mark.parametrize(
    "kind", ["papo exact", "kl, sequence mean", "gspo, constant", "kl in reward"]
)
def test_padding_does_not_matter(tiny_folder, rollouts, whole, kind):
    """An observed answer of 30 tokens widens every row; nothing of it is trained."""
    tokens = torch.full((30,), 70)
    roles = torch.full((30,), int(Role.OBSERVATION), dtype=torch.uint8)
    long = replace(rollouts[0], group=9, tokens=tokens, roles=roles, logp=torch.zeros(30))
    close(
        learned(learner(tiny_folder, **KINDS[kind]), [*rollouts, long])[1][0], whole[kind][1][0]
    )


def test_the_kinds_differ(whole):
    """No two kinds have the same gradient, so each invariance above is about something else."""
    flat = {
        k: torch.cat([g.flatten() for g in gradients[0].values()])
        for k, (_, gradients) in whole.items()
    }
    for a, b in itertools.combinations(set(KINDS) - {"mismatch"}, 2):
        assert (flat[a] - flat[b]).norm() > 1e-4 * flat[a].norm(), (a, b)


def test_papo_changes_the_gradient_of_the_parameters_as_its_terms_say(
    tiny_folder, rollouts, whole
):
    """GRPO's gradient plus those of the three terms taken alone."""
    alone = [PAPO(0.02, 0.0, 0.0), PAPO(0.0, 0.05, 0.0), PAPO(0.0, 0.0, 0.05)]
    _, base = whole["grpo"]
    total = {name: g.clone() for name, g in base[0].items()}
    for objective in alone:
        part = learned(learner(tiny_folder, objectives=[objective], branch=LIVE), rollouts)[1][
            0
        ]
        moved = sum((part[n] - g).norm() for n, g in base[0].items())
        assert moved > 1e-6, objective
        for name, g in part.items():
            total[name] += g - base[0][name]
    close(whole["papo with gradient"][1][0], total)


@pytest.mark.parametrize(
    "branch", [VisualBranch(PatchMask(0.0)), VisualBranch(PatchMask(0.0), grad=True)]
)
def test_a_branch_that_hides_nothing_gives_exactly_nothing(
    tiny_folder, rollouts, whole, branch
):
    metrics, gradients = learned(
        learner(tiny_folder, objectives=[PAPO(0.02, 0.0, 0.0)], branch=branch), rollouts
    )
    assert metrics["loss/perception"] == 0.0 and metrics["branch/masked/kl"] == 0.0
    assert all(torch.equal(g, whole["grpo"][1][0][n]) for n, g in gradients[0].items())


def test_text_alone_gives_exactly_no_perception_term(tiny_folder, rollouts):
    text = [r for r in rollouts if not r.prompt.media]
    plain = learned(learner(tiny_folder), text)[1][0]
    metrics, gradients = learned(learner(tiny_folder, objectives=[PAPO(0.02, 0.0, 0.0)]), text)
    assert len(text) == 4 and metrics["loss/perception"] == 0.0
    assert all(torch.equal(g, plain[n]) for n, g in gradients[0].items())


@pytest.mark.parametrize("branch", [STILL, AGAIN], ids=["stored", "again"])
def test_without_gradient_the_masked_entropy_changes_the_value_only(
    tiny_folder, rollouts, whole, branch
):
    metrics, gradients = learned(
        learner(tiny_folder, objectives=[PAPO(0.0, 0.0, 0.05)], branch=branch), rollouts
    )
    assert metrics["loss/entropy_masked"] > 0
    close(gradients[0], whole["grpo"][1][0], 1e-12)


def test_several_updates_hold_the_policy_against_the_one_that_sampled(tiny_folder, rollouts):
    box = learner(tiny_folder, updates=4, lr=1e-2)
    metrics, gradients = learned(box, rollouts)
    assert len(gradients) == 4 and box.policy.version == 4 and box.optimizer.steps == 4
    prompts = sum(len(p) for p in {r.group: r.prompt_ids for r in rollouts}.values())
    assert box.policy.counters["tokens/score"] == prompts + sum(
        len(r.tokens) - 1 for r in rollouts
    )
    assert metrics["policy/ratio_max"] > 1.01 and metrics["policy/kl_old"] > 0, (
        "the last update's ratio is not 1"
    )
    once = learner(tiny_folder)
    metrics, gradients = learned(once, rollouts)
    assert len(gradients) == 1 and once.policy.counters["tokens/score"] == 0
    assert metrics["policy/ratio_max"] == 1.0


def test_updates_take_whole_groups_in_a_seeded_order(rollouts):
    batch = collate(rollouts)
    cut = update_rows(batch, 3, NOW)
    assert sorted(row for rows in cut for row in rows) == list(range(16))
    assert [len(rows) for rows in cut] in ([4, 8, 4], [4, 4, 8], [8, 4, 4])
    groups = [{int(batch.group[r]) for r in rows} for rows in cut]
    assert sum(map(len, groups)) == 4, "no group is in two updates"
    assert cut == update_rows(batch, 3, NOW)
    assert any(cut != update_rows(batch, 3, replace(NOW, step=s)) for s in range(3, 8))
    assert update_rows(batch, 1, NOW) == [list(range(16))]
    assert len(update_rows(batch, 9, NOW)) == 4, "never more updates than groups"


def test_refreshed_branches_follow_the_weights_and_stored_ones_do_not(tiny_folder, rollouts):
    kl = {}
    for name, branch in (("stored", STILL), ("again", AGAIN)):
        box = learner(
            tiny_folder, objectives=[PAPO(1e-9, 0.0, 0.0)], branch=branch, updates=4, lr=1e-2
        )
        kl[name] = learned(box, rollouts)[0]["branch/masked/kl"]
    assert kl["stored"] != pytest.approx(kl["again"], rel=1e-3)


def test_truncated_answers_can_be_left_out(tiny_folder, rollouts):
    cut = [replace(r, stop="length") if i % 2 else r for i, r in enumerate(rollouts)]
    kept = [
        replace(r, roles=torch.full_like(r.roles, int(Role.OBSERVATION))) if i % 2 else r
        for i, r in enumerate(rollouts)
    ]
    ours = learned(learner(tiny_folder, GRPO(drop_truncated=True)), cut)
    close(ours[1][0], learned(learner(tiny_folder), kept)[1][0])
    assert ours[0]["answer/truncated"] == 0.5


def test_an_update_without_a_trained_token_is_skipped(tiny_folder, rollouts):
    box = learner(tiny_folder, GRPO(drop_truncated=True))
    before = [p.clone() for p in box.policy.parameters()]
    metrics, gradients = learned(box, [replace(r, stop="length") for r in rollouts])
    assert metrics["update/skipped"] == 1.0 and not gradients and box.policy.version == 0
    assert all(torch.equal(a, b) for a, b in zip(before, box.policy.parameters(), strict=True))


@dataclass(frozen=True)
class Poison(Objective):
    """A term that is not a number."""

    value: float = float("nan")

    def terms(self, live, batch, now):
        return {"poison": live["raw"].logp * self.value}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_the_weights_change(tiny_folder, rollouts, value):
    box = learner(tiny_folder, objectives=[Poison(value)], tokens=60)
    before = [p.clone() for p in box.policy.parameters()]
    with pytest.raises(
        FloatingPointError, match=r"the loss is .*'loss/poison'.*Lower --optim\.lr"
    ):
        learned(box, rollouts)
    assert box.policy.version == 0 and not box.optimizer.gradients
    assert all(torch.equal(a, b) for a, b in zip(before, box.policy.parameters(), strict=True))


def test_an_estimator_may_return_one_number_per_answer_or_per_token(
    tiny_folder, rollouts, whole
):
    box = learner(tiny_folder)
    box.estimator = lambda reward, group, mask: (
        group_normalized(reward, group, mask)[:, None] * mask
    )
    close(learned(box, rollouts)[1][0], whole["grpo"][1][0], 1e-12)


@dataclass(frozen=True)
class Doubled(Objective):
    """Twice the advantage of answers whose raw scores it has seen."""

    def score_requests(self):
        return (ScoreRequest("raw", stage="shape"),)

    def shape(self, advantage, batch, now, memory=None):
        assert not torch.is_grad_enabled() and batch.scores["raw"].logp.abs().sum() > 0
        return Shaped(2 * advantage)


def test_shapes_are_applied_in_order_without_gradient(tiny_folder, rollouts, whole):
    gradients = learned(learner(tiny_folder, objectives=[Doubled(), Doubled()]), rollouts)[1][0]
    close(gradients, {n: 4 * g for n, g in whole["grpo"][1][0].items()}, 1e-6)


def test_metrics_of_a_rollout_by_hand():
    def answer(group, reward, length, stop="eos", **parts):
        tokens = torch.arange(length)
        return Rollout(
            Prompt("", []),
            group,
            tokens,
            tokens,
            tokens.byte() * 0,
            "",
            stop,
            reward=reward,
            parts=parts,
        )

    answers = [
        answer(0, 1.0, 2, a=1.0, f=0.5),
        answer(0, 0.0, 4, "length", a=None, f=0.5),
        answer(1, 0.5, 3, f=0.5),
    ]
    found = rollout_metrics(answers, collate(answers))
    assert found == {
        "reward/total": 0.5,
        "reward/std": pytest.approx((1 / 6) ** 0.5),
        "reward/group_std": 0.25,
        "reward/even_groups": 0.5,
        "answer/length": 3.0,
        "answer/truncated": pytest.approx(1 / 3),
        "answer/count": 3.0,
        "reward/a": 1.0,
        "reward/f": 0.5,
    }


def test_summands_add_up_and_maxima_do_not():
    sums = {}
    for value in (1.0, 5.0, 2.0):
        accumulate(
            sums, {"loss/x": torch.tensor(value), "policy/ratio_max": torch.tensor(value)}
        )
    assert {k: v.item() for k, v in sums.items()} == {"loss/x": 8.0, "policy/ratio_max": 5.0}


def test_parts_go_back_to_their_rows():
    logp = torch.arange(12.0).view(4, 3)
    parts = [torch.tensor(rows) for rows in ([3, 1], [0], [2])]
    found = gathered(parts, [Scores(logp[rows], entropy=-logp[rows]) for rows in parts])
    assert (
        torch.equal(found.logp, logp)
        and torch.equal(found.entropy, -logp)
        and found.divergence is None
    )
