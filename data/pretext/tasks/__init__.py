"""One pretext task, one file."""
