"""What ARPO leads to expect, on answers of two steps at about equal numbers of sampled tokens.

GRPO samples 8 answers to each of 8 prompts. Four of ARPO's eight answers begin at the prompt and at most four branch
behind the thoughts, which they share: 9 prompts cost about the same.

`trained/decoded` is what an answer cost: tokens that were sampled over those of the answers that were trained. It is 1
for answers that share nothing; `trained/updated` counts what goes through the network to train one.
"""

from __future__ import annotations

from collections.abc import Mapping

from effect_claims import Claim, Method
from effect_claims_rose import LIGHTER, SAVES

ARPO: Mapping[str, Method] = {
    "arpo": Method(
        "arpo",
        (
            Claim("pass@1 rises above GRPO's", "pass1", "steps"),
            SAVES,
            LIGHTER,
        ),
        ("--run.prompts-per-step", "9", "--arpo.strings", "</think>", "--arpo.look", "4"),
        prompts=8,
        group=8,
    ),
}
