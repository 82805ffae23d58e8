"""The command `jaxformer assistant`: answers spoken questions with a chain of runs."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from jaxformer import predict_command, run_commands, storage
from jaxformer.command_arguments import Parser
from jaxformer.errors import InputError

if TYPE_CHECKING:
    from jaxformer.predictors.assistant import Assistant, SpokenAnswer


def assistant(arguments: list[str]) -> None:
    """Runs `jaxformer assistant`: answers spoken questions. Prints each question as it was understood and its answer,
    and saves the spoken answers.
    """
    what = "Answers spoken questions: one run transcribes them, one answers the text, and one speaks the answer."
    parser = Parser("assistant", what)
    parser.add_argument("questions", metavar="SOUND", nargs="*", help="a sound file with a question")
    parser.add_argument("--listen", metavar="RUN", required=True, help="a run that transcribes sounds")
    parser.add_argument(
        "--think",
        metavar="RUN",
        required=True,
        help="a run that answers texts: a dialogue model, an encoder-decoder such as a translator, or a classifier",
    )
    parser.add_argument("--speak", metavar="RUN", help="a run that speaks; by default, answers are only texts")
    parser.add_argument("--vocoder", metavar="FOLDER", help="a Hugging Face folder of a vocoder, for --speak")
    parser.add_argument(
        "--replies", metavar="FILE", help="for a classifier: a JSON file that maps each label to a text to say"
    )
    parser.add_argument("--json", action="store_true", help="print the answers as JSON objects, one per line")
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="save the answer to this path, as its ending says: .wav, .flac, .ogg, .html, .txt or .json; several "
        "answers to a folder, a .html or a .json file",
    )
    options = parser.parse(arguments)
    _check_options(options)
    chain = _opened(options)
    answers = [_answered(chain, question, options.json) for question in options.questions]
    if options.out:
        predict_command.save_answers(answers, options.out)


def _check_options(options: argparse.Namespace) -> None:
    """Raises InputError for combinations of options that cannot work, before anything is read."""
    if not options.questions:
        raise InputError("assistant: no question; give the path of a sound file")
    if options.vocoder is not None and options.speak is None:
        raise InputError(f"--vocoder {options.vocoder}: needs a run that speaks; set --speak")
    if options.out is None:
        return
    from jaxformer.predictors.assistant import SPOKEN
    from jaxformer.predictors.base import PAGES

    kind = Path(options.out).suffix.lower()
    several = len(options.questions) > 1
    known = ("", *PAGES, ".json") if several else (*SPOKEN, *PAGES, ".txt", ".json")
    if kind not in known:
        count, folder = ("several answers", "a folder, or ") if several else ("one answer", "")
        endings = ", ".join(filter(None, known))
        raise InputError(f"--out {options.out}: {count}; expected {folder}a path that ends in {endings}")
    if kind in SPOKEN and options.speak is None:
        raise InputError(f"--out {options.out}: needs a run that speaks; set --speak")


def _opened(options: argparse.Namespace) -> "Assistant":
    """Opens the runs, and checks that all questions are sounds."""
    replies = {} if options.replies is None else _read_replies(options.replies)
    listen = run_commands.opened(options.listen)
    think = run_commands.opened(options.think)
    speak = None if options.speak is None else run_commands.opened(options.speak)
    if speak is not None and options.vocoder is not None:
        speak = predict_command.with_vocoder(speak, options.vocoder)
    from jaxformer.predictors.assistant import Assistant

    chain = Assistant(listen, think, speak, replies)
    listen.prepare_requests(options.questions)  # Raises an error before the first answer is computed.
    return chain


def _answered(chain: "Assistant", question: str, as_json: bool) -> "SpokenAnswer":
    """Answers a question, and prints the answer while it is computed, or as JSON once it is complete."""
    from jaxformer.predictors.assistant import collected

    pieces = []
    for piece in chain.stream(question):
        pieces.append(piece)
        if not as_json and piece.kind != "speech":
            print(f"{piece.text}\n  " if piece.kind == "heard" else piece.text, end="", flush=True)
    if not as_json:
        print()
    answer = collected(question, pieces)
    if as_json:
        print(json.dumps(answer.to_json(), ensure_ascii=False))
    return answer


def _read_replies(path: str) -> dict[str, str]:
    """Reads the texts to say for the labels of a classifier.

    Raises:
      InputError: If the file cannot be read, or is not a JSON object whose values are texts.
    """
    try:
        found = json.loads(storage.read_bytes(path).decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"--replies {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # JSON may be nested too deeply.
        raise InputError(f"--replies {path}: not JSON: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(text, str) and text.strip() for text in found.values()):
        raise InputError(f'--replies {path}: expected a JSON object of labels and texts, such as {{"time": "Noon."}}')
    return found
