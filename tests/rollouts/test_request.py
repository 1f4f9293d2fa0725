"""One request record for every engine: counts, starts and numbers per prompt; what an engine cannot do is refused."""

from __future__ import annotations

import pytest
import torch

from mmrl.model.policy import Policy
from mmrl.rollouts.engine import HFEngine, can_look
from mmrl.rollouts.request import (
    ABILITIES,
    Asking,
    Request,
    Result,
    abilities_of,
    asked_of,
    never_drawn,
)
from mmrl.types import Media, Now, Prompt, Role, Sampling

NOW = Now(step=3, progress=0.1, seed=7)
SAMPLING = Sampling(3, 1.0, max_tokens=6)


def question(name, images=0):
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=seeded(name))
    parts = [{"type": "image"}] * images + [{"type": "text", "text": f"{name}?"}]
    return Prompt(name, [{"role": "user", "content": parts}], (Media(pixels),) * images)


def seeded(name):
    return torch.Generator().manual_seed(len(name))


PROMPTS = [question("red", 1), question("blue"), question("green")]


@pytest.fixture(scope="module")
def policy(tiny_folder):
    return Policy.load(tiny_folder, device="cpu", dtype="float32")


class Plain(Asking):
    """An engine that can do nothing special, and says the number of each answer."""

    def __init__(self, policy, version=None):
        self.policy, self.version, self.asked = policy, version, []

    def answer(self, requests):
        self.asked.append(list(requests))
        return [
            Result([r.first + n], None, "eos", "none", version=self.version)
            for r in requests
            for n in range(r.count)
        ]

    def sync(self, policy):
        pass


def told(rollouts):
    return [(r.group, tuple(r.tokens.tolist())) for r in rollouts]


def test_counts_per_prompt_and_numbers_that_go_on(policy):
    engine = HFEngine(policy)
    whole = engine.generate(PROMPTS, Sampling(5, 1.0, max_tokens=6), NOW)
    some = engine.generate(PROMPTS, SAMPLING, NOW, counts=[2, 0, 3])
    rest = engine.generate(PROMPTS, SAMPLING, NOW, counts=[3, 5, 2], first=[2, 0, 3])
    assert [r.group for r in some] == [0, 0, 2, 2, 2]
    # Two stages give the answers of one: draws are keyed by an answer's number and do not repeat.
    assert sorted(told([*some, *rest])) == sorted(told(whole))


def test_a_start_per_answer_is_a_hint(policy):
    starts = [torch.arange(n) + 5 for n in (0, 2, 4)]
    found = HFEngine(policy).generate(
        PROMPTS[:1], Sampling(3, max_tokens=8), NOW, prefixes=[starts]
    )
    for rollout, start in zip(found, starts, strict=True):
        length = len(start)
        assert rollout.tokens[:length].tolist() == start.tolist()
        assert (rollout.roles[:length] == int(Role.HINT)).all()
        assert (rollout.roles[length:] == int(Role.POLICY)).all() and len(
            rollout.tokens
        ) > length
    with pytest.raises(ValueError, match="2 prefixes for 3 answers"):
        HFEngine(policy).generate(PROMPTS[:1], SAMPLING, NOW, prefixes=[starts[:2]])


def test_the_record_says_all_that_an_engine_needs(policy):
    (first, second) = asked_of(policy, [PROMPTS[0], PROMPTS[0]], SAMPLING, NOW)
    assert isinstance(first, Request) and first.encoded is policy.encode(PROMPTS[0])
    assert (first.group, second.group, first.first, second.first) == (0, 1, 0, 3)
    keys = {request.key(n) for request in (first, second) for n in range(3)}
    assert len(keys) == 6
    assert first.banned == never_drawn(policy)
    assert set(policy.processing.banned_ids) <= set(first.banned)
    assert first.needs() == [] and first.temperatures(4) == 1.0


@pytest.mark.parametrize(
    ("given", "need"),
    [
        (dict(prefixes=[torch.tensor([5])]), "forced prefixes"),
        (dict(temperature_at=lambda t: 1.0 + t), "temperature per position"),
        (dict(visual="black"), "other pixels"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_by_name(policy, given, need):
    if "visual" in given:
        given = dict(visual=[policy.encode(question("longer", 1)).visual])
    engine = Plain(policy)
    with pytest.raises(ValueError, match=f"prompt 'red' needs '{need}', which Plain cannot do"):
        engine.generate(PROMPTS[:1], SAMPLING, NOW, **given)
    assert not engine.asked
    assert len(HFEngine(policy).generate(PROMPTS[:1], SAMPLING, NOW, **given)) == 3


def test_abilities_are_declared_or_read_off_the_call(policy):
    class Old:
        def generate(self, prompts, sampling, now, *, visual=None, branch="raw"):
            return []

    assert abilities_of(HFEngine(policy)) == ABILITIES and can_look(HFEngine(policy))
    assert abilities_of(Plain(policy)) == frozenset() and not can_look(Plain(policy))
    assert abilities_of(Old()) == {"other pixels"}


def test_the_version_of_the_weights_is_in_the_rollout(policy):
    assert {r.version for r in Plain(policy, 4).generate(PROMPTS, SAMPLING, NOW)} == {4}
    policy.version = 2
    assert {r.version for r in HFEngine(policy).generate(PROMPTS[:1], SAMPLING, NOW)} == {2}
    policy.version = 0
    assert all(r.logp is None for r in Plain(policy).generate(PROMPTS, SAMPLING, NOW))
