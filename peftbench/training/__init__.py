"""One training: the loop, its scores, its checkpoints."""
