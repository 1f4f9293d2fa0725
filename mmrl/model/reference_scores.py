"""The repeated computation: every answer is scored in a row of its own, behind its own copy of the prompt.

This is what other frameworks do. Here it is the reference that the packed path is tested against, the baseline of the
benchmarks, and the fallback when a model's attention cannot be replaced (`Policy(shared=False)`); it costs up to G
times more. It uses full logits, so it is for small vocabularies or short answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from mmrl.model.packing import Group
from mmrl.model.policy import Policy, Wanted
from mmrl.types import Scores


def scored(
    policy: Policy,
    views: Mapping[str, Sequence[Group]],
    wanted: Mapping[str, Wanted],
    shape: tuple[int, int],
) -> dict[str, Scores]:
    """As `Policy.score`, by the packed path, or by the repeated one if the policy was loaded with `shared=False`."""
    if policy.shared:
        return policy.score(views, wanted, shape)
    return score_repeated(policy, views, wanted, shape)


def score_repeated(
    policy: Policy,
    views: Mapping[str, Sequence[Group]],
    wanted: Mapping[str, Wanted],
    shape: tuple[int, int],
    *,
    tower_once: bool = True,
) -> dict[str, Scores]:
    """As `Policy.score`. `tower_once=False` also sends each answer's copy of the pictures through the tower."""
    full: dict[str, Tensor] = {}
    out: dict[str, Scores] = {}
    for name in sorted(wanted, key=lambda n: n != "raw"):
        want = wanted[name]
        with torch.set_grad_enabled(want.grad):
            logp_all, chosen = _rows(policy, views[name], want.grad, shape, tower_once)
            entropy = -(logp_all.exp() * logp_all).sum(-1) if want.entropy else None
        full[name] = logp_all
        divergence = None
        if want.divergence is not None:
            with torch.set_grad_enabled(want.grad or wanted["raw"].grad):
                divergence = _divergence(full["raw"], logp_all, want.divergence)
        out[name] = Scores(chosen, entropy, divergence)
    return out


def _rows(
    policy: Policy,
    groups: Sequence[Group],
    grad: bool,
    shape: tuple[int, int],
    tower_once: bool,
) -> tuple[Tensor, Tensor]:
    """(log-probs of the whole vocabulary [B, T, V], those of the tokens [B, T]); zero where there is no token."""
    pieces: dict[int, tuple[Tensor, Tensor]] = {}
    for group in groups:
        for answer, row, temperature in zip(
            group.answers, group.rows, group.temperatures, strict=True
        ):
            if len(answer) == 0:
                continue
            logits = (
                _logits(policy, group, answer.to(policy.device), grad, tower_once) / temperature
            )
            logp = log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
            pieces[row] = (logp, logp.gather(1, answer.to(policy.device)[:, None]).squeeze(1))
    vocabulary = policy.base.lm_head.weight.shape[0]
    some = next(iter(pieces.values()))[0]
    pad = lambda x, width: torch.cat([x, x.new_zeros(shape[1] - x.shape[0], *width)])  # noqa: E731
    none = (some.new_zeros(0, vocabulary), some.new_zeros(0))
    rows = [pieces.get(i, none) for i in range(shape[0])]
    return torch.stack([pad(a, (vocabulary,)) for a, _ in rows]), torch.stack(
        [pad(b, ()) for _, b in rows]
    )


def _logits(
    policy: Policy, group: Group, answer: Tensor, grad: bool, tower_once: bool
) -> Tensor:
    """[T, V] of one answer from the model's own forward with an ordinary causal mask."""
    base = policy.base
    prompt = len(group.encoded.ids)
    ids = torch.cat([group.encoded.ids.to(policy.device), answer])
    tail = (group.encoded.next_position + torch.arange(len(answer))).expand(3, -1)
    positions = torch.cat([group.encoded.positions, tail], dim=1).to(policy.device)
    if tower_once:
        features = policy.features(group.visual, grad)
    else:
        features = policy._tower(group.visual) if group.visual else []
    rows = base.get_input_embeddings()(ids)
    extra = {}
    if features:
        visual = torch.cat([slot.to(policy.device) for slot in group.encoded.slots])
        rows = rows.index_copy(
            0, visual, torch.cat([f.merged for f in features]).to(rows.dtype)
        )
        if features[0].deepstack:
            mask = torch.zeros(1, len(ids), dtype=torch.bool, device=ids.device)
            mask[0, visual] = True
            levels = range(len(features[0].deepstack))
            extra = {
                "visual_pos_masks": mask,
                "deepstack_visual_embeds": [
                    torch.cat([f.deepstack[i] for f in features]) for i in levels
                ],
            }
    policy.counters["tokens/update" if grad else "tokens/score"] += len(ids)
    out = base.model.language_model(
        inputs_embeds=rows[None], position_ids=positions[:, None], use_cache=False, **extra
    )
    return base.lm_head(out.last_hidden_state[0, prompt - 1 : -1])


def _divergence(a: Tensor, b: Tensor, kind: str) -> Tensor:
    kl = lambda x, y: (x.exp() * (x - y)).sum(-1)  # noqa: E731
    if kind == "forward":
        return kl(a, b)
    if kind == "reverse":
        return kl(b, a)
    if kind == "symmetric":
        return 0.5 * (kl(a, b) + kl(b, a))
    middle = torch.logaddexp(a, b) - torch.log(torch.tensor(2.0, dtype=a.dtype))
    return 0.5 * (kl(a, middle) + kl(b, middle))
