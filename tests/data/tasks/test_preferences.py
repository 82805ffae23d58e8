"""Preferences: both answers follow one prompt, what is a target, what is cut, what is refused."""

import numpy as np
import pytest

from jaxformer.data.examples import Visit
from jaxformer.data.tasks.dialogue import DialogueTemplate
from jaxformer.data.tasks.preferences import Preferences
from jaxformer.errors import InputError

TEMPLATE = DialogueTemplate(system="w90", user="w91", assistant="w92")
PAIR = {"prompt": "w1 w2", "chosen": " w3", "rejected": " w4 w5"}


def laid_out(tokenizer, example=PAIR, length=12, **fields):
    """The tokens and the targets of both answers."""
    task = Preferences(length, **fields)
    document = task.encode(example, tokenizer)
    (row,) = task.examples(document, Visit(tokenizer, np.random.default_rng(0), None))
    assert row.keys() == task.row.keys()
    sides = (("tokens", "targets", "weights"), ("inputs", "rejected_targets", "rejected_weights"))
    found = []
    for tokens, targets, weights in sides:
        assert row[weights].dtype == np.float32 and len(row[tokens]) == len(row[targets]) == len(row[weights]) <= length
        wanted = row[targets][row[weights] > 0]
        found += [" ".join(tokenizer.pieces[number] for number in ids) for ids in (row[tokens], wanted)]
    return found


def test_both_answers_follow_the_prompt(tokenizer):
    assert laid_out(tokenizer) == ["w1 w2 w3", "w3 [SEP]", "w1 w2 w4 w5", "w4 w5 [SEP]"]
    beginning = laid_out(tokenizer, beginning=True)
    assert beginning[::2] == ["[CLS] w1 w2 w3", "[CLS] w1 w2 w4 w5"]


def test_answers_in_a_dialogue(tokenizer):
    turns = [{"role": "system", "content": "w8"}, {"role": "user", "content": "w1 w2"}]
    expected = ["w90 w8 [SEP] w91 w1 w2 [SEP] w92 w3", "w3 [SEP]", "w90 w8 [SEP] w91 w1 w2 [SEP] w92 w4 w5"]
    for example in (
        {"prompt": turns, "chosen": "w3", "rejected": [{"role": "assistant", "content": "w4 w5"}]},
        {
            "chosen": [*turns, {"role": "assistant", "content": "w3"}],
            "rejected": [*turns, {"role": "assistant", "content": "w4 w5"}],
        },
        {"prompt": "w90 w8\nw91 w1 w2", "chosen": "w3", "rejected": "w4 w5"},
    ):
        assert laid_out(tokenizer, example, template=TEMPLATE)[:3] == expected


def test_a_prompt_loses_its_start_and_an_answer_its_end(tokenizer):
    words = [f"w{number}" for number in range(20, 40)]
    long = {"prompt": " ".join(words), "chosen": " w3", "rejected": " w4 w5 w6"}
    tokens, _, rejected, targets = laid_out(tokenizer, long, 8)
    assert (tokens, rejected, targets) == ("w35 w36 w37 w38 w39 w3", "w35 w36 w37 w38 w39 w4 w5 w6", "w4 w5 w6 [SEP]")
    long = {"prompt": " ".join(words), "chosen": " w3", "rejected": " w4 w5 w6 w7 w8 w9"}
    tokens, _, rejected, targets = laid_out(tokenizer, long, 8)
    assert (tokens, rejected, targets) == ("w36 w37 w38 w39 w3", "w36 w37 w38 w39 w4 w5 w6 w7", "w4 w5 w6 w7 w8")


def test_a_pair_without_a_prompt_gives_no_example(tokenizer):
    task = Preferences(12)
    for example in ({**PAIR, "prompt": " "}, {**PAIR, "prompt": ""}):
        assert task.examples(task.encode(example, tokenizer), Visit(tokenizer, None, None)) == []


@pytest.mark.parametrize(
    "example, template, problem",
    [
        ({"prompt": "w1", "rejected": "w2"}, None, "data.task.chosen='chosen': no such column"),
        ({"chosen": "w1", "rejected": "w2"}, None, "data.task.prompt='prompt': no such column"),
        ({**PAIR, "chosen": 3}, None, "column 'chosen' holds 3; expected a text, or a template in data.task.template"),
        (
            {**PAIR, "chosen": [{"role": "user", "content": "w1"}]},
            TEMPLATE,
            "holds turns of user; expected one turn",
        ),
        ({**PAIR, "chosen": []}, TEMPLATE, "column 'chosen' holds no turns; expected one turn of the assistant"),
        ({**PAIR, "prompt": [{"content": "w1"}]}, TEMPLATE, "expected a role, one of system, user, assistant, and"),
        (
            {"chosen": [{"role": "assistant", "content": "w1"}], "rejected": [{"role": "assistant", "content": "w2"}]},
            TEMPLATE,
            "columns 'chosen' and 'rejected': without a column 'prompt', expected dialogues that differ only in",
        ),
    ],
)
def test_errors_in_preferences_are_one_line(example, template, problem, tokenizer):
    with pytest.raises(InputError) as caught:
        Preferences(12, template=template).encode(example, tokenizer)
    assert problem in str(caught.value) and "\n" not in str(caught.value)
