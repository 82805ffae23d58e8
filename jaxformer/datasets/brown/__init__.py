"""TFDS builder of the Brown corpus."""
