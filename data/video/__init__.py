"""Clips: readers under a watchdog, choice and size of frames, times as text."""
