"""Tagging: the same logits as transformers' token classifier, what it counts, and what it answers."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
import torch
import transformers
from hf_weights import TOLERANCE, as_ours, redraw
from reports import report
from small_bert import applied, noisy_params, small_transformer

from jaxformer.data.examples import Visit
from jaxformer.data.pipeline import lanes
from jaxformer.data.pipeline.loader import Data, evaluation_batches
from jaxformer.data.sources.sources import JsonLines
from jaxformer.data.tasks.tagging import TagTokens
from jaxformer.data.tokenizers import WordPiece
from jaxformer.errors import InputError
from jaxformer.metrics.base import Context, MetricStates
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.models.gpt import Gpt
from jaxformer.objectives.tagging import Tagging

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
SENTENCES = [
    {"words": ["w1", "w2x0", "w3"], "tags": ["O", "B-PER", "I-PER"]},
    {"words": ["w4", "w5x1x2", "w6", "w7"], "tags": ["B-LOC", "O", "I-PER", "I-PER"]},
    {"words": ["w8"], "tags": ["B-PER"]},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", *(f"w{n}" for n in range(40)), *(f"##x{n}" for n in range(5))]
    (folder / "vocab.txt").write_text("\n".join(pieces))
    return WordPiece(path=str(folder)).build(None, str(folder / "kept"))


@pytest.fixture(scope="module")
def model():
    return Classifier(Bert(small_transformer(), 96, 24, prediction_heads=()), LABELS, "none")


@pytest.fixture(scope="module")
def params(model):
    return noisy_params(model, np.zeros((1, 4), np.int32))


def batch_of(rows, tokenizer, length=24):
    """A batch whose rows hold these sentences, laid out as the lanes do it."""
    task = TagTokens(LABELS, length)
    rng = np.random.default_rng(0)
    batch = lanes.empty_batch(len(rows), task.row)
    for number, row in enumerate(rows):
        some = [task.examples(task.encode(SENTENCES[one], tokenizer), Visit(tokenizer, rng, None))[0] for one in row]
        lanes.write_row(batch, number, some, task.row)
    return batch


@pytest.mark.slow
def test_logits_are_those_of_transformers(tokenizer):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=60, max_position_embeddings=24, num_labels=len(LABELS), **sizes)
    theirs = redraw(transformers.BertForTokenClassification(config), seed=0)
    backbone, params = as_ours(theirs.bert)
    head = {"kernel": theirs.classifier.weight.detach().numpy().T, "bias": theirs.classifier.bias.detach().numpy()}
    ours = Classifier(backbone, LABELS, "none")
    batch = batch_of([[0], [1], [2]], tokenizer)
    tokens, mask = (torch.from_numpy(batch[name]).long() for name in ("tokens", "segments"))
    labels = torch.from_numpy(np.where(batch["weights"] > 0, batch["targets"], -100)).long()
    expected = theirs(input_ids=tokens, attention_mask=mask, labels=labels)
    whole = {"params": {"backbone": params, "head": head}}
    logits = ours.apply(whole, **Tagging().inputs(batch)).logits
    real = batch["segments"] > 0
    np.testing.assert_allclose(logits[real], expected.logits.detach().numpy()[real], atol=TOLERANCE, rtol=TOLERANCE)
    means = Tagging()(ours, whole["params"], batch)
    assert float(means["loss"].value) == pytest.approx(expected.loss.item(), abs=TOLERANCE)


@pytest.mark.slow
def test_packing_and_padding_change_nothing(model, params, tokenizer):
    results = [
        report(Tagging(), model, Tagging()(model, params, batch_of(rows, tokenizer, length)))
        for rows, length in (([[0], [1], [2]], 24), ([[0, 1, 2]], 24), ([[0, 2], [1], []], 17))
    ]
    assert results[0]["loss"] > 0.1 and {"entity_f1", "f1/PER", "f1/LOC"} < results[0].keys()
    for result in results[1:]:
        assert result == pytest.approx(results[0], abs=1e-5)


def test_training_counts_no_entities(model, params, tokenizer):
    means = Tagging()(model, params, batch_of([[0]], tokenizer), jax.random.key(0))
    assert means.keys() == {"loss", "accuracy"}


@pytest.mark.slow
def test_it_tags_words_and_signs_in_windows(model, params, tokenizer):
    longer = "w1 w2x0. " * 12
    answers = Tagging().predictor(model, params, tokenizer).predict(["w1 w2x0.", longer, "w3 \u4e2d-\u4e2d"])
    assert answers[0].words == ("w1", "w2x0", ".") and len(answers[1].words) == 36
    assert str(answers[0]) == " ".join(
        f"{word}/{tag}" for word, tag in zip(answers[0].words, answers[0].tags, strict=True)
    )
    tokens = np.array([[tokenizer.cls_id, *tokenizer.encode("w1 w2x0 ."), tokenizer.sep_id]])
    shares = jax.nn.softmax(applied(model, params, tokens).logits[0])
    for place, tag, share in zip((1, 2, 4), answers[0].tags, answers[0].probabilities, strict=True):
        assert tag == LABELS[int(shares[place].argmax())]
        assert share == pytest.approx(float(shares[place].max()), abs=1e-5)
    assert all(share > 0 for share in answers[1].probabilities)


def test_what_a_demonstration_shows(model, params, tokenizer):
    batch = batch_of([[0, 2], [1], []], tokenizer)
    tags = np.argmax(applied(model, params, **Tagging().inputs(batch)).logits, -1)
    lines = Tagging().predictor(model, params, tokenizer).demonstrate(batch)
    assert len(lines) == 2
    for line, row, sentence in zip(lines, (0, 1), SENTENCES[:2], strict=True):
        found = [LABELS[tag] for tag in tags[row][(batch["weights"][row] > 0) & (batch["segments"][row] == 1)]]
        shown = [
            f"{word}/{tag}" + f" ({right})" * (tag != right)
            for word, tag, right in zip(sentence["words"], found, sentence["tags"], strict=True)
        ]
        assert line == " ".join(shown)


def test_what_cannot_be_is_refused(model, params, tokenizer):
    rows = TagTokens(LABELS).row
    with pytest.raises(InputError, match="needs a Classifier; the model is a Gpt"):
        Tagging().check(Gpt(small_transformer(), 96, 24), rows)
    with pytest.raises(InputError, match=r"model.pooling=mean: expected none for objective=Tagging"):
        Tagging().check(dataclasses.replace(model, pooling="mean"), rows)
    with pytest.raises(InputError, match="rows have no targets; use TagTokens"):
        Tagging().check(model, {"tokens": None})
    with pytest.raises(InputError, match="no words to tag"):
        Tagging().predictor(model, params, tokenizer).predict(["w1", " "])


class Oracle:
    """A model that finds the tag of each token in a table."""

    labels, position_ids = ("O", "B-x", "I-x"), 64

    def __init__(self, table):
        self.table = jax.numpy.array(table)

    def apply(self, params, tokens, **_):
        return types.SimpleNamespace(logits=jax.nn.one_hot(self.table[tokens], 3), means={})


@pytest.mark.slow
def test_an_entity_longer_than_a_row_is_one_entity(tokenizer, tmp_path):
    """Nine words; the model misses the last: one entity is wrong, and no part of it counts as right."""
    sentences = [
        {"words": [f"w{n}" for n in range(10)], "tags": ["O", "B-x", *["I-x"] * 8]},
        {"words": ["w11", "w12"], "tags": ["B-x", "O"]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(sentence)}\n" for sentence in sentences))
    table = np.zeros(tokenizer.vocab_size, int)
    for sentence in sentences:
        for word, tag in zip(sentence["words"], sentence["tags"], strict=True):
            table[tokenizer.encode(word)[0]] = Oracle.labels.index(tag)
    table[tokenizer.encode("w9")[0]] = 0
    model, objective, task = Oracle(table), Tagging(), TagTokens(Oracle.labels, length=6)
    source = JsonLines((str(tmp_path / "a.jsonl"),))
    context, states = Context(model, {}, tokenizer, task), MetricStates(objective.metrics(model))
    for batch in evaluation_batches(source, Data(source, task, 2), tokenizer, 0, range(2)):
        states.add(jax.device_get(objective(model, {}, batch)))
    by_row = states.compute()
    documents, entities = source.open(), states.metrics[-1]
    states.add_state(entities, entities.score(context, documents, entities.select(context, documents)))
    whole = states.compute()
    assert whole["entity_f1"] == whole["entity_precision"] == whole["entity_recall"] == 0.5
    assert by_row["entity_f1"] == 1.0, "the sentences that lie in one row"
    assert whole["accuracy"] == by_row["accuracy"] == pytest.approx(11 / 12)
    short = TagTokens(Oracle.labels, length=20)
    nothing = entities.score(Context(model, {}, tokenizer, short), documents, range(2))
    np.testing.assert_array_equal(nothing["x"].sum, 0)
