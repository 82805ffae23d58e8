"""Encoders and decoders with a linear head: transformers' classes for classes of texts and tokens, and for spans."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax

from jaxformer.config import Objective
from jaxformer.data.tasks.base import Task
from jaxformer.data.tasks.classification import Classify
from jaxformer.data.tasks.tagging import TagTokens
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families import bert, distilbert, gpt2, roberta
from jaxformer.interop.huggingface.families.bridge import Bridge, Source, text_length, text_sizes
from jaxformer.interop.huggingface.families.family import Family
from jaxformer.interop.huggingface.families.rows import linear
from jaxformer.interop.huggingface.folders import CONFIG
from jaxformer.interop.huggingface.labels import MANY, REGRESSION, label_fields, read_labels, read_problem_type
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.layers.pooling import Pooling
from jaxformer.models.classifier import Classifier
from jaxformer.objectives.classification import Classification
from jaxformer.objectives.question_answering import QuestionAnswering
from jaxformer.objectives.regression import Regression
from jaxformer.objectives.tagging import Tagging
from jaxformer.predictors.answer_spans import answer_spans
from jaxformer.predictors.labelled_texts import form_of

BACKBONE = "backbone/"
SPAN = ("start", "end")
"""Meanings of the two logits of a token, in a model that answers questions."""


class ClassifierBridge(Bridge):
    """Classifiers of texts and of tokens, regressions, and answers as spans."""

    def objective(self, source: Source, model: Classifier) -> Objective:
        """Fields for the pooling, the labels and the problem type."""
        if model.pooling == "none":
            return QuestionAnswering() if model.labels == SPAN else Tagging()
        where = str(source.folder.path / CONFIG)
        kind = read_problem_type(source.folder.config, model.labels, where)
        return Regression() if kind == REGRESSION else Classification(many=kind == MANY)

    def task(self, source: Source, model: Classifier, objective: Any) -> Task:
        """Texts or words with labels, or questions with answers."""
        length = text_length(model)
        if isinstance(objective, Tagging):
            return TagTokens(model.labels, length)
        if isinstance(objective, QuestionAnswering):
            return answer_spans(length, source.tokenizer)
        if isinstance(objective, Regression):
            kind = "regression"
        else:
            kind = "multi_label" if objective.many else "single_label"
        # The folder does not say whether the model reads pairs: a tab makes one.
        return Classify(pair="pair", labels=model.labels, kind=kind, length=length, form=form_of(model))

    def outputs(self, model: Classifier, output: Any, objective: Any = None) -> dict[str, jax.Array]:
        """Logits of texts [b, n] or of tokens [b, t, n], or of the two ends of an answer, [b, t] each."""
        if answers_spans(model, objective):
            return {"start_logits": output.logits[..., 0], "end_logits": output.logits[..., 1]}
        return {"logits": output.logits if model.pooling == "none" else output.logits[:, 0]}

    def nearest_config(self, model: Classifier, objective: Any) -> dict[str, Any]:
        """The objective of BERT or LLaMA with such a head."""
        decoder, spans = model.backbone.is_generative, answers_spans(model, objective)
        head = "TokenClassification" if model.pooling == "none" else "SequenceClassification"
        architecture = f"{'Llama' if decoder else 'Bert'}For{'QuestionAnswering' if spans else head}"
        problem = getattr(objective, "problem_type", None)
        return {
            "model_type": "llama" if decoder else "bert",
            "architectures": [architecture],
            **text_sizes(model),
            **({} if spans else label_fields(model.labels)),
            **({"problem_type": problem} if problem else {}),
        }


def answers_spans(model: Classifier, objective: Any = None) -> bool:
    """Whether the two numbers of each token are for the start and the end of an answer."""
    return model.pooling == "none" and model.labels == SPAN and not isinstance(objective, Tagging)


BRIDGE = ClassifierBridge()


def with_head(
    base: Family,
    architecture: str,
    pooling: Pooling,
    head: list[ParamMapping],
    renamed: Mapping[str, str] | None = None,
    adapt: Callable[[ConfigReader, nn.Module], nn.Module] = lambda reader, backbone: backbone,
) -> Family:
    """A family whose model is a classifier of another one's.

    Args:
      base: the family of what the classifier is made of.
      architecture: the class of transformers.
      pooling: how an example becomes the vector that the head classifies.
      head: its rows.
      renamed: what tensors of the base are called here.
      adapt: what of the config changes the base's model.
    """
    span = architecture.endswith("ForQuestionAnswering")

    def build(reader: ConfigReader, names: Collection[str]) -> Classifier:
        backbone = adapt(reader, base.build(reader, names))
        labels, dropout = SPAN if span else read_labels(reader), reader.number("classifier_dropout", 0.1)
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
        table=classifier_table(base.table, head, renamed),
        headless_architectures=(),
        bridge=BRIDGE,
    )


def classifier_table(base: Table, head: list[ParamMapping], renamed: Mapping[str, str] | None = None) -> Table:
    """The rows of a base, whose arrays are in the backbone, and of a head; `renamed` as in `with_head`."""

    def name(theirs: str) -> str:
        for old, new in (renamed or {}).items():
            theirs = theirs.replace(old, new) if theirs.startswith(old) else theirs
        return theirs

    rows = [
        dataclasses.replace(
            row,
            ours=tuple(BACKBONE + path for path in row.paths) if len(row.paths) > 1 else BACKBONE + row.paths[0],
            theirs=name(row.theirs),
            requires=row.requires and BACKBONE + row.requires,
            excludes=row.excludes and BACKBONE + row.excludes,
        )
        for row in base.rows
    ]
    return dataclasses.replace(base, rows=(*rows, *head))


def _linear(theirs: str) -> list[ParamMapping]:
    return linear("head", theirs, "c d -> d c")


def _pooled(reader: ConfigReader, backbone: nn.Module) -> nn.Module:
    """With a pooler, which RoBERTa's head has under another name."""
    del reader
    return dataclasses.replace(backbone, prediction_heads=("pooler",))


FAMILIES = (
    with_head(bert.FAMILY, "BertForSequenceClassification", "pooler", _linear("classifier")),
    with_head(bert.FAMILY, "BertForQuestionAnswering", "none", _linear("qa_outputs")),
    with_head(bert.FAMILY, "BertForTokenClassification", "none", _linear("classifier")),
    with_head(
        roberta.FAMILY,
        "RobertaForSequenceClassification",
        "pooler",
        _linear("classifier.out_proj"),
        {"roberta.pooler.dense": "classifier.dense"},
        adapt=_pooled,
    ),
    with_head(roberta.FAMILY, "RobertaForQuestionAnswering", "none", _linear("qa_outputs")),
    with_head(roberta.FAMILY, "RobertaForTokenClassification", "none", _linear("classifier")),
    with_head(distilbert.FAMILY, "DistilBertForQuestionAnswering", "none", _linear("qa_outputs")),
    with_head(distilbert.FAMILY, "DistilBertForTokenClassification", "none", _linear("classifier")),
    with_head(
        gpt2.FAMILY,
        "GPT2ForSequenceClassification",
        "last",
        [ParamMapping("head/kernel", "score.weight", "c d -> d c")],
    ),
)
"""Classes for questions come before those for tokens, which would fit the same models. Classes with another head, such
as DistilBERT's for texts, which has a ReLU, are not supported."""
