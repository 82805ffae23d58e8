"""The objective of an encoder–decoder: its terms, its scores, and what it makes of texts."""

import jax
import numpy as np
import pytest
import sacrebleu
from rouge_score import rouge_scorer
from small_bert import noisy_params, small_bert
from small_writer import END, PAD, PIECES, QUIET, small_tokenizer

from jaxformer.decoding.generate import generate
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.layers.transformer import Transformer
from jaxformer.metrics import Mean, merge
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.models.t5 import T5, t5_stack
from jaxformer.objectives.seq2seq import Seq2Seq
from jaxformer.objectives.text_scores import Scores, scores, text_scores

MODELS = {
    "paper": EncoderDecoder(*[Transformer(16, 2, 2, norm_position="after", **QUIET)] * 2, len(PIECES), 24),
    "t5": T5(
        t5_stack(16, 2, 2, 24, 8, **QUIET), t5_stack(16, 2, 2, 24, 8, bidirectional=False, **QUIET), len(PIECES), 24
    ),
}
PARAMS = {name: noisy_params(model, *[np.zeros((1, 4), np.int32)] * 2) for name, model in MODELS.items()}
ROW = ("inputs", "tokens", "targets", "weights")
QUICK = Decoding(max_new=6)


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
    names = {"inputs": inputs, "input_segments": inputs, "input_positions": inputs}
    names |= dict.fromkeys(("tokens", "targets", "segments", "positions"), length)
    batch = {name: np.zeros((len(rows), size), np.int32) for name, size in names.items()}
    batch["weights"] = np.zeros((len(rows), length), np.float32)
    for row, examples in enumerate(rows):
        ends = [0, 0]
        for number, (source, target) in enumerate(examples, 1):
            reads, writes = (slice(end, end + len(ids)) for end, ids in zip(ends, (source, target), strict=True))
            batch["inputs"][row, reads], batch["targets"][row, writes] = source, target
            batch["tokens"][row, writes] = np.append(PAD, target[:-1])
            batch["input_segments"][row, reads] = batch["segments"][row, writes] = number
            batch["input_positions"][row, reads] = np.arange(len(source))
            batch["positions"][row, writes] = np.arange(len(target))
            batch["weights"][row, writes] = 1 + 0.1 * number
            ends = [reads.stop, writes.stop]
    return batch


def means(name, batch, objective=Seq2Seq(), key=None):
    """The means of a batch, on the host."""
    return merge([jax.jit(lambda batch: objective(MODELS[name], PARAMS[name], batch, key))(batch)])


@pytest.mark.parametrize("name", MODELS)
def test_the_terms_are_weighted_sums_over_the_targets_of_each_example_alone(name):
    """Packed with others, an example neither reads nor writes anything of them."""
    examples = draw_examples(4)
    sums = dict.fromkeys(("loss", "cross_entropy", "accuracy"), 0.0)
    for (source, target), weight in zip(examples, (1.1, 1.2, 1.1, 1.1), strict=True):
        arguments = source[None], np.append(PAD, target[:-1])[None]
        logits = np.asarray(MODELS[name].apply({"params": PARAMS[name]}, *arguments).logits[0], np.float64)
        log_partition = np.log(np.exp(logits).sum(-1))
        log_probabilities = logits - log_partition[:, None]
        wanted = log_probabilities[np.arange(len(target)), target]
        losses = -0.8 * wanted - 0.2 * log_probabilities.mean(-1) + 1e-2 * log_partition**2
        for term, values in (("loss", losses), ("cross_entropy", -wanted), ("accuracy", logits.argmax(-1) == target)):
            sums[term] += weight * values.sum()
    batch = lay_out([examples[:2], examples[2:3], examples[3:], []])
    actual = means(name, batch, Seq2Seq(0.2, 1e-2))
    assert {term: mean.sum for term, mean in actual.items()} == pytest.approx(sums, rel=1e-4)
    assert actual["loss"].weight == pytest.approx(batch["weights"].sum())
    assert Seq2Seq().loss_weights == {"loss": 1.0}


def test_the_report_begins_with_the_loss_and_has_scores_where_there_are_some():
    merged = dict.fromkeys(("loss", "cross_entropy", "accuracy"), Mean(1.0, 2.0))
    plain = Seq2Seq().report(merged)
    assert list(plain) == ["loss", "cross_entropy", "perplexity", "bits_per_token", "accuracy"]
    texts = ["w1 w2 w3 w4 w5"]
    assert Seq2Seq().report(merged | text_scores(texts, texts)) == plain | {
        "bleu": pytest.approx(100),
        "chrf": pytest.approx(100),
    }


OUTPUTS = ["The cat sat on the mat here.", "A dog .", "", "You are so very kind to me, my dear friend!"]
REFERENCES = ["The cat sat on a mat here now.", "The dog.", "Nothing at all.", "You are very kind to me, my friend!"]


def test_scores_that_are_merged_are_those_of_sacrebleu_on_the_whole():
    parts = [text_scores(OUTPUTS[:1], REFERENCES[:1]), text_scores([], []), text_scores(OUTPUTS[1:], REFERENCES[1:])]
    merged = merge(parts)
    expected = {
        "bleu": sacrebleu.corpus_bleu(OUTPUTS, [REFERENCES]).score,
        "chrf": sacrebleu.corpus_chrf(OUTPUTS, [REFERENCES]).score,
    }
    assert 20 < expected["bleu"] < 80
    assert scores(merged) == pytest.approx(expected)
    assert merged["bleu"].weight == 4
    assert scores(text_scores([], [])) == {"bleu": 0.0, "chrf": 0.0}
    assert scores({}) == {}


@pytest.mark.parametrize("scored", [0, 3, 5, 20])
def test_the_first_examples_are_scored_however_they_lie(scored, tokenizer):
    model, params, objective = MODELS["t5"], PARAMS["t5"], Seq2Seq(decoding=QUICK, scored=scored)
    examples = draw_examples(7)
    outputs = generate(model, params, [source for source, _ in examples], QUICK, END, PAD)
    texts = [tokenizer.decode(output) for output in outputs], [tokenizer.decode(target) for _, target in examples]
    expected = text_scores(*(part[:scored] for part in texts))
    for rows in ([[example] for example in examples], [examples[:2], examples[2:3], examples[3:5], examples[5:]]):
        total = {}
        for start in range(0, len(rows), 2):
            batch = lay_out(rows[start : start + 2], 24, 24)
            total = merge([total, objective.text_scores(model, params, tokenizer, batch, total)])
        if scored:
            assert {name: mean.sum.tolist() for name, mean in total.items()} == {
                name: mean.sum.tolist() for name, mean in expected.items()
            }
            assert total["chrf"].weight == min(scored, 7)
        else:
            assert total == {}


def test_rouge_is_the_mean_of_rouge_score_however_it_is_merged():
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    single = [scorer.score(*pair) for pair in zip(REFERENCES, OUTPUTS, strict=True)]
    means = {name: 100 * np.mean([score[name].fmeasure for score in single]) for name in single[0]}
    expected = {"rouge_1": means["rouge1"], "rouge_2": means["rouge2"], "rouge_l": means["rougeL"]}
    assert 20 < expected["rouge_2"] < expected["rouge_1"] < 80
    parts = [text_scores(OUTPUTS[:3], REFERENCES[:3], ["rouge"]), text_scores(OUTPUTS[3:], REFERENCES[3:], ["rouge"])]
    assert scores(merge(parts)) == pytest.approx(expected)
    assert list(scores(text_scores([], [], ["rouge", "bleu"]))) == ["bleu", "rouge_1", "rouge_2", "rouge_l"]


TASKS = (Scores("w1 w2: ", ("rouge",)), Scores("w3", ("chrf",)))


def draw_tasks(tokenizer):
    """Examples that begin with the one prefix, the other, or neither, in turns."""
    examples = draw_examples(9)
    starts = [tokenizer.encode(part.prefix) for part in TASKS] + [tokenizer.encode("w4")]
    return [(np.concatenate([starts[number % 3], source]), target) for number, (source, target) in enumerate(examples)]


@pytest.mark.parametrize("scored", [1, 2, 9])
def test_the_first_examples_of_each_task_are_scored_for_themselves(scored, tokenizer):
    model, params = MODELS["t5"], PARAMS["t5"]
    objective, examples = Seq2Seq(decoding=QUICK, scored=scored, scores=TASKS), draw_tasks(tokenizer)
    total = {}
    for start in range(0, 9, 3):
        batch = lay_out([examples[start : start + 1], examples[start + 1 : start + 3]], 32, 24)
        total = merge([total, objective.text_scores(model, params, tokenizer, batch, total)])
    expected = {}
    for number, part in enumerate(TASKS):
        own = examples[number::3][:scored]
        outputs = generate(model, params, [source for source, _ in own], QUICK, END, PAD)
        texts = [[tokenizer.decode(ids) for ids in column] for column in (outputs, [target for _, target in own])]
        expected |= {part.label + name: score for name, score in scores(text_scores(*texts, part.by)).items()}
    assert list(expected) == ["w1_w2_rouge_1", "w1_w2_rouge_2", "w1_w2_rouge_l", "w3_chrf"]
    terms = dict.fromkeys(("loss", "cross_entropy", "accuracy"), Mean(1.0, 2.0))
    assert dict(list(objective.report(terms | total).items())[5:]) == pytest.approx(expected)
    assert total["w3_chrf"].weight == total["w1_w2_rouge_l"].weight == min(scored, 3)


def test_a_demonstration_has_an_example_of_each_task(tokenizer):
    examples = draw_tasks(tokenizer)
    batch = lay_out([examples[:1], examples[3:5], examples[6:9]], 48, 40)
    objective = Seq2Seq(decoding=QUICK, scores=TASKS)
    lines = objective.demonstrate(MODELS["t5"], PARAMS["t5"], tokenizer, batch)
    shown = [line.removeprefix("inputs: ") for line in lines[::3]]
    assert shown == [tokenizer.decode(examples[number][0]) for number in (0, 4, 8)]


@pytest.mark.parametrize("name", MODELS)
def test_texts_are_answered(name, tokenizer):
    texts = ["w1 w2", "w3 <extra_id_0> w4 <extra_id_1>", "w7 w8 w9 w10 w11"]
    objective = Seq2Seq(decoding=Decoding(max_new=8, beams=3))
    answers = objective.predict(MODELS[name], PARAMS[name], tokenizer, texts)
    prompts = [
        [6, 7, END],
        [8, PIECES.index("<extra_id_0>"), 9, PIECES.index("<extra_id_1>"), END],
        [*range(12, 17), END],
    ]
    outputs = generate(MODELS[name], PARAMS[name], prompts, objective.decoding, END, PAD)
    assert [answer.text for answer in answers] == texts
    assert [str(answer) for answer in answers] == [tokenizer.decode(output) for output in outputs]


def test_a_demonstration_has_inputs_references_and_outputs(tokenizer):
    examples = draw_examples(5)
    batch = lay_out([examples[:2], [], examples[2:]], 24, 24)
    lines = Seq2Seq(decoding=QUICK).demonstrate(MODELS["t5"], PARAMS["t5"], tokenizer, batch)
    assert len(lines) == 9
    outputs = generate(MODELS["t5"], PARAMS["t5"], [source for source, _ in examples[:3]], QUICK, END, PAD)
    for number, ((source, target), output) in enumerate(zip(examples, outputs, strict=False)):
        texts = [tokenizer.decode(ids) for ids in (source, target, output)]
        assert [line.partition(":")[2].strip() for line in lines[3 * number :][:3]] == texts
    assert Seq2Seq().demonstrate(MODELS["t5"], PARAMS["t5"], tokenizer, lay_out([[]])) == []


def test_texts_that_cannot_be_answered_are_refused(tokenizer):
    for text, message in (("", "'': an empty text"), ("w1 " * 24, "a prompt of 25 tokens: .* positions for 24")):
        with pytest.raises(InputError, match=message):
            Seq2Seq().predict(MODELS["paper"], PARAMS["paper"], tokenizer, ["w1", text])


@pytest.mark.parametrize(
    "model, row, message",
    [
        (small_bert(), ROW, "objective=Seq2Seq: needs an EncoderDecoder; the model is a Bert"),
        (MODELS["t5"], ROW[1:], "objective=Seq2Seq: the task's rows have no inputs; use one such as TextToText"),
        (MODELS["paper"], ROW[:2], "objective=Seq2Seq: the task's rows have no targets"),
    ],
)
def test_rows_and_models_that_do_not_go_with_it_are_refused(model, row, message):
    with pytest.raises(InputError, match=message):
        Seq2Seq().check(model, row)
    Seq2Seq().check(MODELS["t5"], ROW)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"label_smoothing": -0.1}, "objective.label_smoothing=-0.1: expected 0 to 1, below 1"),
        ({"z_loss": float("nan")}, "objective.z_loss=nan: expected at least 0"),
        ({"scored": -1}, "objective.scored=-1: expected at least 0"),
        ({"scores": (Scores("a: "), Scores("a:"))}, "objective.scores: twice the prefix 'a: '"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Seq2Seq(**fields)


def test_scores_without_a_metric_are_refused():
    with pytest.raises(InputError, match=r"objective.scores.by: empty; expected bleu, chrf or rouge"):
        Scores("a: ", ())
