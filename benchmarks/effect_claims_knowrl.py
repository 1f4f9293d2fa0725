"""What KnowRL leads to expect, from a start that reads with points: the exam gives none.

GRPO and KnowRL sample 8 answers to each of 8 prompts, from the same 64 questions. KnowRL measures beside that which
points each question needs, with two answers to each of at most eight sets, once: at most 1,024 answers that are not
trained, beside 1,920 that are. So its rows are not at equal tokens and lean to its side.
"""

from __future__ import annotations

from collections.abc import Mapping

from effect_claims import Claim, Method

KNOWRL: Mapping[str, Method] = {
    "knowrl": Method(
        "knowrl",
        (
            Claim("pass@1 without points rises above GRPO's", "pass1", "points"),
            Claim("pass@8 without points rises above GRPO's", "pass8", "points"),
        ),
    ),
}
