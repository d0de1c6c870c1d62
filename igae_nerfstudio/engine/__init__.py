"""The two phases of a run, and a trainer whose checkpoints can always be read back."""
