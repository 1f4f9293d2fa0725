"""A run, or rows before a run, as one page to look at: made from files alone, self-contained, without torch."""
