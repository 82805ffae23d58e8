"""Question answering: the same logits as transformers, spans that stay in the context, whole documents' scores."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
import transformers
from hf_weights import TOLERANCE, as_ours, redraw
from reports import report, score_documents
from small_bert import applied, noisy_params, small_transformer

from jaxformer.config import Checkpoint, Evaluation, Experiment, Log
from jaxformer.data.examples import Visit
from jaxformer.data.pipeline import lanes
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import JsonLines
from jaxformer.data.tasks.question_answering import AnswerSpans
from jaxformer.data.tokenizers import WordPiece
from jaxformer.errors import InputError
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.objectives.question_answering import LABELS, QuestionAnswering
from jaxformer.training.loop import fit
from jaxformer.training.optimizers import AdamW, Schedule

CONTEXT = "w1 w2x0, w3 w4 w5x2 w6 w7"
EXAMPLES = [
    {"question": "w30 w31", "context": CONTEXT, "answers": {"text": ["w5x2"], "answer_start": [15]}},
    {"question": "w32", "context": "w8 w9", "answers": {"text": [], "answer_start": []}},
    {"question": "w30", "context": "w3 w4", "answers": {"text": ["w4", "w3 w4"], "answer_start": [3, 0]}},
]
TASK = AnswerSpans(24, 6, 4)
ANYTIME = QuestionAnswering()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ",", *(f"w{n}" for n in range(40)), *(f"##x{n}" for n in range(5))]
    (folder / "vocab.txt").write_text("\n".join(pieces))
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return WordPiece(path=str(folder)).build(None, str(folder / "kept"))


@pytest.fixture(scope="module")
def model():
    return Classifier(Bert(small_transformer(), 60, 24, prediction_heads=()), LABELS, "none")


@pytest.fixture(scope="module")
def params(model):
    return noisy_params(model, np.zeros((1, 4), np.int32))


def batch_of(rows, tokenizer, task=TASK):
    """A batch whose rows hold these examples, each in one window, laid out as the lanes do it."""
    batch = lanes.empty_batch(len(rows), task.row)
    for number, row in enumerate(rows):
        some = [task.examples(task.encode(EXAMPLES[one], tokenizer), Visit(tokenizer, None, None))[0] for one in row]
        lanes.write_row(batch, number, some, task.row)
    return batch


@pytest.mark.slow
def test_logits_are_those_of_transformers(tokenizer):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=60, max_position_embeddings=24, **sizes)
    theirs = redraw(transformers.BertForQuestionAnswering(config), seed=0)
    backbone, params = as_ours(theirs.bert)
    head = {
        name: value.detach().numpy().T
        for name, value in (("kernel", theirs.qa_outputs.weight), ("bias", theirs.qa_outputs.bias))
    }
    ours = Classifier(backbone, LABELS, "none")
    batch = batch_of([[0], [1], [2]], tokenizer)
    tokens, mask, types = (torch.from_numpy(batch[name]).long() for name in ("tokens", "segments", "token_types"))
    expected = theirs(input_ids=tokens, attention_mask=mask, token_type_ids=types)
    logits = applied(ours, {"backbone": params, "head": head}, **ANYTIME.inputs(batch)).logits
    real = batch["segments"] > 0
    for number, scores in enumerate((expected.start_logits, expected.end_logits)):
        found = np.asarray(logits[..., number])[real]
        np.testing.assert_allclose(found, scores.detach().numpy()[real], atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.slow
def test_the_loss_is_that_of_the_tokens_where_answers_may_be(model, params, tokenizer):
    batch = batch_of([[0], [1]], tokenizer)
    logits = np.asarray(applied(model, params, **ANYTIME.inputs(batch)).logits, np.float64)
    losses = []
    for row in range(2):
        may = batch["spannable"][row] > 0
        for number, name in enumerate(("starts", "ends")):
            scores = logits[row, :, number]
            losses.append(np.log(np.exp(scores[may]).sum()) - scores[batch[name][row, 0]])
    means = ANYTIME(model, params, batch)
    assert float(means["loss"].value) == pytest.approx(np.mean(losses), abs=1e-5)


@pytest.mark.slow
def test_packing_and_padding_change_nothing(model, params, tokenizer):
    packed = dataclasses.replace(TASK, examples_per_row=3)
    results = [
        report(ANYTIME, model, ANYTIME(model, params, batch_of(rows, tokenizer, task)))
        for rows, task in (([[0], [1], [2]], TASK), ([[0, 2], [1]], packed), ([[0], [1, 2], []], packed))
    ]
    assert results[0]["loss"] > 0.1
    for result in results[1:]:
        assert result == pytest.approx(results[0], abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_span_is_in_the_context_and_not_too_long(seed, model, params, tokenizer):
    """Whatever the head says: with its weights so large that the question's tokens would often be the likeliest."""
    rng = np.random.default_rng(seed)
    head = jax.tree.map(lambda leaf: leaf * 0 + rng.normal(0, 20, leaf.shape).astype(np.float32), params["head"])
    words = [f"w{number}" for number in rng.integers(0, 40, 60)]
    pairs = [(" ".join(words[:3]), " ".join(words[3 : 3 + size])) for size in (1, 5, 20, 57)]
    objective = QuestionAnswering(longest=4)
    for answer in objective.predictor(model, params | {"head": head}, tokenizer).answer(TASK, pairs):
        assert answer.context[answer.start : answer.stop] == answer.text != ""
        assert (
            answer.text.split()
            == answer.context.split()[len(answer.context[: answer.start].split()) :][: len(answer.text.split())]
        )
        assert 1 <= len(answer.text.split()) <= 4 and 0 < answer.probability <= 1


@pytest.mark.slow
def test_the_best_span_of_all_windows_is_the_answer(model, params, tokenizer):
    context = " ".join(f"w{number}" for number in (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6))
    (answer,) = ANYTIME.predictor(model, params, tokenizer).answer(TASK, [("w30 w31", context)])
    passage = dataclasses.replace(TASK).encode(
        {"question": "w30 w31", "context": context, "answers": {"text": [], "answer_start": []}}, tokenizer
    )
    windows = TASK.windows(passage, tokenizer)
    assert len(windows) > 1
    spans, totals, offsets = [], [[], []], passage.offsets
    for window in windows:
        logits = np.asarray(
            applied(model, params, window.tokens[None], token_types=window.token_types[None]).logits[0],
            np.float64,
        )
        for total, scores in zip(totals, logits.T, strict=True):
            total += [scores[0], *scores[window.before : -1]]
        size = len(window.tokens) - window.before - 1
        spans += [
            (
                logits[window.before + i, 0] + logits[window.before + j, 1],
                offsets[window.start + i, 0],
                offsets[window.start + j, 1],
            )
            for i in range(size)
            for j in range(i, size)
        ]
    score, start, stop = max(spans)
    assert (answer.start, answer.stop) == (start, stop)
    assert answer.probability == pytest.approx(
        np.exp(score) / np.prod([np.exp(total).sum() for total in totals]), rel=1e-4
    )
    never, always = (
        QuestionAnswering(no_answer=by).predictor(model, params, tokenizer).answer(TASK, [("w30 w31", context)])[0]
        for by in (99, -99)
    )
    assert never == answer and always.text == "" and "(no answer)" in str(always)


@pytest.mark.slow
def test_documents_are_scored_whole(model, params, tokenizer):
    def scores(objective):
        predictor = objective.predictor(model, params, tokenizer)
        answers = predictor.answer(TASK, [(one["question"], one["context"]) for one in EXAMPLES])
        return score_documents(objective, model, params, tokenizer, TASK, EXAMPLES), answers

    values, answers = scores(QuestionAnswering(no_answer=-99.0))
    assert [one.text for one in answers] == ["", "", ""]
    assert values["exact_match"] == values["f1"] == pytest.approx(100 / 3)
    values, answers = scores(QuestionAnswering(longest=2))
    right = {"w3 w4": 1.0, "w4": 1.0, "w3": 2 / 3}
    assert values["f1"] == pytest.approx(100 / 3 * (right[answers[2].text] + (answers[0].text == "w5x2")))
    first = score_documents(QuestionAnswering(longest=2, scored=1), model, params, tokenizer, TASK, EXAMPLES)
    assert first["f1"] == 100 * (answers[0].text == "w5x2")
    assert score_documents(QuestionAnswering(scored=0), model, params, tokenizer, TASK, EXAMPLES) == {}


def test_readable_answers(model, params, tokenizer):
    (answer,) = ANYTIME.predictor(model, params, tokenizer).predict([f"w30\t{CONTEXT}"])
    assert (
        str(answer).startswith("w30\n")
        and f"[{answer.text}]" in str(answer)
        and f"{answer.probability:.1%}" in str(answer)
    )
    lines = ANYTIME.predictor(model, params, tokenizer).demonstrate(batch_of([[0], [1], []], tokenizer))
    assert len(lines) == 2 and lines[0].startswith("w30 w31 [") and ", was w5x2]" in lines[0]
    assert ", was (no answer)]" in lines[1]


@pytest.mark.slow
def test_it_learns_the_position_of_the_answer(folder, tmp_path):
    """The answer follows the word of the question: a few steps are enough, and evaluations score documents."""
    import json

    rng = np.random.default_rng(0)
    lines = []
    for _ in range(64):
        words = [f"w{number}" for number in rng.permutation(30)[:6]]
        place = int(rng.integers(5))
        start = len(" ".join(words[: place + 1])) + 1
        answers = {"text": [words[place + 1]], "answer_start": [start]}
        lines.append(json.dumps({"question": words[place], "context": " ".join(words), "answers": answers}))
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    source = JsonLines((str(tmp_path / "all.jsonl"),))
    experiment = Experiment(
        model=Classifier(Bert(small_transformer(depth=1), 60, 16, prediction_heads=()), LABELS, "none", dropout=0.0),
        objective=QuestionAnswering(longest=3, scored=10),
        data=Data(source, AnswerSpans(16, 8, 2), 16, validation=source),
        tokenizer=WordPiece(path=str(folder)),
        optimizer=AdamW(Schedule(1e-2, 5)),
        steps=40,
        evaluation=Evaluation(every=40),
        checkpoint=Checkpoint(every=40, best="f1"),
        log=Log(every=20),
    )
    run = fit(experiment, tmp_path / "run", quiet=True)
    values = run.evaluate()
    assert values["loss"] < 1.2 and 0 <= values["exact_match"] <= values["f1"] <= 100
    assert np.isfinite(values["start_accuracy"])


@pytest.mark.slow
def test_a_model_of_one_token_type_has_that_of_all_tokens(params, model, tokenizer):
    """As RoBERTa: the type of what comes second is none of its own, and must not be left out."""
    one = dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, token_types=1))
    types = params["backbone"]["embeddings"]["token_type"]
    embeddings = params["backbone"]["embeddings"] | {"token_type": types[:1]}
    less = params | {"backbone": params["backbone"] | {"embeddings": embeddings}}
    batch = batch_of([[0], [2]], tokenizer)
    without = {name: array for name, array in batch.items() if name != "token_types"}
    losses = [float(ANYTIME(*given)["loss"].value) for given in ((one, less, batch), (model, params, without))]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    pair = [(EXAMPLES[0]["question"], EXAMPLES[0]["context"])]
    twice = embeddings | {"token_type": types[np.array([0, 0])]}
    zeros = params | {"backbone": params["backbone"] | {"embeddings": twice}}
    answers = [ANYTIME.predictor(*given, tokenizer).answer(TASK, pair)[0] for given in ((one, less), (model, zeros))]
    assert answers[0].probability == pytest.approx(answers[1].probability, rel=1e-4)


def test_what_cannot_be_is_refused(model, params, tokenizer):
    with pytest.raises(InputError, match="expected \\('start', 'end'\\) for objective=QuestionAnswering"):
        ANYTIME.check(dataclasses.replace(model, labels=("a", "b")), TASK.row)
    with pytest.raises(InputError, match="the task's rows have no spannable; use AnswerSpans"):
        ANYTIME.check(model, {"tokens": None})
    for text in ("w1 w2", "w1\t ", "\tw1"):
        with pytest.raises(InputError, match="expected a question, a tab, and the text"):
            ANYTIME.predictor(model, params, tokenizer).predict([text])
