"""The commands with generative models: a language model continues a text, an encoder–decoder answers it."""

import json

import pytest
import tiny
from test_cli import write

from jaxformer import cli, config, open_run
from jaxformer.training.loop import fit

WRITING = '''
"""Tiny models that write, on made-up sentences."""

from jaxformer.config import Evaluation, Experiment
from jaxformer.data.tasks.causal_lm import NextToken
from jaxformer.data.tasks.seq2seq import TextToText
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import JsonLines
from jaxformer.data.tokenizers import WordPiece
from jaxformer.decoding.settings import Decoding
from jaxformer.layers.transformer import Transformer
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.models.gpt import Gpt
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.seq2seq_lm import Seq2SeqLM
from jaxformer.training.optimizers import AdamW, Schedule

STACK = Transformer(width=16, depth=1, heads=2, norm_position="after")
MODEL, OBJECTIVE, TASK = {
    "gpt": (
        Gpt(STACK, vocab=128, max_length=32),
        CausalLM(decoding=Decoding(max_new_tokens=9, temperature=1.0)),
        NextToken(length=16),
    ),
    "translation": (
        EncoderDecoder(STACK, STACK, vocab=128, max_length=32),
        Seq2SeqLM(label_smoothing=0.1, decoding=Decoding(max_new_tokens=9, num_beams=2), scored=12),
        TextToText(32, 32),
    ),
}["{kind}"]

experiment = Experiment(
    model=MODEL,
    objective=OBJECTIVE,
    data=Data(
        train=JsonLines(("{folder}/train.jsonl",)),
        validation=JsonLines(("{folder}/validation.jsonl",)),
        task=TASK,
        batch=8,
    ),
    tokenizer=WordPiece(vocab=120),
    optimizer=AdamW(schedule=Schedule(peak=1e-2, warmup=5)),
    steps=30,
    evaluation=Evaluation(every=15),
)
'''


@pytest.fixture(scope="module")
def written(tiny_config, tmp_path_factory):
    """The config file and the folder of a trained run of a model that writes, by its kind."""
    folder = tmp_path_factory.mktemp("written")
    for split, count in (("train", 200), ("validation", 20)):
        tiny.write_texts(folder / "texts.txt", count, seed=count)
        lines = [" ".join(text.splitlines()[:1]) for text in (folder / "texts.txt").read_text().split("\n\n")]
        rows = [{"text": line, "inputs": line, "targets": line.lower()} for line in lines]
        write(folder / f"{split}.jsonl", "\n".join(map(json.dumps, rows)))
    runs = {}
    for kind in ("gpt", "translation"):
        file = write(folder / f"{kind}.py", WRITING.replace("{kind}", kind).replace("{folder}", str(folder)))
        runs[kind] = file, fit(config.load(file), folder / kind, quiet=True).folder
    return runs


@pytest.fixture
def refused(capsys):
    """Calls the command line, asserts that it refuses its input; its one line."""

    def call(*arguments):
        capsys.readouterr()
        assert cli.main(list(map(str, arguments))) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1), f"expected one line on standard error alone:\n{out}{err}"
        return err

    return call


def predicted(capsys, *arguments):
    """The output of the command."""
    capsys.readouterr()
    assert cli.main(["predict", *map(str, arguments)]) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_predict_continues_a_text_as_the_run_does(written, capsys):
    _, folder = written["gpt"]
    text = "The old king"
    out = predicted(capsys, folder, text)
    assert out == str(open_run(folder).predict(text)) + "\n"
    assert out.startswith(text)
    assert out == predicted(capsys, folder, text), "drawn with the same seed"
    drawn = {predicted(capsys, folder, text, "--seed", seed, "--temperature", "2") for seed in range(4)}
    assert len(drawn) > 1 and all(out.startswith(text) for out in drawn)


@pytest.mark.slow
def test_predict_takes_settings_of_decoding(written, capsys):
    _, folder = written["gpt"]
    text, run = "The old king", open_run(folder)
    likeliest = str(run.with_decoding(temperature=0.0).predict(text)) + "\n"
    assert predicted(capsys, folder, text, "--temperature", "0") == likeliest
    assert predicted(capsys, folder, text, "--top-k", "1") == likeliest
    assert predicted(capsys, folder, text, "--top_p=1e-6") == likeliest
    assert predicted(capsys, folder, text, "--min_p", "1") == likeliest
    assert predicted(capsys, folder, text, "--temperature", "0", "--repetition_penalty", "30") != likeliest
    short = predicted(capsys, folder, text, "--temperature", "0", "--max_new_tokens", "2")
    assert likeliest.startswith(short.rstrip("\n")) and len(short) < len(likeliest)
    searched = run.with_decoding(num_beams=3, temperature=0.0, length_penalty=2.0, early_stopping=True)
    beams = ["--num_beams", 3, "--temperature", 0, "--length_penalty", 2, "--early_stopping", "True"]
    assert predicted(capsys, folder, text, *beams) == str(searched.predict(text)) + "\n"


@pytest.mark.slow
def test_predict_prints_one_text_after_the_other(written, capsys, tmp_path):
    texts = write(tmp_path / "texts.txt", "The dog ran.\n\nA cat saw the sun.\n")
    for kind, (_, folder) in written.items():
        out = predicted(capsys, folder, "The king.", "--input", texts)
        answers = open_run(folder).predict(["The king.", "The dog ran.", "A cat saw the sun."])
        # The blank line of the file has a blank answer.
        assert out == "".join(f"{answer}\n" for answer in (*answers[:2], "", answers[2]))
        assert (out.count("The dog ran.") == 1) == (kind == "gpt"), "an answer stands alone"
    assert predicted(capsys, written["translation"][1], "The king.") == f"{answers[0]}\n"


BAD_DECODING = {
    "no beam": (["--num_beams", "0"], "decoding.num_beams=0: expected at least 1"),
    "a negative temperature": (["--temperature=-1"], "decoding.temperature=-1.0: expected at least 0"),
    "a word": (["--temperature", "hot"], "--temperature: invalid float value: 'hot'"),
    "a fraction": (["--top_k", "2.5"], "--top_k", "2.5"),
    "no probability": (["--top_p", "0"], "decoding.top_p=0.0: expected above 0"),
    "both": (["--num_beams", "2", "--temperature", "1"], "decoding.num_beams=2", "expected decoding.temperature=0"),
    "no such end": (["--early_stopping", "soon"], "expected"),
    "no such setting": (["--top_q", "1"], "--top_q"),
    "a prompt without a token": ([""], "an empty prompt"),
    "a prompt longer than the positions": (["dog " * 40], "positions for 32"),
}


@pytest.mark.parametrize("flags, named", [(case[0], case[1:]) for case in BAD_DECODING.values()], ids=BAD_DECODING)
def test_predict_refuses_what_it_cannot_decode(flags, named, written, refused):
    text = [] if len(flags) == 1 and not flags[0].startswith("-") else ["The dog"]
    line = refused("predict", written["gpt"][1], *text, *flags)
    assert all(fragment in line for fragment in named), line


def test_a_translation_is_scored_when_it_is_evaluated(written, capsys):
    _, folder = written["translation"]
    assert cli.main(["evaluate", str(folder)]) == 0
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines()[1:])
    values = tiny.metrics(folder, "validation")[-1]
    assert {"bleu", "chrf"} < set(shown) == set(values) - {"step", "split"}
    assert float(shown["bleu"]) == pytest.approx(values["bleu"], abs=1e-3)
    assert 0 < values["chrf"] <= 100
    assert len([line for line in open_run(folder).demonstrate() if "reference" in line]) == 3


@pytest.mark.slow
def test_how_a_model_writes_may_change_in_a_run_and_its_loss_may_not(written, refused, capsys):
    for kind, field, value in (("gpt", "decoding.temperature", 0.5), ("translation", "scored", 3)):
        file, folder = written[kind]
        assert cli.main(["train", str(file), f"--objective.{field}={value}", "--workdir", str(folder)]) == 0
        line = refused("train", file, "--objective.z_loss=0.1", "--workdir", folder)
        assert "objective.z_loss: 0.0 in the run, 0.1 now" in line


@pytest.mark.parametrize(
    "kind, flags, named",
    [
        ("gpt", ["--model.max_length", "15"], ["model.max_length=15", "data.task.length=16"]),
        ("translation", ["--data.task.input_length", "33"], ["model.max_length=32", "data.task.input_length=33"]),
        ("translation", ["--checkpoint.best", "rouge_1"], ["no such metric", "bleu, chrf"]),
        ("gpt", ["--checkpoint.best", "chrf"], ["no such metric", "accuracy"]),
    ],
)
def test_train_refuses_what_a_model_that_writes_cannot_do(kind, flags, named, written, refused, tmp_path):
    line = refused("train", written[kind][0], *flags, "--workdir", tmp_path / "run")
    assert all(fragment in line for fragment in named), line


@pytest.mark.slow
def test_the_best_checkpoint_may_be_that_of_the_best_translation(written, tmp_path):
    changes = {"checkpoint.best": "chrf", "steps": 2}
    assert fit(config.load(written["translation"][0], changes), tmp_path / "run", quiet=True).step == 2
