"""Drills damage a small run on purpose, on the user's own storage, and check that the damage is detected."""
