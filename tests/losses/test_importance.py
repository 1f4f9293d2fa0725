"""Engine-mismatch weights and rejection: golden values and limits."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrl.losses import importance as M

GOLDEN = (
    Path(os.environ.get("MMRL_GOLDEN", Path(__file__).parents[1] / "golden"))
    / "objectives"
    / "rollout_correction.npz"
)


def golden_keys():
    if not GOLDEN.exists():
        return []
    return [key.split("__", 1) for key in np.load(GOLDEN).files if "__in_" not in key]


def computed(old, sampler, mask, key):
    """Our weights or mask for a golden key, or None if it names something that we do not have."""
    if found := re.fullmatch(r"verl_is_(token|sequence)_thr([\d.]+)_norm([01])", key):
        weight = M.truncated_weight(
            M.importance(old, sampler, mask, level=found[1]), cap=float(found[2])
        )
        return M.normalized_weight(weight, mask, level=found[1]) if found[3] == "1" else weight
    if found := re.fullmatch(r"verl_rs_(?:seq_)?(token|sum|mean|max)_(k[123])_([\d._]+)", key):
        *low, high = (float(bound) for bound in found[3].split("_"))
        bounds = {"low": low[0] if low else None, "high": high}
        return M.rejected(
            old, sampler, mask, statistic=found[2], over=found[1], **bounds
        ).float()
    if found := re.fullmatch(r"trl_(token|sequence)_(truncate|mask)_([\d.]+)", key):
        bound = M.truncated_weight if found[2] == "truncate" else M.masked_weight
        weight = bound(M.importance(old, sampler, mask, level=found[1]), cap=float(found[3]))
        return weight if found[1] == "token" else weight.amax(-1, keepdim=True)
    return None


def read(vectors, case):
    names = ("train_log_probs", "rollout_log_probs", "response_mask")
    return tuple(torch.tensor(vectors[f"{case}__in_{name}"]) for name in names)


@pytest.mark.parametrize(("case", "key"), golden_keys())
def test_golden_objectives_rollout_correction(case, key):
    vectors = np.load(GOLDEN)
    old, sampler, mask = read(vectors, case)
    got = computed(old, sampler, mask, key)
    if got is None:
        pytest.skip(f"{case}__{key}: no such correction here")
    expected = vectors[f"{case}__{key}"]
    if expected.shape == got.shape == tuple(mask.shape):
        expected = expected * mask.numpy()  # TRL leaves ones on padding
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(
    not GOLDEN.exists(), reason="no rollout_correction.npz in the golden folder"
)
def test_golden_objectives_rollout_correction_has_known_cases():
    vectors = np.load(GOLDEN)
    assert any(computed(*read(vectors, case), key) is not None for case, key in golden_keys())


OLD = torch.tensor([[-1.0, -2.0, torch.nan], [-0.5, -3.0, -1.0]])
SAMPLER = torch.tensor([[-1.5, -1.8, torch.nan], [-0.5, -1.0, -4.0]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


def test_token_and_sequence_weights():
    token = M.importance(OLD, SAMPLER, MASK)
    expected = torch.tensor([[0.5, -0.2, 0.0], [0.0, -2.0, 3.0]]).exp() * MASK
    torch.testing.assert_close(token, expected)
    sequence = M.importance(OLD, SAMPLER, MASK, level="sequence")
    torch.testing.assert_close(sequence, torch.tensor([[0.3], [1.0]]).exp() * MASK)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_equal_log_probs_weigh_one_and_carry_no_gradient(level):
    old = OLD.clone().requires_grad_()
    weight = M.importance(old, OLD, MASK, level=level)
    assert not weight.requires_grad
    assert (weight == MASK).all()
    assert (M.normalized_weight(weight, MASK, level=level) == MASK).all()
    assert (M.rejected(OLD, OLD, MASK, high=1e-9) == MASK.bool()).all()


def test_truncate_and_mask():
    weight = torch.tensor([0.2, 1.9, 2.0, 5.0])
    torch.testing.assert_close(
        M.truncated_weight(weight, cap=2.0), torch.tensor([0.2, 1.9, 2.0, 2.0])
    )
    torch.testing.assert_close(
        M.masked_weight(weight, cap=2.0), torch.tensor([0.2, 1.9, 2.0, 0.0])
    )
    torch.testing.assert_close(
        M.masked_weight(weight, cap=2.0, floor=0.5), torch.tensor([0.0, 1.9, 2.0, 0.0])
    )
    torch.testing.assert_close(M.truncated_weight(weight, cap=torch.inf), weight)


def test_normalized_weights_average_to_one():
    weight = M.importance(OLD, SAMPLER, MASK)
    torch.testing.assert_close(
        M.normalized_weight(weight, MASK)[MASK.bool()].mean(), torch.tensor(1.0)
    )
    assert (M.normalized_weight(torch.zeros(2, 3), MASK) == 0).all()


def test_rejection_by_signed_ratio_and_by_divergence():
    drop = M.rejected(OLD, SAMPLER, MASK, statistic="k1", over="token", low=0.5, high=2.0)
    assert drop.tolist() == [[True, True, False], [True, False, False]]
    # The bounds are not symmetric: r = 0.5 is a ratio of 1.65, above 1.5 but inside the mirrored bound.
    assert not M.rejected(OLD, SAMPLER, MASK, statistic="k1", low=0.1, high=1.5)[0, 0]
    assert M.rejected(OLD, SAMPLER, MASK, statistic="k1", low=0.7, high=10.0)[0, 0]
    by_answer = M.rejected(OLD, SAMPLER, MASK, statistic="k2", over="max", high=0.2)
    assert by_answer.tolist() == [[True, True, False], [False, False, False]]
    # Opposite signs cancel in the sum of an answer, not in its largest token.
    assert M.rejected(OLD, SAMPLER, MASK, statistic="k1", over="sum", high=3.0)[1].all()


def test_an_answer_without_tokens_stays_empty():
    assert not M.rejected(OLD, SAMPLER, torch.zeros(2, 3), over="max", high=1.0).any()
    assert (M.importance(OLD, SAMPLER, torch.zeros(2, 3), level="sequence") == 0).all()
