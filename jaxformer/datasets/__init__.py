"""TFDS builders of this project, one folder each."""
