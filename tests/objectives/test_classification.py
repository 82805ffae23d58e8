"""Losses and scores equal PyTorch's and scikit-learn's; padding and packing change nothing."""

import jax
import numpy as np
import pytest
import torch
from reports import report as report_of
from reports import score_documents
from scipy import stats
from sklearn import metrics as sklearn
from small_bert import applied, noisy_params
from small_classifier import LABELS, small_backbone, write_reviews

from jaxformer.data.examples import Visit
from jaxformer.data.pipeline import lanes
from jaxformer.data.tasks.classification import Classify
from jaxformer.data.tokenizers import WordPiece
from jaxformer.errors import InputError
from jaxformer.layers.transformer import Transformer
from jaxformer.models.classifier import Classifier
from jaxformer.models.gpt import Gpt
from jaxformer.objectives.classification import Classification
from jaxformer.objectives.regression import Regression

NAMES = ("a", "b", "c")
MODEL = Classifier(small_backbone(), NAMES)
PARAMS = noisy_params(MODEL, np.zeros((1, 4), np.int32))
RNG = np.random.default_rng(0)


def batch_of(targets, kind="single_label", examples_per_row=1, labels=NAMES):
    """Rows of 16 tokens, with as many examples of random tokens as there is room for."""
    task = Classify(labels=labels, length=16, kind=kind, examples_per_row=examples_per_row)
    rng = np.random.default_rng(1)
    examples = []
    for target in targets:
        tokens = rng.integers(5, 19, rng.integers(2, 6)).astype(np.int32)
        target = np.atleast_1d(target).astype(task.row["targets"].dtype)
        examples.append({"tokens": tokens, "token_types": np.zeros_like(tokens), "targets": target})
        examples[-1] |= {"cls_positions": np.zeros(1, np.int32), "weights": np.ones(1, np.float32)}
    rows = -(-len(examples) // examples_per_row) + 1  # The last one is empty.
    batch = lanes.empty_batch(rows, task.row)
    for row in range(rows - 1):
        lanes.write_row(batch, row, examples[row * examples_per_row :][:examples_per_row], task.row)
    return batch


def logits_of(model, params, batch, count):
    output = applied(model, params, **Classification().inputs(batch)).logits
    return np.asarray(output)[batch["weights"] > 0][:count]


@pytest.mark.slow
def test_one_label_has_torchs_loss_and_scikit_learns_scores():
    truth = RNG.integers(0, 3, 40)
    batches = [batch_of(truth[:20]), batch_of(truth[20:])]
    objective = Classification(label_smoothing=0.1)
    report = report_of(objective, MODEL, *(objective(MODEL, PARAMS, batch) for batch in batches))
    logits = np.concatenate([logits_of(MODEL, PARAMS, batch, 20) for batch in batches])
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(truth), label_smoothing=0.1)
    guesses = logits.argmax(-1)
    assert report["loss"] == pytest.approx(expected.item(), abs=1e-6)
    assert report["accuracy"] == pytest.approx(sklearn.accuracy_score(truth, guesses))
    assert report["macro_f1"] == pytest.approx(sklearn.f1_score(truth, guesses, average="macro", zero_division=0))
    assert report["matthews"] == pytest.approx(sklearn.matthews_corrcoef(truth, guesses))
    parts = sklearn.precision_recall_fscore_support(truth, guesses, labels=[0, 1, 2], zero_division=0)
    for name, part in zip(("precision", "recall", "f1"), parts, strict=False):
        assert [report[f"{name}/{label}"] for label in NAMES] == pytest.approx(part)
    assert 0.1 < report["accuracy"] < 0.9


@pytest.mark.slow
def test_many_labels_have_torchs_loss_and_scikit_learns_scores():
    truth = RNG.integers(0, 2, (30, 3))
    batch, objective = batch_of(truth, "multi_label"), Classification(many=True)
    report = report_of(objective, MODEL, objective(MODEL, PARAMS, batch))
    logits = logits_of(MODEL, PARAMS, batch, 30)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(1.0 * truth))
    assert report["loss"] == pytest.approx(expected.item(), abs=1e-6)
    assert report["accuracy"] == pytest.approx(sklearn.accuracy_score(truth, logits > 0))
    assert report["macro_f1"] == pytest.approx(sklearn.f1_score(truth, logits > 0, average="macro", zero_division=0))
    assert "matthews" not in report


@pytest.mark.slow
def test_a_number_has_torchs_loss_and_scipys_correlation():
    model = Classifier(small_backbone(), ("likeness",), "mean")
    params = noisy_params(model, np.zeros((1, 4), np.int32))
    truth = RNG.normal(3, 1, 30)
    batch, objective = batch_of(truth, "regression", labels=("likeness",)), Regression()
    report = report_of(objective, model, objective(model, params, batch))
    values = logits_of(model, params, batch, 30)[:, 0]
    assert report["loss"] == pytest.approx(np.mean((values - truth) ** 2), rel=1e-5)
    assert report["absolute_error"] == pytest.approx(np.abs(values - truth).mean(), rel=1e-5)
    assert report["pearson"] == pytest.approx(stats.pearsonr(values, truth)[0], abs=1e-4)


@pytest.mark.slow
def test_ranks_are_of_all_documents(tokenizer):
    model = Classifier(small_backbone(), ("likeness",), "mean")
    params, objective = noisy_params(model, np.zeros((1, 4), np.int32)), Regression()
    words = [*LABELS, "film", "plot", "dull", "warm", "great", "poor"]
    apply = jax.jit(lambda inputs: model.apply({"params": params}, **inputs).logits[0, 0, 0])
    documents = [
        {"text": " ".join(RNG.choice(words, size)), "other": "a film " * 9, "label": round(float(RNG.normal()), 1)}
        for size in RNG.integers(1, 20, 30)
    ]
    for pair in (None, "other"):
        task = Classify(pair=pair, labels=("likeness",), kind="regression", length=12)
        found = score_documents(objective, model, params, tokenizer, task, documents)
        values = []
        for document in documents:
            [row] = task.examples(task.encode(document, tokenizer), Visit(tokenizer, None, None))
            inputs = {name: row[name][None] for name in ("tokens", "token_types", "cls_positions")}
            values.append(float(apply(inputs)))
        expected = stats.spearmanr(values, [document["label"] for document in documents]).statistic
        assert found == {"spearman": pytest.approx(expected, abs=1e-3)}
        batch = objective(model, params, batch_of([1.0, 2.0], "regression", labels=("likeness",)))
        assert "spearman" not in report_of(objective, model, batch)
        same = [documents[0] | {"label": label} for label in (0.0, 1.0)]
        for rows in ([], same):
            assert score_documents(objective, model, params, tokenizer, task, rows) == {"spearman": 0}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_packing_and_padding_change_nothing(kind):
    truth = RNG.integers(0, 3, 9) if kind == "single_label" else RNG.integers(0, 2, (9, 3))
    objective = Classification(many=kind == "multi_label")
    alone, packed = (
        report_of(objective, MODEL, objective(MODEL, PARAMS, batch_of(truth, kind, examples))) for examples in (1, 3)
    )
    assert packed == pytest.approx(alone, abs=1e-5)


@pytest.mark.slow
def test_a_batch_without_weight_is_not_an_error():
    batch = {name: 0 * array for name, array in batch_of([0, 1]).items()}
    report = report_of(Classification(), MODEL, Classification()(MODEL, PARAMS, batch))
    assert report["loss"] == report["macro_f1"] == report["matthews"] == 0


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviews")
    write_reviews(folder)
    return WordPiece(path=str(folder / "vocab.txt")).build(None, str(folder / "kept"))


@pytest.mark.slow
def test_texts_and_pairs_are_predicted_with_probabilities(tokenizer):
    texts = ["a great film", "the plot is dull\tand it is poor", "great " * 90]
    pairs = Classify(pair="b", labels=NAMES).prepare_requests(texts)
    answers = Classification().predictor(MODEL, PARAMS, tokenizer).predict(pairs)
    assert [answer.text for answer in answers] == texts
    for answer in answers:
        assert sum(share for _, share in answer.labels) == pytest.approx(1, abs=1e-5)
        assert {label for label, _ in answer.labels} == set(NAMES)
    [alone] = Classification().predictor(MODEL, PARAMS, tokenizer).predict(texts[:1])
    np.testing.assert_allclose([share for _, share in alone.labels], [share for _, share in answers[0].labels], 1e-4)
    assert list(Classification().predictor(MODEL, PARAMS, tokenizer).reply(texts[0])) == [alone.labels[0][0]]
    assert str(alone).splitlines()[0] == texts[0] and str(alone).splitlines()[1].endswith(f"%  {alone.labels[0][0]}")
    task = Classify(text="a", pair="b", labels=NAMES, length=16)
    columns = dict(zip("ab", texts[1].split("\t"), strict=True)) | {"label": 0}
    [example] = task.examples(task.encode(columns, tokenizer), Visit(tokenizer, None, None))
    inputs = {name: example[name][None] for name in ("tokens", "token_types", "cls_positions")}
    logits = np.asarray(applied(MODEL, PARAMS, **inputs).logits)[0, 0]
    assert answers[1].labels[0][0] == NAMES[logits.argmax()]
    top = np.exp(logits.max()) / np.exp(logits).sum()
    assert answers[1].labels[0][1] == pytest.approx(top, abs=1e-5)


def test_a_tab_is_a_blank_for_a_model_of_single_texts(tokenizer):
    texts = ["the plot is dull\tand it is poor", "the plot is dull and it is poor"]
    asked = Classify(labels=NAMES).prepare_requests(texts)
    assert asked == texts
    tab, blank = Classification().predictor(MODEL, PARAMS, tokenizer).predict(asked)
    assert tab.labels == blank.labels and tab.text == texts[0]
    [pair] = (
        Classification()
        .predictor(MODEL, PARAMS, tokenizer)
        .predict(Classify(pair="b", labels=NAMES).prepare_requests(texts[:1]))
    )
    assert pair.labels != blank.labels and pair.text == texts[0]


@pytest.mark.slow
def test_held_out_texts_are_shown_with_what_they_are(tokenizer):
    task, model = Classify(labels=LABELS, length=16, examples_per_row=2), Classifier(small_backbone(), LABELS)
    params = noisy_params(model, np.zeros((1, 4), np.int32))
    texts = ["a great film", "the plot is dull", "it is warm"]
    examples = [
        task.examples(task.encode({"text": text, "label": 1}, tokenizer), Visit(tokenizer, None, None))[0]
        for text in texts
    ]
    batch = lanes.empty_batch(2, task.row)
    lanes.write_row(batch, 0, examples[:2], task.row)
    lanes.write_row(batch, 1, examples[2:], task.row)
    lines = Classification().predictor(model, params, tokenizer).demonstrate(batch)
    answers = Classification().predictor(model, params, tokenizer).predict(texts)
    for line, text, answer in zip(lines, texts, answers, strict=True):
        label, share = answer.labels[0]
        said = f"{label} {share:.0%}"
        assert line == f"[{said if label == 'good' else f'{said}, was good'}] {text}"


ROW = Classify(labels=NAMES).row


@pytest.mark.parametrize(
    "objective, model, row, words",
    [
        (Classification(), small_backbone(), ROW, "needs a Classifier of whole texts; the model is a Bert"),
        (Classification(), Classifier(small_backbone(), NAMES, "none"), ROW, "Classifier of tokens"),
        (Classification(), MODEL, {"tokens": ROW["tokens"]}, "rows have no cls_positions"),
        (Classification(many=True), MODEL, ROW, "objective.many=True: the task's rows have one label"),
        (Classification(), Classifier(small_backbone(), ("a",)), ROW, "one class only"),
        (Classification(), MODEL, Classify(labels=NAMES, form="decoder").row, "expected encoder"),
        (
            Classification(),
            Classifier(Gpt(Transformer(16, 1, 2), 30, 16), NAMES, "last"),
            ROW,
            "data.task.form: .* expected decoder",
        ),
        (Regression(), MODEL, ROW, "expected one, the name of the number"),
        (Regression(), Classifier(small_backbone(), ("a",)), ROW, "set data.task.kind=regression"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(objective, model, row, words):
    with pytest.raises(InputError, match=words):
        objective.check(model, row)
