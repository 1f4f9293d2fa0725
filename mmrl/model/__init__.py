"""The policy: loading, vision cache, processing, packed attention, log-probs, visual branches, the tiny models."""
