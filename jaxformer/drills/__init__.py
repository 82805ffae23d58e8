"""Drills: faults that happen to a small run on the user's own storage, and whether the run survives them."""
