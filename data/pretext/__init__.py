"""Self-supervised pretext tasks: one file makes an item and marks its answer. Imports no torch."""
