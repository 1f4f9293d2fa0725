"""How answers are paid: parts, parsers, workers with time limits, judges."""
