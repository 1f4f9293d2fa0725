"""Drawn tasks that need no files: scenes of cells, clips, checklists."""
