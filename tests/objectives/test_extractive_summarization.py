"""Extractive summaries: the loss at each [CLS], runs that learn and resume, and what `predict` prints."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny
from counting_mlp import CountingMlp
from reports import report
from small_bert import applied, noisy_params
from small_summaries import small_classifier, summary_experiment, write_documents

import jaxformer as jf
from jaxformer import cli
from jaxformer.config import override
from jaxformer.data.examples import Visit
from jaxformer.data.pipeline import lanes
from jaxformer.data.tasks.summary_sentences import SummarySentences
from jaxformer.data.tokenizers import WordPiece
from jaxformer.errors import InputError
from jaxformer.objectives.extractive_summarization import ExtractiveSummarization

DOCUMENTS = [
    {"document": ["w1 w2", "w3 w4 w5", "w6"], "summary": "w4 w5"},
    {"document": ["w7", "w8 w9"], "summary": "w7"},
    {"document": ["w3 w3", "w2", "w1", "w5 w6"], "summary": "w2 w1"},
]
ONE = ExtractiveSummarization(num_sentences=1)
TASK = SummarySentences(40, 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    write_documents(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return WordPiece(path=str(folder / "vocab.txt")).build(None, str(folder / "kept"))


@pytest.fixture(scope="module")
def model():
    return small_classifier()


@pytest.fixture(scope="module")
def params(model):
    return noisy_params(model, np.zeros((1, 4), np.int32))


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    seldom = {"evaluation": jf.Evaluation(every=100), "checkpoint": jf.Checkpoint(every=100, best="rouge_l")}
    experiment = summary_experiment(folder, steps=200, model=small_classifier(depth=1), **seldom)
    return jf.fit(experiment, tmp_path_factory.mktemp("runs") / "run", quiet=True)


def batch_of(rows, tokenizer):
    batch = lanes.empty_batch(len(rows), TASK.row)
    for number, row in enumerate(rows):
        some = [TASK.examples(TASK.encode(DOCUMENTS[one], tokenizer), Visit(tokenizer, None, None))[0] for one in row]
        lanes.write_row(batch, number, some, TASK.row)
    return batch


def scores_of(model, params, tokenizer, sentences, types=True, pooling="first"):
    """The score of each sentence, of a row that is laid out by hand."""
    tokens, kinds, starts = [], [], []
    for number, sentence in enumerate(sentences):
        part = [tokenizer.cls_id, *tokenizer.encode(sentence), tokenizer.sep_id]
        starts.append(len(tokens))
        tokens += part
        kinds += [number % 2 * types] * len(part)
    logits = applied(model, params, np.array([tokens]), token_types=np.array([kinds])).logits
    logits = np.asarray(logits, np.float64)[0, :, 0]
    if pooling == "first":
        return logits[starts]
    return np.array([logits[start:stop].mean() for start, stop in zip(starts, [*starts[1:], None], strict=True)])


@pytest.mark.slow
@pytest.mark.parametrize(("alternate", "pooling"), [(True, "first"), (False, "first"), (True, "mean")])
def test_the_loss_is_the_cross_entropy_of_each_sentence(alternate, pooling, model, params, tokenizer):
    losses, right = [], []
    for document, targets in zip(DOCUMENTS, ([0, 1, 0], [1, 0], [0, 1, 1, 0]), strict=True):
        scores = scores_of(model, params, tokenizer, document["document"], alternate, pooling)
        chances = 1 / (1 + np.exp(-scores))
        losses += [-np.log(chance if target else 1 - chance) for chance, target in zip(chances, targets, strict=True)]
        right.append(targets[int(scores.argmax())])
    objective = dataclasses.replace(ONE, alternate_types=alternate, sentence_pooling=pooling)
    means = objective(model, params, batch_of([[0], [1], [2]], tokenizer))
    assert float(means["loss"].value) == pytest.approx(np.mean(losses), abs=1e-5)
    assert float(means["top_accuracy"].value) == pytest.approx(np.mean(right))


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_packing_and_padding_change_nothing(pooling, model, params, tokenizer):
    objective = dataclasses.replace(ONE, sentence_pooling=pooling)
    results = [
        report(objective, model, objective(model, params, batch_of(rows, tokenizer)))
        for rows in ([[0], [1], [2]], [[0, 1], [2]], [[1, 2], [], [0]])
    ]
    assert results[0]["loss"] > 0.1
    for result in results[1:]:
        assert result == pytest.approx(results[0], abs=1e-5)


@pytest.mark.slow
def test_auxiliary_means_of_the_model_are_part_of_the_loss(tokenizer):
    model = small_classifier(depth=1, mlp=CountingMlp())
    params = noisy_params(model, np.zeros((1, 4), np.int32))
    assert float(ONE(model, params, batch_of([[0]], tokenizer))["auxiliary/square"].value) > 0


@pytest.mark.slow
def test_it_learns_which_sentence_is_the_summary(run):
    values = run.evaluate()
    assert values["top_accuracy"] > 0.7 and values["rouge_l"] > values["lead_rouge_l"] + 20
    assert values["rouge_l"] <= values["oracle_rouge_l"] and values["read_whole"] == 100
    lines = tiny.metrics(run.folder, "validation")
    assert [line["step"] for line in lines] == [100, 200] and run.step in (100, 200)
    shown = run.demonstrate()
    assert 1 <= len(shown) <= 4 and shown[0].startswith("[here ")


@pytest.mark.slow
def test_it_resumes_to_the_same_end(folder, tmp_path):
    experiment = summary_experiment(folder)
    whole = jf.fit(experiment, tmp_path / "whole", quiet=True)
    jf.fit(override(experiment, {"steps": 4}), tmp_path / "again", quiet=True)
    again = jf.fit(experiment, tmp_path / "again", quiet=True)
    assert again.step == whole.step == 6
    tiny.assert_equal(tiny.saved(whole.folder), tiny.saved(again.folder))


@pytest.mark.slow
def test_predict_prints_the_chosen_sentences(run, capsys, tmp_path):
    text = "W1 w2 w3. Here w4 w5 w6. W7 w8."
    assert cli.main(["predict", str(run.folder), text]) == 0
    assert capsys.readouterr().out == "Here w4 w5 w6.\n"
    assert cli.main(["predict", str(run.folder), "--json", text]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["sentences"], answer["indices"], answer["whole"]) == (["Here w4 w5 w6."], [1], True)
    scores = scores_of(run.model, run.params, run.tokenizer, ["w1 w2 w3.", "here w4 w5 w6.", "w7 w8."])
    assert answer["probabilities"] == pytest.approx([1 / (1 + np.exp(-scores[1]))], abs=1e-5)
    assert cli.main(["predict", str(run.folder), "W1 alone"]) == 0
    assert capsys.readouterr().out == "W1 alone\n", "a document of one sentence is its own summary"
    assert cli.main(["predict", str(run.folder), "..."]) == 2
    assert capsys.readouterr().err == "jaxformer: '...': no words to summarise; expected some sentences\n"


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_the_predictor_chooses_by_the_scores_of_the_loss(pooling, model, params, tokenizer):
    predictor = dataclasses.replace(ONE, sentence_pooling=pooling).predictor(model, params, tokenizer)
    documents = [document["document"] for document in DOCUMENTS]
    for sentences, answer in zip(documents, predictor.summarize(documents, TASK.length), strict=True):
        scores = scores_of(model, params, tokenizer, sentences, pooling=pooling)
        assert answer.indices == (int(scores.argmax()),)
        assert answer.probabilities == pytest.approx([1 / (1 + np.exp(-scores.max()))], abs=1e-5)
    chosen = [f"[{answer.text}]" for answer in predictor.summarize(documents, TASK.length)]
    shown = predictor.demonstrate(batch_of([[0, 1], [2]], tokenizer))
    assert [line.split(", the oracle's")[0] for line in shown] == chosen


def test_a_document_that_is_too_long_says_so(run):
    sentences = [f"W{number} w1 w2." for number in range(15)]
    answer = run.predict("Here w9.\n" + "\n".join(sentences))
    assert not answer.whole and (answer.read, answer.total) == (7, 16)
    assert str(answer) == "Here w9.\n(of a text that is too long: 7 of 16 sentences were read)"
    assert run.encode("Here w9.\n" + "\n".join(sentences))["tokens"].shape == (1, 40)


def test_several_sentences_share_no_trigram(model, params, tokenizer):
    text = "W1 w2 w3 w4. W5 w1 w2 w3. W1 w2 w3. W6 w7. W8."
    predictors = [
        ExtractiveSummarization(num_sentences=3, block_trigrams=block).predictor(model, params, tokenizer)
        for block in (True, False)
    ]
    blocked, free = (predictor.predict([text])[0] for predictor in predictors)
    assert len(free.sentences) == len(blocked.sentences) == 3 and free.indices == tuple(sorted(free.indices))
    assert sum("w1 w2 w3" in sentence.lower() for sentence in blocked.sentences) <= 1


def test_what_cannot_be_is_refused(model):
    ONE.check(model, TASK.row)
    with pytest.raises(InputError, match="expected one name for objective=ExtractiveSummarization"):
        ONE.check(dataclasses.replace(model, labels=("a", "b")), TASK.row)
    with pytest.raises(InputError, match=r"model.pooling=mean: expected none for objective=ExtractiveSummarization"):
        ONE.check(dataclasses.replace(model, pooling="mean"), TASK.row)
    with pytest.raises(InputError, match="the task's rows have no token_types; use SummarySentences"):
        ONE.check(model, {"tokens": None})
    with pytest.raises(InputError, match=r"objective.num_sentences=0: expected at least 1"):
        ExtractiveSummarization(num_sentences=0)


def test_it_leaves_as_a_program_and_not_for_transformers(run, tmp_path, capsys):
    assert cli.main(["export", str(run.folder), str(tmp_path / "hf")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "ExtractiveSummarization: transformers has no class" in error
    assert "--format onnx or --format stablehlo" in error and not (tmp_path / "hf").exists()
    assert cli.main(["export", str(run.folder), str(tmp_path / "program"), "--format", "stablehlo"]) == 0
    assert any((tmp_path / "program").iterdir())


@pytest.mark.slow
def test_the_program_scores_the_same_sentences(run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    jf.export_onnx(run, tmp_path / "onnx")
    (file,) = (tmp_path / "onnx").rglob("*.onnx")
    arrays = run.encode("Here w4 w5. W7 w8.")
    names = {"input_ids": "tokens", "attention_mask": "segments", "token_type_ids": "token_types"}
    given = {theirs: arrays[ours].astype(np.int64) for theirs, ours in names.items()}
    [logits] = onnxruntime.InferenceSession(file).run(None, given)
    expected = jax.device_get(applied(run.model, run.params, **arrays).logits)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
