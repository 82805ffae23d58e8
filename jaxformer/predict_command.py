"""The command `jaxformer predict`: reads requests, and prints or saves the answers of a run's model to them."""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxformer import run_commands, storage
from jaxformer.command_arguments import Parser, add_step
from jaxformer.decoding_options import DECODING, SAMPLING, SEARCH, SPEAKING, TRANSCRIBING
from jaxformer.errors import InputError

if TYPE_CHECKING:
    from jaxformer.predictors.base import Answer


def predict(arguments: list[str]) -> None:
    """Runs `jaxformer predict`: prints the answer of a run's model to each text, such as filled masks or a
    continuation.
    """
    what = "Fills each [MASK] of the texts, continues them or answers them, as the run's model was trained to."
    parser = Parser("predict", what)
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("texts", metavar="TEXT", nargs="*", help='such as "In the beginning [MASK] created"')
    parser.add_argument("--input", metavar="FILE", help="a UTF-8 file with one text per line; - for standard input")
    parser.add_argument(
        "--among",
        metavar="VALUE",
        nargs="+",
        help="rank these texts for each image, or these images (or folders of images) for each text",
    )
    parser.add_argument("--json", action="store_true", help="print the answers as JSON objects, one per line")
    parser.add_argument(
        "--out",
        metavar="PATH",
        help="save the answers to this path, texts as JSON, transcripts as its ending says, such as .srt or .vtt, "
        "speech as a .wav or a .html page, and images to a folder, a .png or a .html page",
    )
    drawing = parser.add_argument_group("for models that generate images")
    drawing.add_argument("--rank-by", "--rank_by", metavar="RUN", help="a run of a CLIP by which images are ordered")
    drawing.add_argument("--keep", type=int, metavar="N", help="with --rank-by, keep only the best N images per text")
    add_step(parser)
    writing = parser.add_argument_group("for models that generate text; the defaults are those of the run's config")
    hearing = parser.add_argument_group("for models that transcribe sounds")
    speaking = parser.add_argument_group("for models that speak")
    speaking.add_argument("--vocoder", metavar="FOLDER", help="a Hugging Face folder of a vocoder, SpeechT5HifiGan")
    groups = (
        (writing, DECODING),
        (hearing, TRANSCRIBING),
        (hearing, SEARCH),
        (drawing, SAMPLING),
        (speaking, SPEAKING),
    )
    for group, settings in groups:
        for name, (kind, meaning) in settings.items():
            names = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
            group.add_argument(*names, type=kind, metavar="VALUE", help=meaning)
    samples = dict.fromkeys(("--num_samples", "--num-samples", "--num_return_sequences"))
    writing.add_argument(*samples, type=int, default=1, metavar="N", help="number of sampled answers per text")
    options = parser.parse(arguments)
    lines = _read_lines(options.input) if options.input else []
    texts = options.texts + lines
    if not texts:
        raise InputError("predict: no text; give one after the run, or a file with --input")
    run = _with_settings(run_commands.opened(options.run, step=options.step), options)
    if options.among and options.num_samples > 1:
        raise InputError(f"--num_samples {options.num_samples}: --among samples no answers; leave one of them out")
    if options.keep is not None and not options.rank_by:
        raise InputError(f"--keep {options.keep}: needs a run that ranks images; set --rank-by")
    plain = not (options.json or options.out or options.among or options.num_samples > 1)
    if len(texts) == 1 and plain and run.streams:
        for piece in run.stream(texts[0]):
            print(piece, end="", flush=True)
        print()
        return
    _print_answers(run, options, lines)


def _with_settings(run, options: argparse.Namespace):
    """Returns a copy of the run with the settings, and the vocoder, of the command line."""

    def given(names: Iterable[str]) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(options, name)) is not None}

    run = (
        run.with_decoding(**given((*DECODING, *SEARCH, *SAMPLING)))
        .with_transcribing(**given(TRANSCRIBING))
        .with_speaking(**given(SPEAKING))
    )
    return run if options.vocoder is None else with_vocoder(run, options.vocoder)


def with_vocoder(run, folder: str):
    """Returns a copy of a run that speaks with the vocoder of a Hugging Face folder."""
    from jaxformer.interop.huggingface.models import import_hf

    model, params = import_hf(folder)
    return run.with_vocoder(model, params)


def _print_answers(run, options: argparse.Namespace, lines: Sequence[str]) -> None:
    from jaxformer.progress import display, phase

    with display(stderr=True), phase("predicting"):
        answers = _predict_each(run, options, lines)
    if options.out:
        import jax

        if jax.process_index() == 0:  # All processes have the same answers.
            save_answers(list(filter(None, answers)), options.out)
        return
    for answer in answers:
        print(
            json.dumps(answer.to_json() if answer else {"text": ""}, ensure_ascii=False)
            if options.json
            else answer or ""
        )


def save_answers(answers: Sequence["Answer"], out: str) -> None:
    """Saves answers to a file, in the file format of their class: JSON for texts, or a subtitle format for transcripts.

    Args:
      answers: the answers in the order of the inputs, without entries for blank input lines.
      out: local path, or path in a bucket.
    """
    if storage.is_remote(out):
        with tempfile.TemporaryDirectory(prefix="jaxformer-") as folder:
            _save_here(answers, Path(folder, out.rpartition("/")[2]))
            storage.upload(Path(folder), out.rpartition("/")[0])
        return
    _save_here(answers, Path(out))


def _save_here(answers: Sequence["Answer"], out: Path) -> None:
    try:
        if len(answers) == 1:
            answers[0].save(out)
        elif answers:
            answers[0].save_all(answers, out)
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}") from error


def _predict_each(run, options: argparse.Namespace, lines: Sequence[str]) -> list:
    """Computes the answers to the texts of the command line, followed by the answers to the input lines.

    Args:
      run: the run whose model answers.
      options: options of `jaxformer predict`.
      lines: lines of the file given by `--input`. Blank lines are empty strings.

    Returns:
      A flat list with `num_samples` answers for each text. For an empty line, each of them is None.
    """
    texts, num_samples = options.texts, options.num_samples
    asked = [*texts, *filter(None, lines)]
    ranker = run_commands.opened(options.rank_by) if options.rank_by else None  # Fails before the images are drawn.
    found = run.rank(asked, options.among) if options.among else run.predict(asked, num_samples)
    several = found if num_samples > 1 else [[answer] for answer in found]
    if ranker is not None:
        from jaxformer.runs.reranking import reranked

        several = [reranked(answers, ranker, options.keep) for answers in several]
    answers = iter(several)
    order = [True] * len(texts) + list(map(bool, lines))
    return [answer for given in order for answer in (next(answers) if given else [None] * num_samples)]


def _read_lines(path: str) -> list[str]:
    """Reads the lines of a file, or of standard input if `path` is `-`. A line of white space becomes the empty
    string.
    """
    try:
        content = sys.stdin.buffer.read() if path == "-" else storage.read_bytes(path)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"--input {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--input {path}: not UTF-8 text, at byte {error.start}") from error
    # Not `splitlines`: only a newline ends a line; other Unicode separators are part of a text.
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if not any(map(str.strip, lines)):
        raise InputError(f"--input {path}: empty; expected one text per line")
    return [line if line.strip() else "" for line in lines]
