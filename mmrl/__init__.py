"""mmrl: reinforcement learning for vision-language models.

A rollout engine answers prompts; visual branches look at the same answers through masked, noisy or perturbed pixels;
objective modules turn these looks into loss terms or advantages on one GRPO core. Read `types.py` for the records,
`trainer.py` for one training step, `objectives/papo.py` for what a paper looks like here.
"""

__version__ = "0.1.0"
