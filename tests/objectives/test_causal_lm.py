"""The objective of a causal language model: its terms, its report, and what it makes of texts."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from reports import report as report_of
from small_bert import small_bert
from small_writer import BEGINNING, END, PIECES, small_tokenizer
from small_writer import GPT as MODEL
from small_writer import GPT_PARAMS as PARAMS

from jaxformer.decoding.generate import generate
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.metrics.means import Mean, merge
from jaxformer.objectives.causal_lm import CausalLM

TEXT = "w3 w7x w1."
ROW = ("tokens", "targets", "weights")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("vocabulary"))


def draw_batch(prefix=False):
    """Rows of one and of two documents, with weights of many sizes, and padding."""
    rng = np.random.default_rng(0)
    segments = np.array([[1] * 7 + [2] * 4 + [0], [1] * 9 + [0] * 3])
    starts = np.array([[0] * 7 + [7] * 4 + [0], [0] * 12])
    batch = {
        "tokens": rng.integers(5, len(PIECES) - 2, segments.shape),
        "targets": rng.integers(5, len(PIECES) - 2, segments.shape),
        "weights": np.where(segments, rng.uniform(0.5, 2, segments.shape), 0).astype(np.float32),
        "segments": segments,
        "position_ids": np.where(segments, np.arange(12) - starts, 0),
    }
    return batch | {"prefix": (batch["position_ids"] < 3).astype(np.int32) * (segments > 0)} if prefix else batch


def means(objective=CausalLM(), batch=None, model=MODEL, key=None):
    """The means of a batch, on the host."""
    batch = draw_batch() if batch is None else batch
    return merge([jax.jit(lambda batch: objective(model, PARAMS, batch, key))(batch)])


@pytest.mark.parametrize("prefix", [False, True])
def test_the_terms_are_weighted_sums_over_the_targets(prefix):
    batch, objective = draw_batch(prefix), CausalLM(0.1, 1e-2, prompt="prefix" if prefix else "text")
    inputs = {name: batch[name] for name in ("tokens", "segments", "position_ids")}
    inputs |= {"prefix": batch["prefix"] > 0} if prefix else {}
    logits = np.asarray(jax.jit(MODEL.apply)({"params": PARAMS}, **inputs).logits, np.float64)
    log_partition = np.log(np.exp(logits).sum(-1))
    log_probabilities = logits - log_partition[..., None]
    wanted = np.take_along_axis(log_probabilities, batch["targets"][..., None], -1)[..., 0]
    expected = {
        "loss": -0.9 * wanted - 0.1 * log_probabilities.mean(-1) + 1e-2 * log_partition**2,
        "cross_entropy": -wanted,
        "accuracy": logits.argmax(-1) == batch["targets"],
    }
    actual = means(objective, batch)
    assert set(actual) == set(expected)
    for name, values in expected.items():
        assert actual[name].sum == pytest.approx((batch["weights"] * values).sum(), rel=1e-5)
        assert actual[name].weight == pytest.approx(batch["weights"].sum())
    assert objective.loss_weights == {"loss": 1.0}


def test_without_smoothing_and_z_loss_the_loss_is_the_cross_entropy():
    plain = means()
    assert plain["loss"].sum == pytest.approx(plain["cross_entropy"].sum)
    assert plain["cross_entropy"].sum == pytest.approx(means(CausalLM(0.2, 0.1))["cross_entropy"].sum)


@pytest.mark.slow
def test_a_packed_row_is_its_documents_alone():
    batch = draw_batch()
    parts = [(0, slice(7)), (0, slice(7, 11)), (1, slice(9))]
    alone = [means(batch={name: array[row : row + 1, part] for name, array in batch.items()}) for row, part in parts]
    assert means()["loss"].sum == pytest.approx(sum(part["loss"].sum for part in alone), rel=1e-5)


@pytest.mark.slow
def test_dropout_follows_the_key():
    model = MODEL.clone(transformer=MODEL.transformer.clone(dropout=0.3))
    one, same, other = (means(model=model, key=jax.random.key(seed))["loss"].sum for seed in (1, 1, 2))
    assert one == same != other
    assert means(model=model)["loss"].sum == means()["loss"].sum


def test_the_report_is_readable():
    merged = {"loss": Mean(30.0, 10.0), "cross_entropy": Mean(20.0, 10.0), "accuracy": Mean(4.0, 10.0)}
    report = report_of(CausalLM(), MODEL, merged | {"gradient_norm": Mean(3.0, 1.0)})
    assert next(iter(report)) == "loss"
    bits = 2.0 / math.log(2)
    assert report == {
        "loss": 3.0,
        "cross_entropy": 2.0,
        "perplexity": math.exp(2),
        "bits_per_token": pytest.approx(bits),
        "accuracy": 0.4,
    }
    hopeless = dict.fromkeys(("loss", "cross_entropy", "accuracy"), Mean(1e5, 1.0))
    assert report_of(CausalLM(), MODEL, hopeless)["perplexity"] == math.exp(700)


@pytest.mark.slow
def test_a_text_is_continued_by_what_the_model_finds_likeliest(tokenizer):
    objective = CausalLM(decoding=Decoding(max_new_tokens=6))
    texts = [TEXT, "w5", "w1 w2 w3 w4"]
    answers = objective.predictor(MODEL, PARAMS, tokenizer).predict(texts)
    for text, answer in zip(texts, answers, strict=True):
        prompt = tokenizer.encode(text)
        (output,) = generate(MODEL, PARAMS, [prompt], objective.decoding, tokenizer.eos_id)
        assert answer.text == text and str(answer) == text + answer.continuation
        assert tokenizer.encode(str(answer)).tolist() == [*prompt, *(t for t in output if t > 4)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "decoding", [Decoding(max_new_tokens=20), Decoding(max_new_tokens=20, temperature=2.0)], ids=["likeliest", "drawn"]
)
def test_a_stream_is_the_continued_text_in_pieces(decoding, tokenizer):
    objective = CausalLM(decoding=decoding)
    for text in (TEXT, "w5"):
        pieces = list(objective.predictor(MODEL, PARAMS, tokenizer).stream(text))
        assert "".join(pieces) == str(objective.predictor(MODEL, PARAMS, tokenizer).predict([text])[0])
        assert pieces[0] == text and len(pieces) >= 4
        replied = list(objective.predictor(MODEL, PARAMS, tokenizer).reply(text))
        assert "".join(replied) == "".join(pieces[1:]).lstrip() and len(replied) >= 2
    with pytest.raises(InputError, match="num_beams=2"):
        list(CausalLM(decoding=Decoding(num_beams=2)).predictor(MODEL, PARAMS, tokenizer).stream(TEXT))


@pytest.mark.parametrize(
    "objective, before, after",
    [
        (CausalLM(), [], []),
        (CausalLM(beginning=True), [BEGINNING], []),
        (CausalLM(prompt="prefix"), [], []),
        (CausalLM(prompt="inputs", beginning=True), [BEGINNING], [END]),
    ],
)
def test_a_prompt_is_what_the_model_has_learned_from(objective, before, after, tokenizer):
    objective = dataclasses.replace(objective, decoding=Decoding(max_new_tokens=4))
    (answer,) = objective.predictor(MODEL, PARAMS, tokenizer).predict([TEXT])
    prompt = np.array([*before, *tokenizer.encode(TEXT), *after])
    both_ways = objective.prompt != "text"
    (expected,) = generate(MODEL, PARAMS, [prompt], objective.decoding, tokenizer.eos_id, prefix=both_ways)
    assert (
        answer.continuation.split()
        == tokenizer.decode(np.append(prompt, expected))[len(tokenizer.decode(prompt)) :].split()
    )


@pytest.mark.slow
def test_a_demonstration_begins_with_a_held_out_text(tokenizer):
    batch = draw_batch()
    (line,) = CausalLM(decoding=Decoding(max_new_tokens=3)).predictor(MODEL, PARAMS, tokenizer).demonstrate(batch)
    given, _, written = line.partition(" […]")
    assert given == tokenizer.decode(batch["tokens"][0, :4]) and written.strip()
    batch = draw_batch(prefix=True)
    (line,) = CausalLM(prompt="prefix").predictor(MODEL, PARAMS, tokenizer).demonstrate(batch)
    assert line.startswith(tokenizer.decode(batch["tokens"][0, :3]) + " […]")
    empty = {name: np.zeros_like(array) for name, array in batch.items()}
    assert CausalLM().predictor(MODEL, PARAMS, tokenizer).demonstrate(empty) == []


def test_texts_that_cannot_be_continued_are_refused(tokenizer):
    for text, message in ((" ", "' ': an empty prompt"), ("w1 " * 33, "a prompt of 33 tokens: .* positions for 32")):
        with pytest.raises(InputError, match=message):
            CausalLM().predictor(MODEL, PARAMS, tokenizer).predict(["w1", text])
    assert CausalLM(beginning=True).predictor(MODEL, PARAMS, tokenizer).predict([""])[0].continuation


@pytest.mark.parametrize(
    "objective, model, row, message",
    [
        (CausalLM(), small_bert(), ROW, "objective=CausalLM: needs a Gpt or another decoder; the model is a Bert"),
        (CausalLM(), MODEL, ROW[:2], "objective=CausalLM: the task's rows have no weights"),
        (CausalLM(), MODEL, (*ROW, "inputs"), "rows have inputs for an encoder; set input_length=None"),
        (CausalLM(), MODEL, (*ROW, "prefix"), "objective.prompt=text: expected prefix or inputs"),
        (CausalLM(prompt="inputs"), MODEL, ROW, "objective.prompt=inputs: expected text"),
    ],
)
def test_rows_and_models_that_do_not_go_with_it_are_refused(objective, model, row, message):
    with pytest.raises(InputError, match=message):
        objective.check(model, row)
    CausalLM().check(MODEL, ROW)
    CausalLM(prompt="prefix").check(MODEL, (*ROW, "prefix"))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"label_smoothing": 1.0}, "objective.label_smoothing=1.0: expected 0 to 1, below 1"),
        ({"z_loss": -1.0}, "objective.z_loss=-1.0: expected at least 0"),
        ({"prompt": "question"}, "prompt='question': expected one of text, prefix, inputs"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        CausalLM(**fields)
