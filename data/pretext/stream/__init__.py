"""From media to a stream of samples: sources, archives, samples, export, scoring."""
