"""The loop: trainer, learner, optimizer, checkpoints, monitoring, evaluation, tracking."""
