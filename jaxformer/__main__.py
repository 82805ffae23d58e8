"""`python -m jaxformer`."""

from jaxformer import cli

cli.command()
