"""Tools that a policy may call within its answers."""
