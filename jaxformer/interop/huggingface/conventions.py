"""Runs in the form that other programs expect of an export."""

from jaxformer.interop.huggingface.families import bridge_of
from jaxformer.runs.run import Run


def conventional(run: Run) -> Run:
    """Returns the run whose export computes the same and follows the conventions of its family.

    Arrays are computed when they are read.
    """
    return bridge_of(run.model).conventional(run)
