"""What every room stands on, without torch: seeds, progress, faults, images, quarantine."""
