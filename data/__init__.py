"""Where prompts come from: drawn tasks, files and hub datasets, video, pretext tasks."""
