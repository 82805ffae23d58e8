"""Dialogues: what is a target, where long ones are cut, how a text becomes turns, what is refused."""

import numpy as np
import pytest

from jaxformer.data.examples import Visit
from jaxformer.data.tasks.dialogue import Dialogue, DialogueTemplate
from jaxformer.data.tokenizers.training import texts
from jaxformer.errors import InputError

TEMPLATE = DialogueTemplate(system="w90", user="w91", assistant="w92")
TURNS = [
    {"role": "system", "content": "w1 w2"},
    {"role": "user", "content": "w3"},
    {"role": "assistant", "content": "w4 w5"},
    {"role": "user", "content": "w6"},
    {"role": "assistant", "content": "w7"},
]


def examples(tokenizer, turns=TURNS, length=40):
    task = Dialogue(length, template=TEMPLATE)
    return task.examples(task.encode({"messages": turns}, tokenizer), Visit(tokenizer, np.random.default_rng(0), None))


def spelt(tokenizer, ids):
    return " ".join(tokenizer.pieces[number] for number in ids)


def targets(tokenizer, example):
    return spelt(tokenizer, example["targets"][example["weights"] > 0])


def test_answers_and_their_ends_are_targets(tokenizer):
    (example,) = examples(tokenizer)
    whole = "w90 w1 w2 [SEP] w91 w3 [SEP] w92 w4 w5 [SEP] w91 w6 [SEP] w92 w7 [SEP]"
    assert spelt(tokenizer, example["tokens"]) == whole.removesuffix(" [SEP]")
    assert spelt(tokenizer, example["targets"]) == whole.removeprefix("w90 ")
    assert targets(tokenizer, example) == "w4 w5 [SEP] w7 [SEP]"
    assert Dialogue().row.keys() == example.keys() and example["weights"].dtype == np.float32


def test_a_long_dialogue_is_cut_after_answers(tokenizer):
    first, second = examples(tokenizer, length=12)
    assert spelt(tokenizer, first["tokens"]).endswith("w92 w4 w5")
    assert spelt(tokenizer, second["tokens"]) == "w91 w6 [SEP] w92 w7"
    assert [targets(tokenizer, part) for part in (first, second)] == ["w4 w5 [SEP]", "w7 [SEP]"]


def test_a_long_answer_loses_its_end(tokenizer):
    first, second = examples(tokenizer, length=8)
    assert targets(tokenizer, first) == "w4" and len(first["tokens"]) == 8
    assert targets(tokenizer, second) == "w7 [SEP]"


def test_a_dialogue_without_answer_gives_no_example(tokenizer):
    assert examples(tokenizer, TURNS[:2]) == examples(tokenizer, []) == []
    long = [{"role": "user", "content": "w3 " * 20}, TURNS[2]]
    assert examples(tokenizer, long, length=8) == []


def test_a_text_becomes_the_tokens_of_its_turns(tokenizer):
    prompt = TEMPLATE.prompt("w90 w1 w2\nw91 w3\nw92 w4 w5\nw91 w6", tokenizer)
    (example,) = examples(tokenizer)
    assert np.array_equal(prompt, example["tokens"][: len(prompt)]) and len(prompt) == 15
    assert spelt(tokenizer, TEMPLATE.prompt("w3 w4", tokenizer)) == "w91 w3 w4 [SEP] w92"


def test_turns_of_a_text():
    template = DialogueTemplate()
    assert template.turns("Hello\nthere") == [("user", "Hello\nthere")]
    text = "System: Be kind.\nUser: Why?\n\nTell me.\nAssistant:\nUser: So?"
    assert template.turns(text) == [("system", "Be kind."), ("user", "Why?\n\nTell me."), ("user", "So?")]


@pytest.mark.parametrize(
    "turns, message",
    [
        (
            [{"role": "robot", "content": "w1"}],
            "expected a role, one of system, user, assistant, and a text as content",
        ),
        ([{"role": "user"}], "turn \"{'role': 'user'}\": expected a role"),
        (["w1"], "turn 'w1': expected a role"),
        ("w1", "data.task.messages='messages': the column holds 'w1'; expected a list; the columns are 'messages'"),
    ],
)
def test_errors_in_dialogues_are_one_line(turns, message, tokenizer):
    with pytest.raises(InputError) as caught:
        examples(tokenizer, turns)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_invalid_dialogue_templates_are_refused():
    with pytest.raises(InputError, match="expected a different, non-empty text for each role"):
        DialogueTemplate(user="A:", assistant="A:")


def test_messages_may_be_two_lists_and_train_a_tokenizer(tokenizer):
    """The form of TFDS: a dict of lists."""
    columns = {"messages": {name: [turn[name] for turn in TURNS] for name in ("role", "content")}}
    task = Dialogue(40, template=TEMPLATE)
    assert task.read(columns) == task.read({"messages": TURNS})
    contents = [turn["content"] for turn in TURNS]
    assert list(texts([columns, {"messages": TURNS}], 9)) == 2 * contents
