"""Few-shot evaluation: how questions are put, and what is picked."""

import dataclasses
import json

import numpy as np
import pytest
from small_bert import bert_params, small_bert, small_experiment
from small_writer import END, small_run, small_tokenizer

from jaxformer.data.sources.sources import JsonLines
from jaxformer.data.tasks.classification import Classify
from jaxformer.decoding.scoring import score
from jaxformer.errors import InputError
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.seq2seq_lm import Seq2SeqLM
from jaxformer.parallel import sharding
from jaxformer.predictors.few_shot import FewShot, Question, few_shot, questions_of
from jaxformer.runs.run import Run

QUESTIONS = [Question(f"w{n} w{n + 1}", (f" w{n + 2}", " w5 w6 w7", f" w{n}x w1"), n % 3) for n in range(8)]
POOL = [Question(f"w{n} w9", (" w1", " w2"), n % 2) for n in range(20)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def run(tokenizer):
    return small_run(tokenizer)


def alone(run, text, choice):
    """The score of a choice on its own."""
    prompt, whole = run.tokenizer.encode(text), run.tokenizer.encode(text + choice)
    assert whole[: len(prompt)].tolist() == prompt.tolist()
    return score(run.model, run.params, [prompt], [whole[len(prompt) :]])[0]


@pytest.mark.parametrize("by", ["token", "sum", "prior"])
def test_the_likeliest_choice_is_picked(by, run):
    result = few_shot(run, QUESTIONS, FewShot(by=by, prior="w20 w21"))
    for question, pick, scores in zip(QUESTIONS, result.picks, result.scores, strict=True):
        found = [alone(run, question.text, choice) for choice in question.choices]
        expected = [one.per_token if by == "token" else one.log_probability for one in found]
        if by == "prior":
            before = [alone(run, "w20 w21", choice).log_probability for choice in question.choices]
            expected = np.subtract(expected, before)
        assert scores == pytest.approx(expected, abs=1e-4)
        assert pick == np.argmax(expected)
    right = np.mean([pick == question.answer for pick, question in zip(result.picks, QUESTIONS, strict=True)])
    assert result.accuracy == right
    assert result.standard_error == pytest.approx(np.sqrt(right * (1 - right) / 8))


def test_what_choices_are_picked_by_matters(run):
    picks = {by: few_shot(run, QUESTIONS, FewShot(by=by, prior="w20 w21")).picks for by in ("token", "sum", "prior")}
    assert len(set(picks.values())) == 3


def test_solved_examples_precede_the_question(run):
    settings = FewShot(shots=3, separator=" . ")
    texts = settings.texts(QUESTIONS, POOL)
    assert texts == settings.texts(QUESTIONS, POOL) != FewShot(shots=3, separator=" . ", seed=1).texts(QUESTIONS, POOL)
    solved = {question.text + question.choices[question.answer] for question in POOL}
    shown = []
    for text, question in zip(texts, QUESTIONS, strict=True):
        *examples, last = text.split(" . ")
        assert last == question.text and len(set(examples)) == 3 and set(examples) <= solved
        shown.append(tuple(examples))
    assert len(set(shown)) > 1, "drawn anew for each question"
    result = few_shot(run, QUESTIONS[:2], settings, POOL)
    assert result.scores[1][0] == pytest.approx(alone(run, texts[1], QUESTIONS[1].choices[0]).per_token, abs=1e-4)


def test_a_question_is_not_an_example_for_itself():
    for question, text in zip(QUESTIONS, FewShot(shots=7).texts(QUESTIONS, QUESTIONS), strict=True):
        assert text.count(question.text + question.choices[question.answer]) == 0
        assert len(text.split("\n\n")) == 8


@pytest.mark.slow
def test_what_is_too_long_loses_its_beginning(run):
    """The solved examples have 80 tokens, and only as many are used as there are positions for."""
    settings = FewShot(shots=20, separator=" ")
    (text,) = settings.texts(QUESTIONS[:1], POOL)
    result = few_shot(run, QUESTIONS[:1], settings, POOL)
    (choice,) = run.tokenizer.encode("w2")
    prompt = run.tokenizer.encode(text)[-run.model.max_length :]
    expected = score(run.model, run.params, [prompt], [[choice]])[0].log_probability
    assert result.scores[0][0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("text, continuation", [("w1 w2 ", "w3"), ("w1 w2", " w3"), ("", "w3"), ("w1 w2", "x w3")])
def test_the_tokens_of_a_continuation_are_those_that_it_has_after_its_text(text, continuation, run):
    (found,) = run.log_likelihoods([text], [continuation])
    prompt = run.tokenizer.encode(text) if text else [END]
    tokens = run.tokenizer.encode(text + continuation)
    expected = score(run.model, run.params, [prompt], [tokens[len(prompt) if text else 0 :]])[0]
    assert (found.tokens, found.greedy) == (expected.tokens, expected.greedy)
    assert found.log_probability == pytest.approx(expected.log_probability, abs=1e-4)


@pytest.mark.slow
def test_an_encoder_decoder_picks_too(tokenizer):
    run = small_run(tokenizer, Seq2SeqLM())
    result = few_shot(run, QUESTIONS)
    prompt, choice = [*tokenizer.encode(QUESTIONS[0].text), END], tokenizer.encode(QUESTIONS[0].choices[1])
    expected = score(run.model, run.params, [prompt], [choice], start=0)[0]
    assert result.scores[0][1] == pytest.approx(expected.per_token, abs=1e-4)


@pytest.mark.slow
def test_inputs_to_answer_end_with_their_end_token(tokenizer):
    run = small_run(tokenizer, CausalLM(prompt="inputs"))
    (found,) = run.log_likelihoods(["w1 w2"], ["w3"])
    expected = score(run.model, run.params, [[6, 7, END]], [[8]], prefix=True)[0]
    assert found.log_probability == pytest.approx(expected.log_probability, abs=1e-4)
    plain = score(run.model, run.params, [[6, 7, END]], [[8]])[0]
    assert found.log_probability != pytest.approx(plain.log_probability, abs=1e-4)


def test_what_is_classified_can_be_asked(run, tmp_path):
    """The same file and task as fine-tuning has, so that both are compared on the same examples."""
    lines = [{"review": f"w{n} w{n + 1}", "other": "w9", "label": n % 2} for n in range(7)]
    (tmp_path / "reviews.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = JsonLines((str(tmp_path / "reviews.jsonl"),))
    task = Classify("review", labels=("w20", "w21"))
    questions = questions_of(source, task, "w3 {text} w4")
    assert questions == [Question(f"w3 w{n} w{n + 1} w4", (" w20", " w21"), n % 2) for n in range(7)]
    assert 0 <= few_shot(run, questions, FewShot(shots=2, separator=" "), pool=questions).accuracy <= 1
    pairs = questions_of(source, dataclasses.replace(task, pair="other"), "{text} {pair}", (" w1", " w2"), most=3)
    assert pairs == [Question(f"w{n} w{n + 1} w9", (" w1", " w2"), n % 2) for n in (0, 2, 4)]
    with pytest.raises(InputError, match="label 'w0 w1': unknown; expected one of w20, w21"):
        questions_of(source, dataclasses.replace(task, label="review"))
    with pytest.raises(InputError, match="expected one for each of the labels w20, w21"):
        questions_of(source, task, choices=(" w1",))
    with pytest.raises(InputError, match=r"task.kind=regression: expected single_label"):
        questions_of(source, Classify("review", labels=("w20",), kind="regression"))


def test_what_cannot_be_asked_is_refused(run, tokenizer):
    with pytest.raises(InputError, match="few_shot: no questions"):
        few_shot(run, [])
    with pytest.raises(InputError, match=r"few_shot.shots=21: the pool has 20 other questions"):
        few_shot(run, QUESTIONS, FewShot(shots=21), POOL)
    with pytest.raises(InputError, match=r"few_shot.shots=-1: expected at least 0"):
        FewShot(shots=-1)
    with pytest.raises(InputError, match="answer=2: the question has 2 choices"):
        Question("w1", (" w2", " w3"), 2)
    with pytest.raises(InputError, match="positions for 32"):
        few_shot(run, [Question("w1", (" w2" * 40,), 0)])
    bert = small_bert()
    mesh = sharding.make_mesh(sharding.Mesh(1))
    other = Run(run.folder, small_experiment(bert), tokenizer, 1, bert_params(bert), mesh)
    with pytest.raises(InputError, match="nowhere: MaskedLM does not generate text"):
        few_shot(other, QUESTIONS)
