"""Trains the experiment of a config file: python train.py CONFIG.py [--field value ...] --workdir RUN."""

import sys

from jaxformer import cli

if __name__ == "__main__":
    cli.command(["train", *sys.argv[1:]])
