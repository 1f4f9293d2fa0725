"""Mathematics on tensors: advantages, surrogates, divergences, importance weights, reductions, schedules."""
