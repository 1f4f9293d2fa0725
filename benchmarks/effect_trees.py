"""Systems of branching answers, hints, experience and self-training: which there are, and how all of them are run.

Each module `effect_claims_*.py` brings the claims of some. Runs are those of the RLVR systems but for longer answers;
the task of two steps (`effect_steps.py`) is where a claim about search can show, that of free lengths
(`effect_lengths.py`) where one about shorter answers can.
"""

from __future__ import annotations

from collections.abc import Mapping

from effect_claims import Method
from effect_claims_arpo import ARPO
from effect_claims_experience import EXPERIENCE
from effect_claims_judged import JUDGED
from effect_claims_judges import JUDGES
from effect_claims_knowrl import KNOWRL
from effect_claims_rose import ROSE
from effect_claims_spae import SPAE
from effect_rlvr import OPTIONS, PAID
from effect_steps import LONGEST

TREES: Mapping[str, Method] = {
    **ROSE,
    **ARPO,
    **EXPERIENCE,
    **SPAE,
    **KNOWRL,
    **JUDGED,
    **JUDGES,
}
STEPS, QUESTIONS = 30, 192
TREE_OPTIONS = (*OPTIONS, "--sampling.max-tokens", str(LONGEST))
TREE_PAID = PAID
EXPLAINED = (
    "Behind the rewards stand the answers per step that the method and its reference really sampled. Methods are "
    "explained in `benchmarks/effect_claims_*.py`, tasks in `benchmarks/effect_tasks.py`, numbers in "
    "`benchmarks/effect_answers.py`. A verdict needs five seeds."
)
