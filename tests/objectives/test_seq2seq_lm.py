"""The objective of an encoder–decoder: its terms, its scores, and what it makes of texts."""

import functools

import jax
import numpy as np
import pytest
import sacrebleu
from reports import report as report_of
from reports import score_documents
from rouge_score import rouge_scorer
from small_bert import applied, noisy_params, small_bert
from small_writer import END, PAD, PIECES, QUIET, small_tokenizer

from jaxformer.data.tasks.multi import MultiTask
from jaxformer.data.tasks.seq2seq import TextToText
from jaxformer.data.tasks.span_corruption import SpanCorruption
from jaxformer.decoding.generate import generate
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.layers.transformer import Transformer
from jaxformer.metrics.base import Context
from jaxformer.metrics.means import Mean, merge
from jaxformer.metrics.texts import Scores, TextScores, text_scores
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.models.t5 import T5, t5_stack
from jaxformer.objectives.seq2seq_lm import Seq2SeqLM

MODELS = {
    "paper": EncoderDecoder(*[Transformer(16, 2, 2, norm_position="after", **QUIET)] * 2, len(PIECES), 24),
    "t5": T5(
        t5_stack(16, 2, 2, 24, 8, **QUIET), t5_stack(16, 2, 2, 24, 8, bidirectional=False, **QUIET), len(PIECES), 24
    ),
}
PARAMS = {name: noisy_params(model, *[np.zeros((1, 4), np.int32)] * 2) for name, model in MODELS.items()}
ROW = ("inputs", "tokens", "targets", "weights")
QUICK = Decoding(max_new_tokens=6)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("vocabulary"))


def draw_examples(count, seed=0):
    """Inputs and targets, each with its end token."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, (count, 2))
    return [tuple(np.append(rng.integers(5, 35, size), END) for size in pair) for pair in sizes]


def lay_out(rows, inputs=16, length=12):
    """A batch of rows of examples, laid out as the lanes do it."""
    names = {"inputs": inputs, "input_segments": inputs, "input_position_ids": inputs}
    names |= dict.fromkeys(("tokens", "targets", "segments", "position_ids"), length)
    batch = {name: np.zeros((len(rows), size), np.int32) for name, size in names.items()}
    batch["weights"] = np.zeros((len(rows), length), np.float32)
    for row, examples in enumerate(rows):
        ends = [0, 0]
        for number, (source, target) in enumerate(examples, 1):
            reads, writes = (slice(end, end + len(ids)) for end, ids in zip(ends, (source, target), strict=True))
            batch["inputs"][row, reads], batch["targets"][row, writes] = source, target
            batch["tokens"][row, writes] = np.append(PAD, target[:-1])
            batch["input_segments"][row, reads] = batch["segments"][row, writes] = number
            batch["input_position_ids"][row, reads] = np.arange(len(source))
            batch["position_ids"][row, writes] = np.arange(len(target))
            batch["weights"][row, writes] = 1 + 0.1 * number
            ends = [reads.stop, writes.stop]
    return batch


def means(name, batch, objective=Seq2SeqLM(), key=None):
    """The means of a batch, on the host."""
    return merge([jax.jit(lambda batch: objective(MODELS[name], PARAMS[name], batch, key))(batch)])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_terms_are_weighted_sums_over_the_targets_of_each_example_alone(name):
    """Packed with others, an example neither reads nor writes anything of them."""
    examples = draw_examples(4)
    sums = dict.fromkeys(("loss", "cross_entropy", "accuracy"), 0.0)
    for (source, target), weight in zip(examples, (1.1, 1.2, 1.1, 1.1), strict=True):
        arguments = source[None], np.append(PAD, target[:-1])[None]
        logits = np.asarray(applied(MODELS[name], PARAMS[name], *arguments).logits[0], np.float64)
        log_partition = np.log(np.exp(logits).sum(-1))
        log_probabilities = logits - log_partition[:, None]
        wanted = log_probabilities[np.arange(len(target)), target]
        losses = -0.8 * wanted - 0.2 * log_probabilities.mean(-1) + 1e-2 * log_partition**2
        for term, values in (("loss", losses), ("cross_entropy", -wanted), ("accuracy", logits.argmax(-1) == target)):
            sums[term] += weight * values.sum()
    batch = lay_out([examples[:2], examples[2:3], examples[3:], []])
    actual = means(name, batch, Seq2SeqLM(0.2, 1e-2))
    assert {term: mean.sum for term, mean in actual.items()} == pytest.approx(sums, rel=1e-4)
    assert actual["loss"].weight == pytest.approx(batch["weights"].sum())
    assert Seq2SeqLM().loss_weights == {"loss": 1.0}


def test_the_report_begins_with_the_loss_and_has_scores_where_there_are_some():
    merged = dict.fromkeys(("loss", "cross_entropy", "accuracy"), Mean(1.0, 2.0))
    plain = report_of(Seq2SeqLM(), MODELS["t5"], merged)
    assert list(plain) == ["loss", "cross_entropy", "perplexity", "bits_per_token", "accuracy"]
    texts = ["w1 w2 w3 w4 w5"]
    assert text_scores(texts, texts) == {"bleu": pytest.approx(100), "chrf": pytest.approx(100)}


OUTPUTS = ["The cat sat on the mat here.", "A dog .", "", "You are so very kind to me, my dear friend!"]
REFERENCES = ["The cat sat on a mat here now.", "The dog.", "Nothing at all.", "You are very kind to me, my friend!"]


def test_scores_that_are_merged_are_those_of_sacrebleu_on_the_whole():
    metric = TextScores(Scores(), 4, lambda context, inputs: [])
    pairs = tuple(zip(OUTPUTS, REFERENCES, strict=True))
    merged = functools.reduce(metric.merge, [pairs[:1], (), pairs[1:]])
    expected = {
        "bleu": sacrebleu.corpus_bleu(OUTPUTS, [REFERENCES]).score,
        "chrf": sacrebleu.corpus_chrf(OUTPUTS, [REFERENCES]).score,
    }
    assert 20 < expected["bleu"] < 80
    assert metric.compute(merged) == expected
    assert text_scores([], []) == {"bleu": 0.0, "chrf": 0.0}


DOCUMENTS = [
    {"source": "w1  w2 w3", "target": "W1,  w2 (zebra) w3."},
    {"source": "", "target": "w1"},
    {"source": "w4 w5 w6 w7 w8", "target": "w9 w10 w11 w12 w13 w14 w15 the rest has no room"},
    {"source": " ".join(["w6"] * 12), "target": "w3 w4"},
    {"source": "w7 w8", "target": "w1 w2 w3"},
    {"source": "w8 w9", "target": "w9 w8 w7 w6"},
]
TASK = TextToText(8, 6, "source", "target")


@pytest.mark.slow
@pytest.mark.parametrize("scored", [1, 2, 4, 20])
def test_the_first_documents_are_scored_against_the_texts_of_the_source(scored, tokenizer):
    """Whole texts; the tokenizer loses letters and spaces, and rows lose the ends."""
    model, params, objective = MODELS["t5"], PARAMS["t5"], Seq2SeqLM(decoding=QUICK, scored=scored)
    report = score_documents(objective, model, params, tokenizer, TASK, DOCUMENTS)
    own = [document for document in DOCUMENTS if document["source"]][:scored]
    inputs = [np.append(tokenizer.encode(document["source"])[:7], END) for document in own]
    outputs = [tokenizer.decode(output) for output in generate(model, params, inputs, QUICK, END, PAD)]
    references = [document["target"] for document in own]
    assert report["bleu"] == pytest.approx(sacrebleu.corpus_bleu(outputs, [references]).score)
    assert report["chrf"] == pytest.approx(sacrebleu.corpus_chrf(outputs, [references]).score)
    context = Context(model, params, tokenizer, TASK)
    assert len(TextScores(Scores(), scored, None).select(context, DOCUMENTS)) == len(own)
    assert (report["cut_inputs"], report["cut_references"]) == (scored >= 3, 1 + (scored >= 2))
    lost = [tokenizer.decode(tokenizer.encode(text)[:5]) for text in references]
    assert report["chrf"] != pytest.approx(sacrebleu.corpus_chrf(outputs, [lost]).score)


def test_without_documents_to_score_there_is_nothing_or_zero(tokenizer):
    model, params = MODELS["t5"], PARAMS["t5"]
    assert score_documents(Seq2SeqLM(), model, params, tokenizer, TASK, DOCUMENTS) == {}
    found = score_documents(Seq2SeqLM(scored=3), model, params, tokenizer, TASK, [])
    assert list(found) == ["bleu", "chrf", "cut_inputs", "cut_references"]
    assert not any(found.values())
    message = "objective.scored=3: data.task=SpanCorruption has no text to compare answers with; expected 0, or a task"
    with pytest.raises(InputError, match=message):
        score_documents(Seq2SeqLM(scored=3), model, params, tokenizer, SpanCorruption(), [])


def test_rouge_is_the_mean_of_rouge_score_however_it_is_merged():
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    single = [scorer.score(*pair) for pair in zip(REFERENCES, OUTPUTS, strict=True)]
    means = {name: 100 * np.mean([score[name].fmeasure for score in single]) for name in single[0]}
    expected = {"rouge_1": means["rouge1"], "rouge_2": means["rouge2"], "rouge_l": means["rougeL"]}
    assert 20 < expected["rouge_2"] < expected["rouge_1"] < 80
    metric = TextScores(Scores(by=("rouge",)), 4, lambda context, inputs: [])
    pairs = tuple(zip(OUTPUTS, REFERENCES, strict=True))
    assert metric.compute(metric.merge(pairs[:3], pairs[3:])) == pytest.approx(expected)
    assert list(text_scores([], [], ["rouge", "bleu"])) == ["rouge_1", "rouge_2", "rouge_l", "bleu"]


TASKS = (Scores("w1 w2: ", ("rouge",)), Scores("w3", ("chrf",)))


def draw_tasks(tokenizer):
    """Examples that begin with the one prefix, the other, or neither, in turns."""
    examples = draw_examples(9)
    starts = [tokenizer.encode(part.prefix) for part in TASKS] + [tokenizer.encode("w4")]
    return [(np.concatenate([starts[number % 3], source]), target) for number, (source, target) in enumerate(examples)]


@pytest.mark.parametrize("scored", [1, 2, 9])
def test_the_first_documents_of_each_task_are_scored_for_themselves(scored, tokenizer):
    model, params = MODELS["t5"], PARAMS["t5"]
    objective = Seq2SeqLM(decoding=QUICK, scored=scored, scores=TASKS)
    texts = [("w1 w2: w5", "w6"), ("w3 w5 w6", "w7 w8"), ("w4 w1", "w9"), ("w1 w2: w8 w9", "w8 w7"), ("w3", "w1 w2")]
    documents = [{"inputs": inputs, "targets": targets} for inputs, targets in texts]
    documents.insert(1, {"text": "w1 w2: w3 w4 is a text alone"})
    task = MultiTask(text_to_text=TextToText(16, 8))
    found = score_documents(objective, model, params, tokenizer, task, documents)
    expected = {}
    for part, own in zip(TASKS, (texts[::3], texts[1::3]), strict=True):
        inputs = [np.append(tokenizer.encode(source), END) for source, _ in own[:scored]]
        outputs = [tokenizer.decode(output) for output in generate(model, params, inputs, QUICK, END, PAD)]
        values = text_scores(outputs, [target for _, target in own[:scored]], part.by)
        expected |= {part.label + name: score for name, score in values.items()}
        expected |= dict.fromkeys((f"{part.label}cut_inputs", f"{part.label}cut_references"), 0.0)
    assert [name for name in expected if "cut" not in name] == [
        *("w1_w2_rouge_1", "w1_w2_rouge_2", "w1_w2_rouge_l", "w3_chrf")
    ]
    assert found == pytest.approx(expected)
    context = Context(model, params, tokenizer, task)
    for part in TASKS:
        assert len(TextScores(part, scored, None).select(context, documents)) == min(scored, 2)


def test_a_demonstration_has_an_example_of_each_task(tokenizer):
    examples = draw_tasks(tokenizer)
    batch = lay_out([examples[:1], examples[3:5], examples[6:9]], 48, 40)
    objective = Seq2SeqLM(decoding=QUICK, scores=TASKS)
    lines = objective.predictor(MODELS["t5"], PARAMS["t5"], tokenizer).demonstrate(batch)
    shown = [line.removeprefix("inputs: ") for line in lines[::3]]
    assert shown == [tokenizer.decode(examples[number][0]) for number in (0, 4, 8)]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_texts_are_answered(name, tokenizer):
    texts = ["w1 w2", "w3 <extra_id_0> w4 <extra_id_1>", "w7 w8 w9 w10 w11"]
    objective = Seq2SeqLM(decoding=Decoding(max_new_tokens=8, num_beams=3))
    answers = objective.predictor(MODELS[name], PARAMS[name], tokenizer).predict(texts)
    prompts = [
        [6, 7, END],
        [8, PIECES.index("<extra_id_0>"), 9, PIECES.index("<extra_id_1>"), END],
        [*range(12, 17), END],
    ]
    outputs = generate(MODELS[name], PARAMS[name], prompts, objective.decoding, END, PAD)
    assert list(objective.predictor(MODELS[name], PARAMS[name], tokenizer).reply(texts[0])) == [str(answers[0])]
    assert [answer.text for answer in answers] == texts
    assert [str(answer) for answer in answers] == [tokenizer.decode(output) for output in outputs]


@pytest.mark.parametrize(("start", "first"), [("padding", PAD), ("end", END)])
def test_texts_are_encoded_with_the_token_that_an_answer_follows(start, first, tokenizer):
    batch = Seq2SeqLM(start=start).predictor(MODELS["paper"], None, tokenizer).encode(["w1 w2", "w3"])
    np.testing.assert_array_equal(batch["inputs"], [[6, 7, END], [8, END, 0]])
    np.testing.assert_array_equal(batch["input_segments"], [[1, 1, 1], [1, 1, 0]])
    np.testing.assert_array_equal(batch["tokens"], [[first], [first]])
    assert applied(MODELS["paper"], PARAMS["paper"], **batch).logits.shape == (2, 1, len(PIECES))


def test_a_demonstration_has_inputs_references_and_outputs(tokenizer):
    examples = draw_examples(5)
    batch = lay_out([examples[:2], [], examples[2:]], 24, 24)
    lines = Seq2SeqLM(decoding=QUICK).predictor(MODELS["t5"], PARAMS["t5"], tokenizer).demonstrate(batch)
    assert len(lines) == 9
    outputs = generate(MODELS["t5"], PARAMS["t5"], [source for source, _ in examples[:3]], QUICK, END, PAD)
    for number, ((source, target), output) in enumerate(zip(examples, outputs, strict=False)):
        texts = [tokenizer.decode(ids) for ids in (source, target, output)]
        assert [line.partition(":")[2].strip() for line in lines[3 * number :][:3]] == texts
    assert Seq2SeqLM().predictor(MODELS["t5"], PARAMS["t5"], tokenizer).demonstrate(lay_out([[]])) == []


def test_texts_that_cannot_be_answered_are_refused(tokenizer):
    for text, message in (("", "'': an empty text"), ("w1 " * 24, "a prompt of 25 tokens: .* positions for 24")):
        with pytest.raises(InputError, match=message):
            Seq2SeqLM().predictor(MODELS["paper"], PARAMS["paper"], tokenizer).predict(["w1", text])


@pytest.mark.parametrize(
    "model, row, message",
    [
        (small_bert(), ROW, "objective=Seq2SeqLM: needs an EncoderDecoder; the model is a Bert"),
        (MODELS["t5"], ROW[1:], "objective=Seq2SeqLM: the task's rows have no inputs; use one such as TextToText"),
        (MODELS["paper"], ROW[:2], "objective=Seq2SeqLM: the task's rows have no targets"),
    ],
)
def test_rows_and_models_that_do_not_go_with_it_are_refused(model, row, message):
    with pytest.raises(InputError, match=message):
        Seq2SeqLM().check(model, row)
    Seq2SeqLM().check(MODELS["t5"], ROW)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"label_smoothing": -0.1}, "objective.label_smoothing=-0.1: expected 0 to 1, below 1"),
        ({"z_loss": float("nan")}, "objective.z_loss=nan: expected at least 0"),
        ({"scored": -1}, "objective.scored=-1: expected at least 0"),
        ({"scores": (Scores("a: "), Scores("a:"))}, "objective.scores: the prefix 'a: ' occurs twice"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Seq2SeqLM(**fields)


@pytest.mark.slow
def test_scores_without_a_metric_are_refused():
    with pytest.raises(InputError, match=r"objective.scores.by: empty; expected bleu, chrf or rouge"):
        Scores("a: ", ())
