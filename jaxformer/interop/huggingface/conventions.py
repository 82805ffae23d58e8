"""Converts runs to the form that other programs expect in an export."""

from jaxformer.interop.huggingface.families import bridge_of
from jaxformer.runs.run import Run


def conventional(run: Run) -> Run:
    """Returns an equivalent run whose export follows the conventions of its model family.

    Arrays are computed when they are read.
    """
    return bridge_of(run.model).conventional(run)
