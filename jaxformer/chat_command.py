"""The command `jaxformer chat`: a conversation with a chat model in the terminal."""

import dataclasses
import datetime
import sys
from typing import TYPE_CHECKING

from jaxformer import run_commands, storage
from jaxformer.command_arguments import Parser, add_step
from jaxformer.decoding_options import DECODING
from jaxformer.errors import InputError

if TYPE_CHECKING:
    from jaxformer.data.tasks.turns import TurnTemplate
    from jaxformer.runs.conversation import Conversation
    from jaxformer.runs.run import Run

OPTIONS = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
"""Names of the options that set fields of `Decoding`."""
PROMPT = "> "
HINT = "/reset forgets the conversation, /exit ends it, Ctrl-C ends an answer"


def chat(arguments: list[str]) -> None:
    """Runs `jaxformer chat`: answers messages from the terminal or from standard input."""
    parser = Parser(
        "chat",
        f"A conversation with a chat model. {HINT}. Without a terminal, each line of standard input is a message.",
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder, such as that of an imported chat model")
    parser.add_argument("--system", metavar="TEXT", default="", help="system prompt, with which the dialogue begins")
    parser.add_argument("--template", metavar="FILE", help="a Jinja chat template to use instead of that of the run")
    add_step(parser)
    for name in OPTIONS:
        kind, meaning = DECODING[name]
        parser.add_argument(f"--{name}", type=kind, help=meaning)
    options = parser.parse(arguments)
    template = _read_template(options.template) if options.template else None  # Before anything large is read.
    run = run_commands.opened(options.run, step=options.step)
    given = {name: value for name in OPTIONS if (value := getattr(options, name)) is not None}
    from jaxformer.predictors.base import Chats
    from jaxformer.runs.conversation import Conversation

    template = template or template_of(run)
    if template is None and isinstance(run.predictor, Chats):
        raise InputError(
            f"{run.folder}: has no chat template, in its objective or its imported tokenizer; expected one"
        )
    conversation = Conversation(run.with_decoding(**given), template, options.system)
    if sys.stdin.isatty():
        _talk(conversation)
    else:
        _answer_lines(conversation)


def template_of(run: "Run") -> "TurnTemplate | None":
    """Returns the template that formats dialogues for a run: that of its objective, or of the tokenizer that it was
    imported with, with today's date. None if there is neither.
    """
    from jaxformer.data.tasks.chat_template import ChatTemplate, default_template

    own = getattr(run.objective, "template", None)
    if own is None:
        from jaxformer.interop.huggingface.runs import read_origin

        origin = read_origin(run.folder)
        text = None if origin is None else default_template(origin.chat_template)
        own = None if text is None else ChatTemplate(text)
    if isinstance(own, ChatTemplate) and own.date is None:
        return dataclasses.replace(own, date=datetime.date.today().isoformat())
    return own


def _read_template(path: str) -> "TurnTemplate":
    from jaxformer.data.tasks.chat_template import ChatTemplate

    try:
        text = storage.read_bytes(path).decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"--template {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--template {path}: not UTF-8 text, at byte {error.start}") from error
    return ChatTemplate(text, datetime.date.today().isoformat())


def _talk(conversation: "Conversation") -> None:
    """Reads messages from the terminal, and prints the answers while they are generated."""
    import readline  # noqa: F401  Gives `input` a history and keys to edit a line.

    print(HINT, file=sys.stderr)
    while True:
        try:
            line = input(PROMPT)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        try:
            if not _respond(conversation, line):
                return
        except InputError as error:  # Only this message is refused.
            print(f"jaxformer: {error}", file=sys.stderr)


def _answer_lines(conversation: "Conversation") -> None:
    """Answers each line of standard input."""
    for number, content in enumerate(sys.stdin.buffer, 1):
        try:
            line = content.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"standard input, line {number}: not UTF-8 text, at byte {error.start}") from error
        if not _respond(conversation, line.rstrip("\r\n")):
            return


def _respond(conversation: "Conversation", line: str) -> bool:
    """Executes a command that begins with a slash, or prints the answer to a message. Ctrl-C ends the answer. Returns
    whether the conversation continues.
    """
    word = line.strip()
    if word == "/exit":
        return False
    if word == "/reset":
        conversation.reset()
    elif word.startswith("/") and " " not in word:
        print(f"{word}: no such command; expected /reset or /exit", file=sys.stderr)
    elif word:
        _print_answer(conversation, line)
    return True


def _print_answer(conversation: "Conversation", message: str) -> None:
    pieces = conversation.ask(message)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    finally:
        pieces.close()  # Adds the answer so far to the conversation.
    print(flush=True)
    if conversation.dropped:
        print(f"({conversation.dropped} earlier messages do not fit in the prompt)", file=sys.stderr)
