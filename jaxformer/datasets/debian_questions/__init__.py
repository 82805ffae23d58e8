"""TFDS builder of cloze questions about Debian package descriptions."""
