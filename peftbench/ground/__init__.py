"""What everything may stand on: errors, files, seeds, this machine, strangers' files, and texts made safe."""
