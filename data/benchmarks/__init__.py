"""Published benchmarks: what their rows mean, who grades the answers, and how scores become the official number."""
