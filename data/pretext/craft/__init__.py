"""What pretext tasks are made of: answer forms, canvas, sprites, procedural pictures, checks for degenerate samples."""
