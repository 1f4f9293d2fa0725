"""What recipes share: launching, miniature presets, embedded models, data of clips and pretext tasks."""
