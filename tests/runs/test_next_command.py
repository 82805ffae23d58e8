"""The command that a run suggests at its end works for its task, as bash reads it."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
import small_vit
from PIL import Image
from small_writer import small_run, small_tokenizer

from jaxformer.data.fields.image import ImageField
from jaxformer.data.tasks.causal_lm import NextToken
from jaxformer.data.tasks.classification import Classify
from jaxformer.data.tasks.dialogue import Dialogue
from jaxformer.data.tasks.images import ImageTask, MaskedPatches
from jaxformer.data.tasks.masked_lm import MaskedSentencePairs
from jaxformer.data.tasks.multi import MultiTask
from jaxformer.data.tasks.pairs import TextPairs
from jaxformer.data.tasks.question_answering import AnswerSpans
from jaxformer.data.tasks.seq2seq import PrefixLM, TextToText
from jaxformer.data.tasks.span_corruption import SpanCorruption
from jaxformer.data.tasks.tagging import TagTokens
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.seq2seq_lm import Seq2SeqLM
from jaxformer.predictors.fill_mask import Filled
from jaxformer.predictors.text_labels import Classified
from jaxformer.predictors.vectors import with_cosines
from jaxformer.runs import next_command

TEXT = "And God said, Let there be light.\nAnd there was light."
PAIR = {"inputs": "the dog\nran", "targets": "der Hund"}
ANSWER = {
    "question": "Who ran?",
    "context": "It was day. The dog ran.",
    "answers": {"text": ["dog"], "answer_start": [16]},
}
TURNS = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who?"}]
ASKED = {
    "blanks": (MaskedSentencePairs(), {"text": TEXT}, ["And God said, [MASK] there be light."]),
    "next tokens": (NextToken(), {"text": TEXT}, ["And God said, Let there"]),
    "a prefix": (PrefixLM(), {"text": TEXT}, ["And God said, Let there"]),
    "spans": (SpanCorruption(), {"text": TEXT}, ["And God said, Let there <extra_id_0> light. And there was"]),
    "text to text": (TextToText(prefix="to German: "), PAIR, ["to German: the dog ran"]),
    "several tasks": (MultiTask(), PAIR, ["the dog ran"]),
    "several tasks of a text": (MultiTask(), {"text": "in the end"}, ["in <extra_id_0> end"]),
    "labels": (Classify(labels=("a", "b")), {"text": "fine film", "label": "a"}, ["fine film"]),
    "labels of pairs": (Classify(pair="other", labels=("a", "b")), {"text": "it's", "other": "so\\"}, ["it's\tso\\"]),
    "tags": (TagTokens(("N", "V")), {"words": ["dogs", "run"], "tags": [0, 1]}, ["dogs run"]),
    "answers": (AnswerSpans(), ANSWER, ["Who ran?\tThe dog ran."]),
    "pairs": (TextPairs(first="inputs", second="targets"), PAIR, ["the dog ran", "der Hund"]),
    "dialogues": (Dialogue(), {"messages": TURNS}, ["Who?"]),
    "an image's path": (ImageTask(ImageField(8)), {"image": "a/b.png"}, ["a/b.png"]),
    "hidden patches": (MaskedPatches(ImageField(16)), {"image": "a/b.png"}, []),
}


@pytest.mark.parametrize("task, example, asked", ASKED.values(), ids=ASKED)
def test_what_is_asked_fits_the_task_and_is_quoted_for_a_shell(task, example, asked, tmp_path):
    words = task.requests(example, tmp_path)
    assert list(words) == asked
    echo = shlex.quote("import sys, json; print(json.dumps(sys.argv[1:]))")
    line = " ".join([sys.executable, "-c", echo, *map(next_command.quoted, words)])
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == json.dumps(asked)


def test_pixels_become_a_file(tmp_path):
    (path,) = ImageTask(ImageField(12, 1)).requests({"image": small_vit.IMAGES[0]}, tmp_path)
    assert (np.asarray(Image.open(path)) == small_vit.IMAGES[0, ..., 0]).all()
    ImageTask(ImageField(12, 1)).requests({"image": small_vit.IMAGES[1]}, tmp_path)
    assert (np.asarray(Image.open(path)) == small_vit.IMAGES[0, ..., 0]).all(), "a file that is there stays"


def test_an_example_that_is_none_is_passed_over_and_a_run_without_one_begins_others(tmp_path, monkeypatch):
    class Source:
        def __init__(self, documents):
            self.open = lambda: documents

    run = small_run(small_tokenizer(tmp_path))
    for documents, end in (
        ([{"title": "x"}, {"text": "to be or"}], 'predict nowhere "to be or"'),
        ([{"title": "x"}], "train CONFIG.py --init nowhere"),
    ):
        object.__setattr__(run.experiment.data, "train", Source(documents))
        assert next_command.next_command(run).endswith(end)


def test_the_program_is_that_of_this_environment():
    done = subprocess.run([*shlex.split(next_command.program()), "--help"], capture_output=True, text=True, check=True)
    assert "usage: jaxformer COMMAND" in done.stdout


@pytest.mark.slow
def test_several_samples_of_a_text_differ_and_are_refused_where_they_cannot(tmp_path):
    tokenizer = small_tokenizer(tmp_path)
    run = small_run(tokenizer, CausalLM(decoding=Decoding(max_new_tokens=6, temperature=1.5)))
    samples = run.predict("w1 w2", num_samples=4)
    assert len({str(sample) for sample in samples}) > 1
    both = run.predict(["w1 w2", "w3"], num_samples=2)
    assert [[sample.text for sample in answers] for answers in both] == [["w1 w2"] * 2, ["w3"] * 2]
    with pytest.raises(InputError, match="num_samples=2: all answers would be the same; set temperature=1"):
        run.with_decoding(temperature=0).predict("w1", num_samples=2)
    with pytest.raises(InputError, match="all answers would be the same"):
        small_run(tokenizer, Seq2SeqLM()).predict("w1", num_samples=2)
    with pytest.raises(InputError, match="num_samples=0: expected at least 1"):
        run.predict("w1", num_samples=0)


def test_answers_are_json():
    filled = Filled("a [MASK]", ((("b", 0.5), ("c", 0.25)),), "a b")
    assert filled.to_json() == {
        "text": "a [MASK]",
        "blanks": [[{"token": "b", "probability": 0.5}, {"token": "c", "probability": 0.25}]],
        "filled": "a b",
    }
    assert Classified("x", (("good", 1.0),)).to_json() == {
        "text": "x",
        "labels": [{"label": "good", "probability": 1.0}],
    }
    first, _ = with_cosines(["a", "b"], np.eye(2, dtype=np.float32))
    assert first.to_json() == {"text": "a", "vector": [1.0, 0.0], "cosines": [{"text": "b", "cosine": 0.0}]}
