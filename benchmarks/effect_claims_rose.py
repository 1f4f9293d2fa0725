"""What ROSE and DeepSearch lead to expect, on answers of two steps at about equal numbers of sampled tokens.

GRPO samples 8 answers to each of 8 prompts. Half of ROSE's answers are branches, which share what lies before the
branch: 13 prompts cost about the same. DeepSearch grows three ways on from each node and trains 24 answers of a tree,
of 6 prompts.

`trained/decoded` is what an answer cost: tokens that were sampled over those of the answers that were trained. It is 1
for answers that share nothing. `trained/updated` counts what goes through the network to train one: what answers
share is computed once, as their prompt is.
"""

from __future__ import annotations

from collections.abc import Mapping

from effect_claims import Claim, Method

PASS1 = Claim("pass@1 rises above GRPO's", "pass1", "steps")
SAVES = Claim("an answer costs fewer sampled tokens", "trained/decoded", "steps", larger=False)
LIGHTER = Claim("and fewer tokens of the update", "trained/updated", "steps", larger=False)
SHORTER = Claim("answers are shorter", "length", "steps", larger=False)

ROSE: Mapping[str, Method] = {
    "rose": Method(
        "rose",
        (PASS1, SAVES, LIGHTER, SHORTER),
        ("--run.prompts-per-step", "13", "--grpo.length-constant", "24"),
        prompts=8,
        group=8,
    ),
    "deepsearch": Method(
        "deepsearch",
        (PASS1, SAVES, LIGHTER, Claim("pass@8 rises above GRPO's", "pass8", "steps")),
        # Runs of six tokens, of which an answer has three; few rows, so that kept answers come into use.
        ("--run.prompts-per-step", "6", "--deepsearch.chunks", "4", "--data.limit", "64"),
        prompts=8,
        group=8,
    ),
}
