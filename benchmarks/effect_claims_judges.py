"""What methods of judges and verifiers lead to expect, with the rules that stand in for the judges here.

GRPO samples 8 answers to each of 8 prompts. Writing-Zero does the same, and drops groups whose reference is an outlier,
which are sampled again. DRESS answers 8 prompts 4 times and refines half of these answers once: about as many tokens.
A rule in place of a judge is no reproduction: the claims are those that the formula alone leads to.

VMR learns another task, choices between two answers; its claim is against its own start. CoSineVerifier's chain decides
drawn answers as our own grader does, so it has no claim here.
"""

from __future__ import annotations

from collections.abc import Mapping

from effect_claims import Claim, Method

START = "start"

JUDGES: Mapping[str, Method] = {
    "writing_zero": Method(
        "writing_zero",
        (
            Claim("accuracy rises without a baseline", "pass1", against=START),
            Claim("entropy is kept", "entropy"),
        ),
        # Its pay is the comparison alone.
        ("--reward.accuracy", "0", "--reward.format", "0"),
    ),
    "dress": Method(
        "dress",
        (Claim("accuracy rises with the best feedback in place", "pass1", against=START),),
        ("--sampling.group-size", "4"),
        prompts=8,
        group=8,
    ),
}
