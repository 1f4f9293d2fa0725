"""The repeated computation: every answer is scored in a row of its own, behind its own copy of the prompt.

This is what other frameworks do. Here it is the reference that the packed path is tested against, the baseline of the
benchmarks, and the fallback when a model's attention cannot be replaced (`Policy(shared=False)`); it costs up to G
times more. It uses full logits, so it is for small vocabularies or short answers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, pad

from mmrl.model.answer_media import Inside
from mmrl.model.answer_trees import temperature_of
from mmrl.model.further import Wishes
from mmrl.model.packing import Group
from mmrl.model.policy import Policy
from mmrl.model.scoring import (
    ScoreOutputs,
    score_packed,
    slot_ids,
    vocabulary_weights,
)
from mmrl.model.spread import picked_grid
from mmrl.model.vision_tower import insert_features
from mmrl.types import Scores


def scored(
    policy: Policy,
    views: Mapping[str, Sequence[Group]],
    outputs: Mapping[str, ScoreOutputs],
    shape: tuple[int, int],
) -> dict[str, Scores]:
    """As `score_packed`, by the packed path, or by the repeated one if the policy was loaded with `shared=False`."""
    if policy.shared:
        return score_packed(policy, views, outputs, shape)
    return score_repeated(policy, views, outputs, shape)


def score_repeated(
    policy: Policy,
    views: Mapping[str, Sequence[Group]],
    outputs: Mapping[str, ScoreOutputs],
    shape: tuple[int, int],
    *,
    tower_once: bool = True,
) -> dict[str, Scores]:
    """As `score_packed`. `tower_once=False` also sends each answer's copy of the pictures through the tower."""
    full: dict[str, Tensor] = {}
    out: dict[str, Scores] = {}
    # "raw" goes first, since others are compared with it.
    for name in sorted(outputs, key=lambda name: name != "raw"):
        asked = outputs[name]
        reference = policy.reference() if name == "ref" else nullcontext()
        with reference, torch.set_grad_enabled(asked.grad):
            logp_all, chosen = _logp_rows(policy, views[name], asked.grad, shape, tower_once)
            entropy = -(logp_all.exp() * logp_all).sum(-1) if asked.entropy else None
            further = _spread(policy, logp_all, asked)
            further |= _picked(views[name], logp_all) if asked.picked else {}
            # Costs each row a second forward, which nobody pays who does not ask.
            if asked.wishes != Wishes():
                further |= _further(policy, views[name], asked, shape, tower_once)
        full[name] = logp_all
        divergence = None
        if asked.divergence is not None:
            with torch.set_grad_enabled(asked.grad or outputs["raw"].grad):
                divergence = _full_divergence(full["raw"], logp_all, asked.divergence)
        out[name] = Scores(chosen, entropy, divergence, **further)
    return out


def _spread(policy: Policy, logp_all: Tensor, asked: ScoreOutputs) -> dict[str, Tensor]:
    """The fields of `Scores` that come from log-probs of the whole vocabulary [B, T, V]."""
    found: dict[str, Tensor] = {}
    if asked.vocabulary_mean:
        found["vocabulary_mean"] = logp_all @ vocabulary_weights(policy).to(logp_all)
    if asked.top:
        top = logp_all.detach().topk(asked.top)
        # Of padding, which has log-probs of 0 throughout, any token would be the most likely one.
        there = (logp_all != 0).any(-1, keepdim=True)
        found |= {"top_logp": top.values, "top_ids": top.indices * there}
    return found


def _picked(groups: Sequence[Group], logp_all: Tensor) -> dict[str, Tensor]:
    """Log-probs [B, T, k] of the picked tokens; 0 on padding."""
    pairs = [pair for group in groups for pair in zip(group.rows, group.picked, strict=False)]
    grid = picked_grid(pairs, (logp_all.shape[0], logp_all.shape[1]))
    return {} if grid is None else {"picked": logp_all.gather(-1, grid.to(logp_all.device))}


def _further(
    policy: Policy,
    groups: Sequence[Group],
    asked: ScoreOutputs,
    shape: tuple[int, int],
    tower_once: bool,
) -> dict[str, Tensor]:
    """The fields of `Scores` about what is behind the answers and in the prompt; a row of its own for each answer."""
    rows: dict[str, dict[int, Tensor]] = defaultdict(dict)
    nothing = torch.zeros(0, dtype=torch.long)
    for group in groups:
        suffixes = group.suffixes or (nothing,) * len(group.answers)
        ends = group.ends or tuple(map(len, group.answers))
        each = zip(group.answers, group.rows, suffixes, ends, group.within, strict=True)
        for answer, row, suffix, slot, inside in each:
            answer, suffix = answer.to(policy.device), suffix.to(policy.device)
            fed = torch.cat([answer, suffix]) if asked.suffix else answer
            states = _row_states(policy, group, fed, inside, asked.grad, tower_once)
            start = len(group.encoded.ids)
            end = start + len(answer)
            if asked.slot:
                logp = _row_logp(policy, states[start + slot - 1][None])[0]
                rows["slot"][row] = logp[list(slot_ids(policy, asked.slot))]
            with torch.no_grad():
                if asked.suffix:
                    before = states[end - 1 : end + len(suffix) - 1]
                    rows["suffix"][row] = _row_logp(policy, before, suffix)
                if asked.words:
                    assert group.words is not None
                    words = group.words[group.words > 0]
                    ids = group.encoded.ids[words].to(policy.device)
                    rows["words"][row] = _row_logp(policy, states[words - 1], ids)
                if asked.states:
                    rows["states"][row] = states[start:end].detach()
    found: dict[str, Tensor] = {}
    for name, of_rows in rows.items():
        width = shape[1] if name == "states" else None
        found[name], mask = _padded(of_rows, shape[0], width)
        if name in ("suffix", "words"):
            found[f"{name}_mask"] = mask
    return found


def _row_logp(policy: Policy, states: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Log-probs [n, V] at temperature 1, or those of the tokens [n]."""
    logits = policy.base.lm_head(states)
    logp = log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)
    return logp if tokens is None else logp.gather(1, tokens[:, None]).squeeze(1)


def _padded(rows: dict[int, Tensor], count: int, width: int | None) -> tuple[Tensor, Tensor]:
    """Rows [n, ...] stacked to [count, width, ...] with zeros, and which are no padding [count, width]."""
    some = next(iter(rows.values()))
    width = max(map(len, rows.values())) if width is None else width
    empty = some.new_zeros(0, *some.shape[1:])
    each = [rows.get(row, empty) for row in range(count)]
    ends = [(0, 0) * (some.ndim - 1) + (0, width - len(one)) for one in each]
    lengths = torch.tensor([len(one) for one in each], device=some.device)
    mask = torch.arange(width, device=some.device) < lengths[:, None]
    return torch.stack([pad(one, end) for one, end in zip(each, ends, strict=True)]), mask


def _logp_rows(
    policy: Policy,
    groups: Sequence[Group],
    grad: bool,
    shape: tuple[int, int],
    tower_once: bool,
) -> tuple[Tensor, Tensor]:
    """(log-probs of the whole vocabulary [B, T, V], those of the tokens [B, T]); zero where there is no token."""
    count, width = shape
    whole: dict[int, Tensor] = {}
    chosen: dict[int, Tensor] = {}
    for group in groups:
        answers = zip(group.answers, group.rows, group.temperatures, group.within, strict=True)
        for number, (answer, row, temperature, inside) in enumerate(answers):
            if len(answer) == 0:
                continue
            tokens = answer.to(policy.device)
            logits = _answer_logits(policy, group, tokens, inside, grad, tower_once)
            # Half precision is widened before the softmax, as the tiled head does.
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            heat = temperature_of(answer, temperature).to(wide)
            logp = log_softmax(wide / heat[:, None], -1)
            own = logp.gather(1, tokens[:, None]).squeeze(1)
            columns = group.columns[number] if group.columns else torch.arange(len(answer))
            whole[row], chosen[row] = (
                each.new_zeros(width, *each.shape[1:]).index_copy(
                    0, columns.to(each.device), each
                )
                for each in (logp, own)
            )
    # Experts' rows and empty answers have no scores.
    some = next(iter(whole.values()))
    no_logp, no_token = torch.zeros_like(some), some.new_zeros(width)
    logps = [whole.get(row, no_logp) for row in range(count)]
    tokens = [chosen.get(row, no_token) for row in range(count)]
    return torch.stack(logps), torch.stack(tokens)


def _answer_logits(
    policy: Policy,
    group: Group,
    answer: Tensor,
    inside: Inside | None,
    grad: bool,
    tower_once: bool,
) -> Tensor:
    """[T, V] of one answer from the model's own forward with an ordinary causal mask."""
    states = _row_states(policy, group, answer, inside, grad, tower_once)
    # The state before a token predicts it: the prompt's last one the first token, the last token nothing.
    return policy.base.lm_head(states[len(group.encoded.ids) - 1 : -1])


def _row_states(
    policy: Policy,
    group: Group,
    answer: Tensor,
    inside: Inside | None,
    grad: bool,
    tower_once: bool,
) -> Tensor:
    """Last hidden states [P + T, D] of a prompt and what follows it, with the media `inside` that."""
    base, encoded = policy.base, group.encoded
    ids = torch.cat([encoded.ids.to(policy.device), answer])
    after = torch.arange(len(answer)).expand(3, -1)
    visual, slots = group.visual, encoded.slots
    if inside is not None:
        after = inside.node(answer, 0, len(inside.begins) - 1).positions
        visual += inside.visual
        slots += tuple(slot + len(encoded.ids) for slot in inside.slots)
    after = after + encoded.next_position
    positions = torch.cat([encoded.positions, after], dim=1).to(policy.device)
    rows = base.get_input_embeddings()(ids)
    deepstack = {}
    if visual:
        if tower_once:
            features = policy.vision.features(visual, grad)
        else:
            features = policy.vision.tower(visual)
        places = torch.cat(slots).to(policy.device)
        rows, deepstack = insert_features(rows, places, features)
    policy.counters["tokens/update" if grad else "tokens/score"] += len(ids)
    out = policy.text_model(
        inputs_embeds=rows[None],
        position_ids=policy.family.position_ids(positions),
        use_cache=False,
        **deepstack,
    )
    return out.last_hidden_state[0]


def _full_divergence(a: Tensor, b: Tensor, kind: str) -> Tensor:
    """Divergence per token from log-probs of the whole vocabulary [..., V]."""
    if kind == "forward":
        return _full_kl(a, b)
    if kind == "reverse":
        return _full_kl(b, a)
    if kind == "symmetric":
        return 0.5 * (_full_kl(a, b) + _full_kl(b, a))
    middle = torch.logaddexp(a, b) - math.log(2.0)
    return 0.5 * (_full_kl(a, middle) + _full_kl(b, middle))


def _full_kl(a: Tensor, b: Tensor) -> Tensor:
    return (a.exp() * (a - b)).sum(-1)
