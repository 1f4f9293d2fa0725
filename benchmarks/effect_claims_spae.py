"""What SPAE leads to expect, on answers of two steps, where thoughts have steps that can be asked about.

GRPO samples 8 answers to each of 8 prompts, and so does SPAE, which asks each step of each answer for its result
besides: two short answers of at most four tokens. Those are not trained, so that SPAE samples more than GRPO in a step;
`trained/decoded` among the means says how much. The paper claims accuracy, and answers that end when they are settled.
"""

from __future__ import annotations

from collections.abc import Mapping

from effect_claims import Claim, Method

SPAE: Mapping[str, Method] = {
    "spae": Method(
        "spae",
        (
            Claim("pass@1 rises above GRPO's", "pass1", "steps"),
            Claim("answers are shorter", "length", "lengths", larger=False),
        ),
    ),
}
