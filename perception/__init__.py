"""What is done to pixels (views) and what is paid for seeing (perception rewards)."""
