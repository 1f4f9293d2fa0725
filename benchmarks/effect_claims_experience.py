"""What systems of hints, experience and self-training lead to expect, at about equal numbers of sampled tokens.

GRPO samples 8 answers to each of 8 prompts, and so do SEELE (in four rounds), RoRecomp and URLVR. MEL writes a text
about a mixed group and replays it, SvS writes two problems from a right answer and answers both: they get fewer
prompts. What SvS samples depends on how many problems are half solved, and was more than GRPO's in every run. SSB asks
until it has a right solution to learn, which the tiny model seldom writes, so that its steps sample seven times as
much; there GRPO gets the more prompts.

Claims are the papers'; where a number stands for one:

- SvS is measured by pass@32 there, by pass@8 here.
- RoRecomp says shorter at equal accuracy, on a task where length is free (`effect_lengths.py`). A difference cannot
  show that two are equal: pass@1 stands among the means.
- URLVR says that rewards without labels sharpen what the model already says, which helps where that is mostly right and
  harms where it is not. On `either` the warm start's commonest answers are mostly right, on `cells` most of its votes
  have the wrong order of words. A run goes on after its collapse, so that all are equally long.
"""

from __future__ import annotations

from collections.abc import Mapping

from effect_claims import Claim, Method

PASS1 = Claim("pass@1 rises above GRPO's", "pass1")
START = "start"

EXPERIENCE: Mapping[str, Method] = {
    "seele": Method("seele", (Claim("learns where all answers fail", "pass1", "failing"),)),
    "mel": Method(
        *("mel", (PASS1,), ("--run.prompts-per-step", "7", "--mel.pairs", "1")),
        prompts=8,
        group=8,
    ),
    "ssb": Method(
        "ssb",
        (PASS1, Claim("learns without a reward in its loss", "pass1", against=START)),
        ("--data.limit", "128"),
        prompts=60,
        group=8,
    ),
    "svs": Method(
        "svs",
        (Claim("pass@8 rises above GRPO's", "pass8"), Claim("entropy is kept", "entropy")),
        ("--run.prompts-per-step", "5"),
        prompts=8,
    ),
    "rorecomp": Method(
        "rorecomp", (Claim("answers are shorter", "length", "lengths", larger=False),)
    ),
    "urlvr": Method(
        "urlvr",
        (
            Claim("rises without labels where votes are right", "pass1", "either", START),
            Claim("falls where votes are wrong", "pass1", against=START, larger=False),
        ),
        ("--collapse.no-stop",),
    ),
}
