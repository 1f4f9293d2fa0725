"""What systems with judges lead to expect, where a rule can stand in for the judge, at equal numbers of answers.

CAPO's critic is the rule of its embedded preset: every word is a step, and a colour or shape that the answer does not
have is wrong. So a half-right answer says which half, which GRPO does not know. MSRL learns to judge pairs and rubric
anchors are paid by a rubric: neither is a way to learn the look-ups that this suite asks, so nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping

from effect_claims import Claim, Method

JUDGED: Mapping[str, Method] = {
    "capo": Method(
        "capo",
        (
            Claim("pass@1 rises above GRPO's", "pass1"),
            Claim("learns where all answers fail", "pass1", "failing"),
        ),
    ),
}
