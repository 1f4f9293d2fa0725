"""Statistics of a step are those of all ranks: any estimator, any objective, as if one process had all answers."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from mmrl.losses import advantages
from mmrl.model.packing import collate
from mmrl.model.ranks import Ranks
from mmrl.objectives.base import named, shaped_in_turn, started
from mmrl.objectives.calibrl import CalibRL
from mmrl.objectives.mssr import MSSR
from mmrl.objectives.papo import PAPO
from mmrl.objectives.pearl import PEARL
from mmrl.objectives.puzzlecraft import PuzzleCraft
from mmrl.objectives.visurf import ViSurf
from mmrl.objectives.vogue import VOGUE
from mmrl.objectives.vppo import VPPO
from mmrl.training.rollout_metrics import rollout_metrics
from mmrl.training.whole_batch import WholeBatch, _light, everybodys, spans_batch, summed
from mmrl.types import Media, Now, Prompt, Role, Rollout, Scores
from tests.several import several, values

NOW = Now(step=3, progress=0.4, seed=5)
ESTIMATORS = {
    name: getattr(advantages, name)
    for name in (
        "group_normalized",
        "group_centered",
        "batch_normalized",
        "rloo",
        "reinforce_plus_plus",
        "reinforce_plus_plus_baseline",
        "opo",
        "passk",
        "gpg",
    )
}
OBJECTIVES = [
    [],
    [PAPO()],
    [VOGUE()],
    [VOGUE(draw="rollout", caps="sequential")],
    [VPPO()],
    [PuzzleCraft()],
    [MSSR()],
    [PEARL()],
    [CalibRL()],
    [ViSurf()],
    [MSSR(), VPPO(kl="exact")],
]
PROMPTS, ANSWERS = 5, 3


def answers_to(number):
    """Answers to a prompt, among them an expert's or a label, and with prompt 2 those to its checklist."""
    draws = torch.Generator().manual_seed(number)
    media = (Media(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)),)
    prompt = Prompt(
        f"p{number}", [{"role": "user", "content": "?"}], media, "A", extra={"options": 4}
    )
    asked = [prompt] * ANSWERS
    if number == 2:
        asked += [replace(prompt, id="p2/checklist", extra={"checklist_of": "p2"})] * 2
    found = []
    for row, each in enumerate(asked):
        length = int(torch.randint(1, 7, (), generator=draws))
        origin = "policy"
        if row == 2 and number in (1, 3):
            origin = "expert" if number == 1 else "label"
        role = Role.EXPERT if origin == "expert" else Role.POLICY
        found.append(
            Rollout(
                prompt=each,
                group=0 if row < ANSWERS else 1,
                prompt_ids=torch.arange(4),
                tokens=torch.randint(0, 50, (length,), generator=draws),
                roles=torch.full((length,), int(role), dtype=torch.uint8),
                text="ABCD"[int(torch.randint(0, 4, (), generator=draws))],
                stop="eos",
                logp=-torch.rand(length, generator=draws),
                branch="noisy" if number == 4 else "raw",
                origin=origin,
                reward=float(torch.randint(0, 3, (), generator=draws)) / 2,
                parts={"accuracy": float(row % 2)},
            )
        )
    return found


def mine(ranks):
    """(this rank's answers, group -> place)."""
    rollouts, places = [], {}
    for number in range(ranks.rank, PROMPTS, ranks.world):
        groups = {0: len(places), 1: len(places) + 1}
        for answer in answers_to(number):
            places[groups[answer.group]] = number
            rollouts.append(replace(answer, group=groups[answer.group]))
    return rollouts, places


def with_scores(batch):
    """Stored scores of every kind, which depend on the answer alone."""
    scores = dict(batch.scores)
    for name, shift in (("raw", 0.0), ("noisy", 0.3), ("masked", 0.6), ("ref", 0.1)):
        x = torch.sin(batch.tokens * 0.7 + shift) * batch.mask
        known = (batch.roles == Role.EXPERT) | batch.mask
        scores[name] = Scores((x - 1) * known, x.abs(), x.square())
    return replace(batch, scores=scores)


def shaped(names):
    """(prompt, text, advantage, logged) of every answer of this rank, memories, metrics, for each case."""
    ranks = Ranks.start("cpu")
    rollouts, places = mine(ranks)
    whole = WholeBatch.of(ranks, rollouts, places)
    every = collate(whole.rollouts)
    own = whole.own(every, rollouts)
    assert all(r.prompt.media for r in own.rollouts), "a rank keeps its own pictures"
    own = with_scores(own)
    found = {}
    for estimator, place in names:
        objectives = OBJECTIVES[place]
        memories = started(objectives, None)
        calls = ESTIMATORS[estimator]

        def shape(batch, calls=calls, objectives=objectives, memories=memories):
            advantage = calls(batch.reward, batch.group, batch.mask)
            if advantage.ndim == 1:
                advantage = advantage[:, None] * batch.mask
            return shaped_in_turn(
                objectives, memories, replace(batch, advantage=advantage), NOW
            )

        done = whole.shaped(own, every, shape, spans_batch(calls, objectives))
        numbers = [
            {name: v for name, v in one.logged.items() if not isinstance(v, torch.Tensor)}
            for one in done.shaped
        ]
        maps = [
            {name: v[row][done.mask[row]].tolist() for name, v in one.kept.items()}
            for one in done.shaped
            for row in range(len(done))
        ]
        found[estimator, place] = {
            "answers": [
                (r.prompt.id, r.text, int(g), a[m].tolist())
                for r, g, a, m in zip(
                    done.rollouts, done.group, done.advantage, done.mask, strict=True
                )
            ],
            "numbers": numbers,
            "kept": maps,
            "memories": [
                None if m is None else m.state() for _, m in named(objectives, memories)
            ],
        }
    logged = rollout_metrics(whole.rollouts, every)
    order = whole.rows_here(range(len(whole.rollouts)))
    ranks.end()
    return found, logged, order


CASES = [(name, 0) for name in ESTIMATORS] + [
    ("group_normalized", place) for place in range(1, len(OBJECTIVES))
]


@pytest.mark.parametrize("world", [2, 3])
def test_advantages_are_those_of_one_process(world):
    (alone, logged, _) = shaped(CASES)
    found = values(several(world, shaped, CASES))
    for case in CASES:
        together = sorted(
            (a for theirs, _, _ in found for a in theirs[case]["answers"]), key=str
        )
        expected = sorted(alone[case]["answers"], key=str)
        for ours, one in zip(together, expected, strict=True):
            assert ours[:3] == one[:3], case
            assert ours[3] == pytest.approx(one[3], abs=1e-6), case
        for theirs, _, _ in found:
            for ours, one in zip(theirs[case]["numbers"], alone[case]["numbers"], strict=True):
                assert ours == pytest.approx(one), case
            assert theirs[case]["memories"] == alone[case]["memories"], case
        assert sorted(map(str, (m for t, _, _ in found for m in t[case]["kept"]))) == sorted(
            map(str, alone[case]["kept"])
        )
    for _, theirs, order in found:
        assert theirs == logged
        assert sorted(order) == list(range(len(order)))


def without_answers():
    ranks = Ranks.start("cpu")
    rollouts, places = mine(ranks) if ranks.rank == 0 else ([], {})
    whole = WholeBatch.of(ranks, rollouts, places)
    own = whole.own(collate(whole.rollouts), rollouts)
    add = summed(
        ranks, {"a": 1.0, "b_max": float(ranks.rank)} | ({"c": 2.0} if ranks.rank else {})
    )
    of_all = everybodys(ranks, [replace(a, group=0) for a in answers_to(ranks.rank)])
    ranks.end()
    return len(whole.rollouts), len(own), add, [(r.prompt.id, r.group) for r in of_all]


def test_a_rank_may_have_no_answers():
    first, second = values(several(2, without_answers))
    assert first[:2] == (11, 11) and second[:2] == (11, 0)
    assert first[2] == second[2] == {"a": 2.0, "b_max": 1.0, "c": 2.0}
    assert first[3] == second[3] == [("p0", 0)] * 3 + [("p1", 1)] * 3


def test_what_spans_the_batch_is_known_of_every_estimator():
    spanning = {
        "batch_normalized",
        "reinforce_plus_plus",
        "reinforce_plus_plus_baseline",
        "gpg",
    }
    for name, estimator in ESTIMATORS.items():
        assert spans_batch(estimator, []) == (name in spanning)
    assert not spans_batch(partial(advantages.rloo, alone="reward"), [PAPO()])
    assert spans_batch(advantages.rloo, [VPPO()])

    def own_way(reward, group, mask):
        return reward

    assert spans_batch(own_way, [])  # nobody knows what it looks at
    own_way.spans_batch = False
    assert not spans_batch(own_way, [])


def test_an_answer_travels_with_its_path_and_without_pictures():
    answer = answers_to(0)[0]
    path = ((4, 1), (5, len(answer.tokens) - 1))
    sent = _light(replace(answer, path=path, media=answer.prompt.media))
    assert sent.path == path and sent.media == sent.prompt.media == ()
    assert collate([sent]).rollouts[0].path == path
