"""Converts a run before it is exported, so that the exported model follows the conventions of its Hugging Face model
family, such as the order of the vocabulary.
"""

from jaxformer.interop.huggingface.families import bridge_of
from jaxformer.runs.run import Run


def to_exportable_form(run: Run) -> Run:
    """Returns an equivalent run whose exported model follows the conventions of its Hugging Face model family, such as
    the order of the vocabulary.

    The converted parameters are computed when they are read.
    """
    return bridge_of(run.model).to_exportable_form(run)
