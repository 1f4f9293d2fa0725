"""Laws of all estimators and surrogates of the package, found by walking it: a new one obeys them without an entry.

Traits are not believed but measured: who says that it centres, divides, has no clip or one ratio per answer is given
numbers that tell, and who does not say so must show the opposite.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator
from functools import partial
from importlib import import_module

import pytest
import torch

import mmrl.losses
from mmrl.ground.traits import traits_of
from mmrl.losses.surrogates import Bounded, clipped
from mmrl.training.whole_batch import spans_batch

SETTINGS = {"remax": {"baseline": torch.zeros(9, dtype=torch.float64)}}
"""What some cannot be called without."""


def walked(first: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    """Functions of the losses whose first parameters have these names, and default records that are called so."""
    for module in pkgutil.iter_modules(mmrl.losses.__path__):
        place = f"mmrl.losses.{module.name}"
        for name, thing in vars(import_module(place)).items():
            if name.startswith("_") or getattr(thing, "__module__", "") != place:
                continue
            is_record = isinstance(thing, type) and "__call__" in vars(thing)
            if not (is_record or inspect.isfunction(thing)) or getattr(
                thing, "_is_protocol", False
            ):
                continue
            asked = inspect.signature(
                vars(thing)["__call__"] if is_record else thing
            ).parameters
            asked = [one for one in asked if one != "self"]
            if tuple(asked[: len(first)]) == first and (
                is_record is False or thing is not Bounded
            ):
                yield name, thing() if is_record else thing


# Further parameters of `overlong_penalty` and the like are no estimator's: these return advantages.
ESTIMATORS = {
    name: partial(found, **SETTINGS[name]) if name in SETTINGS else found
    for name, found in walked(("reward", "group", "mask"))
}
SURROGATES = dict(walked(("logp", "old", "advantage", "mask")))
SURROGATES = {name: found for name, found in SURROGATES.items() if name != "ratio_metrics"}


def test_the_walk_finds_what_is_known():
    assert {
        "group_normalized",
        "rloo",
        "gpg",
        "passk",
        "reinforce_plus_plus",
        "NGRPO",
    } <= ESTIMATORS.keys()
    assert SURROGATES.keys() >= {"clipped", "gspo", "gmpo", "sapo", "reinforce", "cispo"}


def batch(seed=0):
    """Nine answers of three ragged groups in no order, with some lengths."""
    rng = torch.Generator().manual_seed(seed)
    reward = torch.rand(9, generator=rng, dtype=torch.float64)
    group = torch.tensor([7, 2, 7, 5, 2, 7, 5, 2, 7])
    mask = torch.arange(6) < torch.randint(1, 7, (9, 1), generator=rng)
    return reward, group, mask


def tokens(advantage, mask):
    """[B] or [B, T] as [B, T]."""
    return advantage.unsqueeze(-1) * mask if advantage.ndim == 1 else advantage


def same(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_permuted_answers_have_permuted_advantages(name):
    reward, group, mask = batch()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    found = tokens(ESTIMATORS[name](reward, group, mask), mask)
    moved = tokens(ESTIMATORS[name](reward[order], group[order] * 3, mask[order]), mask[order])
    same(moved, found[order])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_padding_reaches_nothing(name):
    _, group, mask = batch()
    paid = torch.where(mask, torch.rand(9, 6, dtype=torch.float64) / 6, torch.nan)
    clean = torch.where(mask, paid, 0.0)
    found = tokens(ESTIMATORS[name](paid, group, mask), mask)
    assert found.isfinite().all() and (found[~mask] == 0).all()
    same(found, tokens(ESTIMATORS[name](clean, group, mask), mask))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_who_says_that_groups_stand_alone_treats_them_so(name):
    reward, group, mask = batch()
    if spans_batch(ESTIMATORS[name], []):
        pytest.skip("looks at the whole batch")
    found = tokens(ESTIMATORS[name](reward, group, mask), mask)
    for number in group.unique():
        rows = group == number
        numbers = {key: value[rows] for key, value in SETTINGS.get(name, {}).items()}
        one = ESTIMATORS[name]
        one = partial(one.func, **numbers) if isinstance(one, partial) else one
        same(tokens(one(reward[rows], group[rows], mask[rows]), mask[rows]), found[rows])


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(
    "kind", ["alone", "equal", "no tokens", "unknown", "all unknown", "nobody"]
)
def test_degenerate_groups_are_finite(name, kind):
    reward, group, mask = batch()
    if kind == "alone":
        group = torch.arange(9)
    elif kind == "equal":
        reward = torch.full_like(reward, 0.1)
    elif kind == "no tokens":
        mask = mask & (group != 7).unsqueeze(-1)
    elif kind == "unknown":
        reward[::2] = torch.nan
    elif kind == "all unknown":
        reward[:] = torch.nan
    one = ESTIMATORS[name]
    if kind == "nobody":
        reward, group, mask = reward[:0], group[:0], mask[:0]
        one = partial(one.func, baseline=reward) if isinstance(one, partial) else one
    found = tokens(one(reward, group, mask), mask)
    assert found.shape == mask.shape and found.isfinite().all()
    assert (found[reward.isnan()] == 0).all()


def shifted(reward):
    return reward - 0.75


def scaled(reward):
    return reward * 0.5


def test_traits_of_estimators_are_measured():
    reward, group, mask = batch()
    for name, estimator in ESTIMATORS.items():
        before, says = tokens(estimator(reward, group, mask), mask), traits_of(estimator)
        whole = "z-scores the batch" in says
        for trait, change in (("centres groups", shifted), ("z-scores groups", scaled)):
            after = tokens(estimator(change(reward), group, mask), mask)
            gone = bool(((after - before).abs() < 1e-3 * (1e-9 + before.abs())).all())
            assert gone == (trait in says or whole), (name, trait)


def maps(seed=0):
    rng = torch.Generator().manual_seed(seed)
    old = -torch.rand(4, 5, generator=rng, dtype=torch.float64)
    logp = old + torch.randn(4, 5, generator=rng, dtype=torch.float64)
    advantage = torch.randn(4, 1, generator=rng, dtype=torch.float64).expand(4, 5).clone()
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 4]).unsqueeze(-1)
    return logp.requires_grad_(), old, advantage, mask


@pytest.mark.parametrize("name", SURROGATES)
def test_padding_of_a_surrogate_reaches_neither_loss_nor_gradient(name):
    logp, old, advantage, mask = maps()
    surrogate = SURROGATES[name]
    found = surrogate(logp, old, advantage, mask)
    (clean,) = torch.autograd.grad(found.sum(), logp)
    dirty = [torch.where(mask, x.detach(), torch.nan) for x in (logp, old, advantage)]
    dirty[0].requires_grad_()
    again = surrogate(*dirty, mask)
    (other,) = torch.autograd.grad(again.sum(), dirty[0])
    same(again.detach(), found.detach())
    same(other, clean)
    assert (other[~mask] == 0).all()


@pytest.mark.parametrize("name", SURROGATES)
def test_traits_of_surrogates_are_measured(name):
    logp, old, advantage, mask = maps()
    surrogate, says = SURROGATES[name], traits_of(SURROGATES[name])
    tight = surrogate(logp, old, advantage, mask, clip_low=1e-3, clip_high=1e-3)
    wide = surrogate(logp, old, advantage, mask, clip_low=1.0, clip_high=1e6)
    assert torch.equal(tight, wide) == ("has no clip" in says)
    moved = logp.detach().clone()
    moved[:, 0] += 0.5  # the first token of each answer
    other = surrogate(moved, old, advantage, mask, clip_low=1.0, clip_high=1e6)
    follows = not torch.equal(other[:, 1:], wide.detach()[:, 1:])
    assert follows == ("ratio of whole answers" in says)


def test_bounds_around_a_surrogate_that_is_clipped_by_tokens_act_on_it():
    for name, surrogate in SURROGATES.items():
        said = traits_of(surrogate) & {"has no clip", "ratio of whole answers"}
        if said:
            continue
        logp, old, advantage, mask = maps()
        narrow = Bounded(surrogate, lambda old, advantage: (0.999 + 0 * old, 1.001 + 0 * old))
        wide = surrogate(logp, old, advantage, mask, clip_low=1.0, clip_high=1e6)
        assert not torch.equal(narrow(logp, old, advantage, mask), wide), name
    assert SURROGATES["clipped"] is clipped
