"""Families of encoders and decoders with a linear head: sequence classification, token classification and question
answering.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

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
from jaxformer.models.base import Model
from jaxformer.models.classifier import Classifier
from jaxformer.objectives.classification import Classification
from jaxformer.objectives.question_answering import QuestionAnswering
from jaxformer.objectives.regression import Regression
from jaxformer.objectives.tagging import Tagging
from jaxformer.predictors.answer_spans import answer_spans
from jaxformer.predictors.labelled_texts import form_of

BACKBONE = "backbone/"
SPAN = ("start", "end")
"""Labels of the two logits per token in a question answering model."""


class ClassifierBridge(Bridge):
    """Chooses the training objective and the data task of an imported classifier of texts or tokens, including models
    for regression and extractive question answering, and converts its outputs to those of the corresponding class of
    the transformers library.
    """

    def objective(self, source: Source, model: Classifier) -> Objective:
        """Returns the objective for a classifier, which depends on its pooling, labels and problem type."""
        if model.pooling == "none":
            return QuestionAnswering() if model.labels == SPAN else Tagging()
        where = str(source.opened.path / CONFIG)
        kind = read_problem_type(source.opened.config, model.labels, where)
        return Regression() if kind == REGRESSION else Classification(many=kind == MANY)

    def task(self, source: Source, model: Classifier, objective: Any) -> Task:
        """Returns the data task for a classifier: labelled texts, labelled words, or questions with answers."""
        length = text_length(model)
        if isinstance(objective, Tagging):
            return TagTokens(model.labels, length)
        if isinstance(objective, QuestionAnswering):
            return answer_spans(length, source.require_tokenizer())
        if isinstance(objective, Regression):
            kind = "regression"
        else:
            kind = "multi_label" if objective.many else "single_label"
        # The folder does not specify whether the model reads pairs, so a tab in a text separates a pair.
        return Classify(pair="pair", labels=model.labels, kind=kind, length=length, form=form_of(model))

    def outputs(self, model: Classifier, output: Any, objective: Any = None) -> dict[str, jax.Array]:
        """Returns the logits, keyed by their names in the transformers library.

        Logits of texts are [batch, labels], and logits of tokens [batch, length, labels]. A question answering model
        has logits of answer starts and of answer ends, [batch, length] each.
        """
        if answers_spans(model, objective):
            return {"start_logits": output.logits[..., 0], "end_logits": output.logits[..., 1]}
        return {"logits": output.logits if model.pooling == "none" else output.logits[:, 0]}

    def config_for_onnx(self, model: Classifier, objective: Any) -> dict[str, Any]:
        """Returns the config of the BERT or LLaMA class of the transformers library that has the same kind of head. Its
        arguments and outputs match those of an exported ONNX program.
        """
        decoder, spans = model.backbone.is_generative, answers_spans(model, objective)
        head = "TokenClassification" if model.pooling == "none" else "SequenceClassification"
        architecture = f"{'Llama' if decoder else 'Bert'}For{'QuestionAnswering' if spans else head}"
        problem = None if objective is None else objective.problem_type
        return {
            "model_type": "llama" if decoder else "bert",
            "architectures": [architecture],
            **text_sizes(model),
            **({} if spans else label_fields(model.labels)),
            **({"problem_type": problem} if problem else {}),
        }


def answers_spans(model: Classifier, objective: Any = None) -> bool:
    """Returns whether a token classifier predicts answer spans: its two logits per token are for the start and the end
    of an answer.
    """
    return model.pooling == "none" and model.labels == SPAN and not isinstance(objective, Tagging)


BRIDGE = ClassifierBridge()


def with_head(
    base: Family,
    architecture: str,
    pooling: Pooling,
    head: list[ParamMapping],
    renamed: Mapping[str, str] | None = None,
    adapt: Callable[[ConfigReader, Model], Model] = lambda reader, backbone: backbone,
) -> Family:
    """Derives the family of classifiers from the family of their backbone.

    Args:
      base: Family of the backbone.
      architecture: Name of the classifier's class in the transformers library.
      pooling: Pooling method that reduces an example to the vector that is classified.
      head: Mappings of the head's parameters.
      renamed: Maps prefixes of tensor names in the backbone family to those in the classifier.
      adapt: Function that takes a config reader and the backbone, and returns the backbone with the changes that the
        classifier requires.
    """
    span = architecture.endswith("ForQuestionAnswering")

    def build(reader: ConfigReader, names: Collection[str]) -> Classifier:
        backbone = adapt(reader, base.build(reader, names))
        labels, dropout = SPAN if span else read_labels(reader), reader.number("classifier_dropout", 0.1)
        return Classifier(backbone, labels, pooling, dropout, bias=len(head) > 1)

    def describe(model: Classifier) -> dict[str, Any]:
        if model.pooling != pooling or (span and model.labels != SPAN):
            form = f"model.pooling={model.pooling} with labels {model.labels}"
            raise InputError(f"{form}: {architecture} supports {pooling}")
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
    """Returns the table that maps the parameters of a classifier to tensors: the rows of the backbone's table, with
    `backbone/` before each parameter path, followed by the mappings of the head.

    `renamed` maps prefixes of tensor names in the backbone family to those in the classifier.
    """

    def name(theirs: str) -> str:
        for old, new in (renamed or {}).items():
            theirs = theirs.replace(old, new) if theirs.startswith(old) else theirs
        return theirs

    rows = [
        dataclasses.replace(
            row,
            ours=BACKBONE + row.ours if isinstance(row.ours, str) else tuple(BACKBONE + path for path in row.ours),
            theirs=name(row.theirs),
            requires=row.requires and BACKBONE + row.requires,
            excludes=row.excludes and BACKBONE + row.excludes,
        )
        for row in base.rows
    ]
    return dataclasses.replace(base, rows=(*rows, *head))


def _linear(theirs: str) -> list[ParamMapping]:
    return linear("head", theirs, "c d -> d c")


def _pooled(reader: ConfigReader, backbone: Model) -> Model:
    """Adds a pooler to a RoBERTa backbone, because the first layer of RoBERTa's classification head equals BERT's
    pooler.
    """
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
"""Families of classifiers. Question answering comes before token classification, because the families of token
classification would match question answering models too. Classes with other heads, such as DistilBERT's sequence
classification with a ReLU, are not supported.
"""
