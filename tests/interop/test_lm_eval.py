"""A run in lm-evaluation-harness: what it is asked, and a whole evaluation of a task."""

import dataclasses
import json

import numpy as np
import pytest
from small_bert import noisy_params
from small_writer import END, GPT, POSITIONS, small_run, small_tokenizer

from jaxformer.decoding.scoring import score
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.runs import export_run
from jaxformer.layers.norms import LayerNorm
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.seq2seq_lm import Seq2SeqLM

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import LM  # noqa: E402

from jaxformer.interop.lm_eval_adapter import RunLM  # noqa: E402


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return small_run(small_tokenizer(tmp_path_factory.mktemp("vocabulary")))


@pytest.fixture(scope="module")
def model(run):
    return RunLM(run)


def ask(kind, *arguments):
    return [Instance(kind, {}, arguments=each, idx=number) for number, each in enumerate(arguments)]


def test_it_is_a_model_of_the_harness(model):
    assert isinstance(model, LM)


def test_log_likelihoods_are_those_of_the_run(model, run):
    pairs = [("w1 w2", " w3"), ("w4", " w5 w6 w7"), ("", "w8 w9"), ("w1 w2", " w9x")]
    expected = run.log_likelihoods(*zip(*pairs, strict=True))
    found = model.loglikelihood(ask("loglikelihood", *pairs))
    assert found == [(one.log_probability, one.greedy) for one in expected]
    continuation = run.with_decoding(temperature=0.0, max_new_tokens=2).predict("w1 w2").continuation
    assert model.loglikelihood(ask("loglikelihood", ("w1 w2", continuation)))[0][1] is True
    assert model.loglikelihood([]) == []


def test_a_long_text_is_predicted_token_by_token_once_each(model, run):
    """The first window has the end token before it; the last one as much context as there is room for."""
    numbers = np.random.default_rng(0).integers(0, 30, 3 * POSITIONS // 2)
    tokens = run.tokenizer.encode(" ".join(f"w{number}" for number in numbers))
    (found,) = model.loglikelihood_rolling(ask("loglikelihood_rolling", (run.tokenizer.decode(tokens),)))
    first, rest = tokens[:POSITIONS], tokens[POSITIONS:]
    room = POSITIONS + 1 - len(rest)
    windows = [([END], first), (first[-room:], rest)]
    expected = [one.log_probability for one in score(run.model, run.params, *zip(*windows, strict=True))]
    assert found == pytest.approx(sum(expected), abs=1e-3)
    short = model.loglikelihood_rolling(ask("loglikelihood_rolling", ("w1 w2",), ("w3",)))
    assert short == pytest.approx([model.loglikelihood(ask("loglikelihood", ("", t)))[0][0] for t in ("w1 w2", "w3")])


@pytest.mark.parametrize("beginning", [False, True], ids=["plain", "beginning"])
def test_the_harness_has_the_same_results_for_the_exported_folder(run, beginning, tmp_path):
    """The harness' model of transformers' folders, and our model of the run: log-probabilities, long texts, answers."""
    from lm_eval.models.huggingface import HFLM

    stack = dataclasses.replace(GPT.transformer, norm_position="before", norm=LayerNorm(1e-5))
    network = dataclasses.replace(GPT, transformer=stack)
    objective = CausalLM(decoding=Decoding(6), beginning=beginning)
    experiment = dataclasses.replace(run.experiment, model=network, objective=objective)
    params = noisy_params(network, np.zeros((1, 4), np.int32))
    ours = dataclasses.replace(run, experiment=experiment, params=params, folder=tmp_path / "nowhere")
    export_run(ours, tmp_path / "out", certificate=False)
    settings = {"pretrained": str(tmp_path / "out"), "device": "cpu", "batch_size": 1, "dtype": "float32"}
    theirs = HFLM(**settings)
    long = " ".join(f"w{number}" for number in np.random.default_rng(0).integers(0, 30, 3 * POSITIONS // 2))
    texts = ask("loglikelihood_rolling", ("w1 w2",), ("w3",), (long,))
    # It would count the beginning token, which the tokenizer adds, after one of its own.
    once = HFLM(**settings, add_bos_token=False) if beginning else theirs
    expected = once.loglikelihood_rolling(texts, disable_tqdm=True)
    assert RunLM(ours).loglikelihood_rolling(texts) == pytest.approx(expected, rel=1e-4)
    pairs = ask("loglikelihood", ("w1 w2", " w3"), ("w4", " w5 w6 w7"), ("", "w8 w9"), ("w1 w2", " w9x"))
    found = RunLM(ours).loglikelihood(pairs)
    for mine, [log_probability, greedy] in zip(found, theirs.loglikelihood(pairs, disable_tqdm=True), strict=True):
        assert mine == (pytest.approx(log_probability, rel=1e-4), greedy)
    asked = ask("generate_until", ("w1 w2", {"max_gen_toks": 6, "until": ["."]}), ("w7", {"max_gen_toks": 6}))
    answers = theirs.generate_until(asked, disable_tqdm=True)
    assert [text.split() for text in RunLM(ours).generate_until(asked)] == [text.split() for text in answers]


def test_generation_follows_the_settings_of_the_task_and_ends_where_it_says(model, run):
    contexts = ["w1 w2", "w5", "w1 w2"]
    plain = [
        run.with_decoding(temperature=0.0, max_new_tokens=9).predict(text).continuation.strip() for text in contexts
    ]
    stop = plain[0].split()[3]
    settings = [{"max_gen_toks": 9}, {"max_gen_toks": 9}, {"max_gen_toks": 9, "until": [stop, "never"]}]
    requests = ask("generate_until", *zip(contexts, settings, strict=True))
    assert model.generate_until(requests) == [plain[0], plain[1], plain[0].split(stop)[0]]
    drawn = {"max_gen_toks": 9, "do_sample": True, "temperature": 3.0, "top_p": 0.9}
    expected = run.with_decoding(temperature=3.0, top_p=0.9, max_new_tokens=9).predict("w1 w2").continuation.strip()
    assert model.generate_until(ask("generate_until", ("w1 w2", drawn))) == [expected]


def test_a_context_that_is_too_long_leaves_room_for_the_answer(model, run):
    context = " ".join(f"w{number}" for number in np.random.default_rng(1).integers(0, 30, 2 * POSITIONS))
    (found,) = model.generate_until(ask("generate_until", (context, {"max_gen_toks": 5})))
    kept = run.tokenizer.decode(run.tokenizer.encode(context)[-(POSITIONS + 1 - 5) :])
    assert found == run.with_decoding(temperature=0.0, max_new_tokens=5).predict(kept).continuation.strip()


def test_an_encoder_decoder_answers(run):
    other = small_run(run.tokenizer, Seq2SeqLM(decoding=Decoding(max_new_tokens=6)))
    model = RunLM(other)
    assert model.generate_until(ask("generate_until", ("w1 w2", {"max_gen_toks": 6}))) == [
        other.predict("w1 w2").answer
    ]
    (expected,) = other.log_likelihoods(["w1"], ["w2 w3"])
    assert model.loglikelihood(ask("loglikelihood", ("w1", "w2 w3"))) == [(expected.log_probability, expected.greedy)]
    with pytest.raises(
        InputError, match="expected a language model, because other models have no probability of a text"
    ):
        model.loglikelihood_rolling(ask("loglikelihood_rolling", ("w1",)))


def test_the_harness_evaluates_it(model, run, tmp_path, monkeypatch):
    """A task of multiple choice in a local file."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    rows = [{"question": f"w{n} w{n + 1}", "choices": [f"w{n + 2}", "w5 w6"], "answer": n % 2} for n in range(12)]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "made_up",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    found = lm_eval.simple_evaluate(model=model, tasks=[task], bootstrap_iters=0)["results"]["made_up"]["acc,none"]
    right = []
    for row in rows:
        scores = run.log_likelihoods([row["question"]] * 2, [f" {choice}" for choice in row["choices"]])
        right.append(np.argmax([one.log_probability for one in scores]) == row["answer"])
    assert 0 < np.mean(right) < 1
    assert found == pytest.approx(np.mean(right))
