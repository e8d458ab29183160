"""HANDS: runs jobs on the GPU owner's machine."""
