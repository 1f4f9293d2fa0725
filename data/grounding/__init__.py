"""Video temporal grounding: questions, published formats, rewards, metrics."""
