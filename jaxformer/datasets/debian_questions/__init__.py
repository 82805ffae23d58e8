"""TFDS builder of questions on descriptions of Debian packages."""
