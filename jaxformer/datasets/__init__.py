"""Builders of this project's data sets for TensorFlow Datasets (TFDS), one folder per data set."""
