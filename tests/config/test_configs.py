"""Every config in configs/ loads, survives JSON, fits its own model, and trains."""

import json
import re
import types

import jax
import numpy as np
import pytest
import tiny
import tiny_images
import tiny_sounds
import tiny_speech
import tiny_waveforms
from config_kinds import of_each_kind
from small_bert import noisy_params

import jaxformer as jf
from jaxformer import config
from jaxformer.data.sources.sources import JsonLines, Mixture, TextFiles
from jaxformer.data.tasks.classification import Classify
from jaxformer.data.tasks.dialogue import Dialogue
from jaxformer.data.tasks.multi import MultiTask
from jaxformer.data.tasks.pairs import TextPairs
from jaxformer.data.tasks.preferences import Preferences
from jaxformer.data.tasks.question_answering import AnswerSpans
from jaxformer.data.tasks.segmentation import SegmentedImages
from jaxformer.data.tasks.seq2seq import TextToText
from jaxformer.data.tasks.summary_sentences import SummarySentences
from jaxformer.data.tasks.tagging import TagTokens
from jaxformer.data.tokenizers import ByteLevelBpe, WordPiece
from jaxformer.parallel import sharding
from jaxformer.parallel.sharding import Mesh
from jaxformer.training.preparation import check_tokenizer
from jaxformer.training.state import abstract_state

CONFIGS = sorted((tiny.ROOT / "configs").glob("*.py"))
QUICKSTARTS = [file for file in CONFIGS if file.stem.endswith("_quickstart")]


def shrunk(experiment):
    """Overrides that make a config small enough for a test, whatever its family."""
    if {"durations", "speaker"} & experiment.data.task.row.keys():
        return tiny_speech.shrunk(experiment)
    if "samples" in experiment.model.inputs():
        return tiny_waveforms.shrunk(experiment)
    if not experiment.data.task.reads_text:
        return tiny_images.shrunk(experiment)
    if "images" in experiment.model.inputs():
        return tiny_images.shrunk_towers(experiment)
    if "log_mel" in experiment.model.inputs():
        return tiny_sounds.shrunk(experiment)
    model = getattr(experiment.model, "backbone", experiment.model)
    path = "model" if model is experiment.model else "model.backbone"
    names = ["transformer"] if hasattr(model, "transformer") else ["encoder", "decoder"]
    sizes = {"width": 16, "depth": 1, "heads": 2}  # Compiling takes the time, and takes it by the layer.
    small = {f"{path}.{name}.{field}": size for name in names for field, size in sizes.items()}
    task = experiment.data.task
    for name in ("length", "input_length"):
        if getattr(task, name, None) is not None:
            small[f"data.task.{name}"] = min(64, getattr(task, name))
    if hasattr(task, "predictions"):
        small["data.task.predictions"] = 10
    if isinstance(task, AnswerSpans):
        small |= {"data.task.stride": 16, "data.task.question_length": 16}
    if hasattr(experiment.objective, "scored"):
        small["objective.scored"] = 2 if experiment.objective.scored is None else min(2, experiment.objective.scored)
    if experiment.objective.decoding is not None:
        small |= {"objective.decoding.max_new_tokens": 4, "objective.decoding.num_beams": 1}
    sentinels = getattr(experiment.tokenizer, "sentinels", 0)
    least = 280 if isinstance(experiment.tokenizer, ByteLevelBpe) else 60
    vocab = {f"{path}.vocab": 300, "tokenizer.vocab": least + sentinels, "tokenizer.path": None}
    if not hasattr(experiment.tokenizer, "vocab"):  # It comes with weights, which are not fetched here.
        vocab = {f"{path}.vocab": 300, "tokenizer": WordPiece(60)}
    init = "start" if experiment.objective.needs_reference else None
    return small | vocab | {"data.batch": 8, "data.workers": 0, "steps": 2, "mesh": Mesh(1), "init": init}


def tiny_sources(experiment, folder):
    """Texts in place of the config's own, or pairs where its task reads two columns, or both where it reads both."""
    task = experiment.data.task
    if {"durations", "speaker"} & task.row.keys():
        return tiny_speech.sources(folder)
    if "samples" in experiment.model.inputs():
        return tiny_waveforms.read_out(experiment, folder)
    if "boxes" in task.row:
        return tiny_images.boxed(experiment, folder)
    if "clips" in experiment.model.inputs():
        return tiny_images.clips(folder, experiment)
    if isinstance(task, SegmentedImages):
        return tiny_images.segmented(folder, experiment)
    if not task.reads_text:
        return tiny_images.sources(folder)
    if "images" in experiment.model.inputs():
        return tiny_images.described(experiment, folder)
    if "log_mel" in experiment.model.inputs():
        return tiny_sounds.read_out(experiment, folder)
    pairing = task.text_to_text if isinstance(task, MultiTask) else task
    sources = {}
    for split in ("train", "validation"):
        texts = TextFiles((str(folder / f"{split}.txt"),))
        sources[f"data.{split}"] = texts
        lines = [line for line in (folder / f"{split}.txt").read_text().split("\n") if line]
        examples = [example(pairing, line) for line in lines]
        if any(examples):
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, examples)))
            sources[f"data.{split}"] = JsonLines((str(folder / f"{split}.jsonl"),))
        if isinstance(task, MultiTask):
            sources[f"data.{split}"] = Mixture((texts, sources[f"data.{split}"]), (1.0, 3.0))
    return sources


def example(task, line):
    """The columns of a line, for a task that reads columns; None for one that reads texts."""
    if isinstance(task, TextToText):
        return {task.inputs: f"saw {line}", task.targets: line[::-1]}
    if isinstance(task, SummarySentences):
        return {task.document: [line, line[::-1]], task.summary: line[::-1]}
    if isinstance(task, Dialogue):
        return {task.messages: [{"role": "user", "content": line}, {"role": "assistant", "content": line[::-1]}]}
    if isinstance(task, Preferences):
        return {task.prompt: line, task.chosen: line, task.rejected: line[::-1]}
    if isinstance(task, TextPairs):
        return {task.first: line[::-1], task.second: line}
    if isinstance(task, Classify):
        return {task.text: line, task.pair or "other": line[::-1], task.label: len(line) % 2}
    if isinstance(task, TagTokens):
        return tagged(line, task)
    return asked(line) if isinstance(task, AnswerSpans) else None


def tagged(line, task):
    """The words of a line, each with one of the task's tags."""
    words = line.split()
    return {"words": words, "tags": [task.labels[len(word) % len(task.labels)] for word in words]}


def asked(line):
    """A question on a line that its last word answers."""
    start = line.rfind(" ") + 1
    return {"question": "What is last?", "context": line, "answers": {"text": [line[start:]], "answer_start": [start]}}


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def file(request):
    return request.param


def test_it_loads_and_its_json_is_the_very_same_experiment(file):
    experiment = jf.load(file)
    assert config.from_json(config.to_json(experiment)) == experiment


def test_its_docstring_is_the_command_and_it_is_short(file):
    text = file.read_text()
    docstring = re.match(r'"""(.*?)"""', text, re.DOTALL)[1]
    assert f"python train.py configs/{file.name}" in docstring
    assert len(text.splitlines()) <= 60


@pytest.mark.slow
def test_its_state_can_be_planned_and_its_rows_fit_its_model(file):
    experiment = jf.load(file)
    state = abstract_state(experiment, sharding.make_mesh(Mesh(1, 1, 1)))
    params = state.params if experiment.lora is None else state.params["base"]
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    if "tokens" not in experiment.model.inputs():
        needs_pycocotools(experiment)
        experiment.objective.check(experiment.model, experiment.data.task.row)
        return
    prefix, model = experiment.model.part("tokens")
    table = (params[prefix.strip("/")] if prefix else params)["embeddings"]["token"]
    stack = getattr(model, "transformer", None) or model.encoder
    assert table.shape == (model.vocab, stack.width)
    if hasattr(experiment.tokenizer, "vocab"):
        assert model.vocab >= experiment.tokenizer.vocab
        check_tokenizer(experiment, types.SimpleNamespace(vocab_size=experiment.tokenizer.vocab))


def needs_pycocotools(experiment):
    """Skips the test if the experiment needs a package of an extra that is not installed."""
    if getattr(experiment.objective, "average_precision", False):
        pytest.importorskip("pycocotools")


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", of_each_kind(QUICKSTARTS + CONFIGS, "model", "objective", "data.task"), ids=lambda path: path.stem
)
def test_it_trains_when_it_is_shrunk(file, tiny_config, tmp_path):
    whole = jf.load(file)
    needs_pycocotools(whole)
    experiment = config.override(whole, shrunk(whole) | tiny_sources(whole, tiny_config.parent))
    if experiment.init is not None:
        params = noisy_params(experiment.model, np.zeros((1, 4), np.int32))
        jf.export_hf(experiment.model, params, None, tmp_path / "hf")
        experiment = config.override(experiment, {"init": str(tmp_path / "hf")})
    run = jf.fit(experiment, tmp_path / "run", quiet=True)
    assert run.step == 2
    assert np.isfinite(tiny.metrics(run.folder, "validation")[-1]["loss"])
    if file in QUICKSTARTS and file.stem != "moe_quickstart":
        told = jf.export_run(run, tmp_path / "hf")  # PyTorch loads it and computes the same.
        assert re.search(r"(\d+) of \1 comparisons", told)


@pytest.mark.slow
def test_the_quickstart_learns_from_the_bible(tmp_path):
    few = {"steps": 20, "evaluation.every": 20, "evaluation.batches": 2}
    few |= {
        "optimizer.schedule.warmup": 5,
        "optimizer.schedule.peak": 1e-2,
    }  # Twenty steps of its own rate move little.
    experiment = jf.load(tiny.ROOT / "configs" / "bert_quickstart.py", few)
    run = jf.fit(experiment, tmp_path / "run", quiet=True)
    assert run.evaluate()["masked_lm_loss"] < np.log(experiment.model.vocab) - 0.2
    assert run.tokenizer.vocab_size == 4096
