"""Runs the command line interface with `python -m jaxformer`."""

import os
import sys

import jaxformer

# -m puts the current directory first, which may be a run from anywhere; only a config file imports from there.
if sys.argv[1:2] != ["train"] and sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(jaxformer.__file__)):
    del sys.path[0]

from jaxformer import cli

cli.command()
