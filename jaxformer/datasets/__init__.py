"""TFDS builders of this project, one folder per data set."""
