"""A config file of two sources for the tests of config values, and the one line of an error."""

from pathlib import Path

import pytest

from jaxformer.errors import InputError

CONFIG = '''
"""Learns little from two files.

Expect nothing.
"""

from jaxformer.config import Experiment
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import Mixture, TextFiles
from jaxformer.data.tasks.masked_lm import MaskedSentencePairs
from jaxformer.data.tokenizers import SentencePiece
from jaxformer.layers.transformer import Transformer
from jaxformer.models.bert import Bert
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.training.optimizers import AdamW, Schedule

experiment = Experiment(
    model=Bert(Transformer(width=64, depth=2, heads=4), vocab=300),
    objective=MaskedLM(),
    data=Data(
        train=Mixture((TextFiles(("a.txt", "b.txt")), TextFiles(("c.txt",))), weights=(1.0, 2.0)),
        task=MaskedSentencePairs(),
        batch=8,
    ),
    tokenizer=SentencePiece(300),
    optimizer=AdamW(Schedule(1e-3, warmup=5), freeze=("pooler",)),
    steps=100,
)
'''


def write_config(folder: Path) -> Path:
    """The path of the file."""
    path = folder / "tiny.py"
    path.write_text(CONFIG.lstrip())
    return path


def message(call, *arguments):
    """The one line of the InputError that the call raises."""
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)
