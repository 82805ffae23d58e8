"""Encoders and decoders with a linear head: transformers' classes for classes of texts and tokens, and for spans."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import Settings
from jaxformer.interop.huggingface.families import bert, distilbert, gpt2, roberta
from jaxformer.interop.huggingface.families.family import Family
from jaxformer.interop.huggingface.families.rows import linear
from jaxformer.interop.huggingface.labels import label_fields, read_labels
from jaxformer.interop.huggingface.table import Row, Table
from jaxformer.models.classifier import Classifier, Pooling

BACKBONE = "backbone/"
SPAN = ("start", "end")
"""What the two numbers of a token are for, in a model that answers questions."""


def with_head(
    base: Family,
    architecture: str,
    pooling: Pooling,
    head: list[Row],
    renamed: Mapping[str, str] | None = None,
    span: bool = False,
    adapt: Callable[[Settings, nn.Module], nn.Module] = lambda settings, backbone: backbone,
) -> Family:
    """A family whose model is a classifier of another one's.

    Args:
      base: the family of what the classifier is made of.
      architecture: the class of transformers.
      pooling: how an example becomes the vector that the head classifies.
      head: its rows.
      renamed: what tensors of the base are called here.
      span: whether it answers questions; its labels are `SPAN` then.
      adapt: what of the config changes the base's model.
    """

    def build(settings: Settings, names: Collection[str]) -> Classifier:
        backbone = adapt(settings, base.build(settings, names))
        labels, dropout = SPAN if span else read_labels(settings), settings.number("classifier_dropout", 0.1)
        return Classifier(backbone, labels, pooling, dropout, bias=len(head) > 1)

    def describe(model: Classifier) -> dict[str, Any]:
        if model.pooling != pooling or (span and model.labels != SPAN):
            form = f"model.pooling={model.pooling} with labels {model.labels}"
            raise InputError(f"{form}: {architecture} reads {pooling}")
        described = dict(base.describe(model.backbone))
        named = {} if span else label_fields(model.labels)
        return described | named | {"architectures": [architecture], "classifier_dropout": model.dropout}

    return dataclasses.replace(
        base,
        architectures=(architecture,),
        module=Classifier,
        build=build,
        describe=describe,
        table=_table(base.table, head, renamed or {}),
        bare=(),
    )


def _table(base: Table, head: list[Row], renamed: Mapping[str, str]) -> Table:
    def name(theirs: str) -> str:
        for old, new in renamed.items():
            theirs = theirs.replace(old, new) if theirs.startswith(old) else theirs
        return theirs

    rows = [
        dataclasses.replace(
            row,
            ours=tuple(BACKBONE + path for path in row.paths) if len(row.paths) > 1 else BACKBONE + row.paths[0],
            theirs=name(row.theirs),
            beside=row.beside and BACKBONE + row.beside,
            unless=row.unless and BACKBONE + row.unless,
        )
        for row in base.rows
    ]
    return dataclasses.replace(base, rows=(*rows, *head))


def _linear(theirs: str) -> list[Row]:
    return linear("head", theirs, "c d -> d c")


def _pooled(settings: Settings, backbone: nn.Module) -> nn.Module:
    """With a pooler, which RoBERTa's head has under another name."""
    del settings
    return dataclasses.replace(backbone, prediction_heads=("pooler",))


FAMILIES = (
    with_head(bert.FAMILY, "BertForSequenceClassification", "pooler", _linear("classifier")),
    with_head(bert.FAMILY, "BertForQuestionAnswering", "none", _linear("qa_outputs"), span=True),
    with_head(bert.FAMILY, "BertForTokenClassification", "none", _linear("classifier")),
    with_head(
        roberta.FAMILY,
        "RobertaForSequenceClassification",
        "pooler",
        _linear("classifier.out_proj"),
        {"roberta.pooler.dense": "classifier.dense"},
        adapt=_pooled,
    ),
    with_head(roberta.FAMILY, "RobertaForQuestionAnswering", "none", _linear("qa_outputs"), span=True),
    with_head(roberta.FAMILY, "RobertaForTokenClassification", "none", _linear("classifier")),
    with_head(distilbert.FAMILY, "DistilBertForQuestionAnswering", "none", _linear("qa_outputs"), span=True),
    with_head(distilbert.FAMILY, "DistilBertForTokenClassification", "none", _linear("classifier")),
    with_head(gpt2.FAMILY, "GPT2ForSequenceClassification", "last", [Row("head/kernel", "score.weight", "c d -> d c")]),
)
"""What answers questions comes before what tags tokens, as that would fit it too. A class of transformers that reads
something else, such as DistilBERT's for texts, which has a ReLU, is not here."""
