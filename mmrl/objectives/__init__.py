"""One file per paper: what it changes in GRPO, and nothing else."""
