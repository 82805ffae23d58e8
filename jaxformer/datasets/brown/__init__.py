"""TFDS builder of the Brown corpus (American English with part-of-speech tags)."""
