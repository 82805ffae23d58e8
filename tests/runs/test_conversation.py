"""Conversations: the prompt of each answer, what is remembered and dropped, and the command `jaxformer chat`."""

import builtins
import dataclasses
import io
import sys

import numpy as np
import pytest
from chat_templates import CHATML, INST
from small_chat import write_chat_model
from small_writer import small_run, small_tokenizer

import jaxformer as jf
from jaxformer import cli
from jaxformer.data.tasks.chat_template import ChatTemplate
from jaxformer.errors import InputError
from jaxformer.objectives.seq2seq_lm import Seq2SeqLM
from jaxformer.predictors import continuation

pytestmark = pytest.mark.slow
GREEDY = ("--temperature", "0", "--max_new_tokens", "4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A chat model as a Hugging Face folder, and as an imported run."""
    found = tmp_path_factory.mktemp("chat")
    write_chat_model(found / "hf", CHATML)
    jf.import_run(found / "hf", found / "run", certificate=False)
    return found


@pytest.fixture(scope="module")
def run(folder):
    return jf.open_run(folder / "run").with_decoding(temperature=0.0, max_new_tokens=4)


def answered(run, turns, template=CHATML):
    """The greedy answer to the tokens of a dialogue."""
    predictor = dataclasses.replace(run.predictor, template=ChatTemplate(template))
    (output,) = predictor.write([predictor.template.encode_prompt(turns, run.tokenizer)])
    return run.tokenizer.decode(output).lstrip()


def test_an_answer_follows_all_turns(run):
    conversation = jf.Conversation(run, ChatTemplate(CHATML), system="Be brief.")
    first = "".join(conversation.ask("What?"))
    turns = [("system", "Be brief."), ("user", "What?")]
    assert first == answered(run, turns)
    turns += [("assistant", first.strip()), ("user", "Why?")]
    assert "".join(conversation.ask("Why?")) == answered(run, turns)
    assert conversation.turns[:-1] == turns and conversation.dropped == 0
    conversation.reset()
    assert conversation.turns == [("system", "Be brief.")] and "".join(conversation.ask("What?")) == first


def test_old_turns_are_dropped_when_they_no_longer_fit(run):
    conversation = jf.Conversation(run, ChatTemplate(CHATML))
    for _ in range(4):
        answer = "".join(conversation.ask("the light was called?"))
    assert conversation.dropped > 0 and len(conversation.turns) == 8
    shown = [*conversation.turns[conversation.dropped : 7]]
    assert shown[0][0] == "user" and answer == answered(run, shown)
    with pytest.raises(InputError, match="the model has positions for 64"):
        list(conversation.ask("light " * 80))
    assert len(conversation.turns) == 8


def test_an_answer_ends_at_the_end_of_its_turn(run):
    """<|im_end|> is not the EOS token, and the folder does not name it as one."""
    ends = [run.tokenizer.pieces.index(name) for name in ("<|eos|>", "<|im_end|>")]
    predictor = jf.Conversation(run, ChatTemplate(CHATML))._predictor
    assert predictor._ending.eos_token_ids == tuple(ends)


def letters(run, *ends):
    """Returns a function in place of `stream`, which generates a letter, and then raises each of some errors."""

    def stream(*arguments, **options):
        yield np.array([run.tokenizer.pieces.index("a")], np.int32)
        for end in ends:
            raise end
        yield np.array([run.tokenizer.pieces.index("b")], np.int32)

    return stream


def test_what_is_closed_or_refused(run, tmp_path, monkeypatch):
    with monkeypatch.context() as patches:
        patches.setattr(continuation, "stream", letters(run))
        conversation = jf.Conversation(run, ChatTemplate(CHATML))
        pieces = conversation.ask("What?")
        assert next(pieces) == "a"
        pieces.close()
    assert conversation.turns == [("user", "What?"), ("assistant", "a")]
    strict = ChatTemplate("{% if 'no' in messages[-1].content %}{{ raise_exception('not that') }}{% endif %}" + CHATML)
    conversation = jf.Conversation(run, strict)
    with pytest.raises(InputError, match=r"^chat template: not that$"):
        list(conversation.ask("no"))
    assert conversation.turns == []
    with pytest.raises(InputError, match=r"objective\.template is None; expected a template"):
        jf.Conversation(run)
    translator = small_run(small_tokenizer(tmp_path), Seq2SeqLM())
    with pytest.raises(InputError, match="Seq2SeqLM does not answer in dialogues; expected a run of a Gpt"):
        jf.Conversation(translator)


def typed(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def test_each_line_of_standard_input_is_answered(folder, run, monkeypatch, capsys):
    typed(monkeypatch, "What?\n\n/reset\n/what\nWhat?\n/exit\nWhy?\n")
    assert cli.main(["chat", str(folder / "run"), *GREEDY]) == 0
    expected = answered(run, [("user", "What?")])
    out, err = capsys.readouterr()
    assert out == f"{expected}\n{expected}\n" and err == "/what: no such command; expected /reset or /exit\n"
    other = folder / "other.jinja"
    other.write_text(INST)
    typed(monkeypatch, "What?\nWhy?")
    assert cli.main(["chat", str(folder / "run"), "--template", str(other), "--system", "Be brief.", *GREEDY]) == 0
    turns = [("system", "Be brief."), ("user", "What?")]
    first = answered(run, turns, INST)
    second = answered(run, [*turns, ("assistant", first.strip()), ("user", "Why?")], INST)
    assert capsys.readouterr().out == f"{first}\n{second}\n"


def test_a_terminal_shows_a_prompt_and_an_interrupt_ends_an_answer(folder, run, monkeypatch, capsys):
    words = iter(["What?", KeyboardInterrupt, "no", "Why?", EOFError])

    def read(prompt):
        assert prompt == "> "
        word = next(words)
        if isinstance(word, str):
            return word
        raise word

    monkeypatch.setattr(builtins, "input", read)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(continuation, "stream", letters(run, KeyboardInterrupt))
    strict = folder / "strict.jinja"
    strict.write_text("{% if messages[-1].content == 'no' %}{{ raise_exception('not that') }}{% endif %}" + CHATML)
    assert cli.main(["chat", str(folder / "run"), "--template", str(strict)]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 4  # An answer, the interrupted line, an answer, the end of the input.
    assert "/reset forgets the conversation" in err and "jaxformer: chat template: not that\n" in err


@pytest.mark.parametrize(
    "options, problem",
    [
        (["--template", "missing.jinja"], "--template missing.jinja: No such file or directory"),
        (["--template", "{folder}/bad.jinja"], "chat template: line 1: unexpected"),
        (["--temperature", "-1"], "decoding.temperature=-1.0: expected at least 0"),
    ],
)
def test_wrong_options_are_one_line(options, problem, folder, capsys):
    (folder / "bad.jinja").write_text("{{ messages")
    arguments = [option.format(folder=folder) if option.startswith("{") else option for option in options]
    assert cli.main(["chat", str(folder / "run"), *arguments]) == 2
    err = capsys.readouterr().err
    assert problem in err and err.count("\n") == 1


def test_a_folder_without_a_template_is_refused(tmp_path, capsys, monkeypatch):
    write_chat_model(tmp_path / "hf", None)
    jf.import_run(tmp_path / "hf", tmp_path / "run", certificate=False)
    typed(monkeypatch, "What?\n")
    assert cli.main(["chat", str(tmp_path / "run")]) == 2
    assert "has no chat template, in its objective or its imported tokenizer; expected one" in capsys.readouterr().err
