"""Every config in configs/ loads, survives JSON, fits its own model, and trains."""

import re

import jax
import numpy as np
import pytest
import tiny

import jaxformer as jf
from jaxformer import config, sharding
from jaxformer.data.sources import TextFiles
from jaxformer.sharding import Mesh
from jaxformer.state import abstract_state

CONFIGS = sorted((tiny.ROOT / "configs").glob("*.py"))

SHRUNK = {
    "model.transformer.width": 16,
    "model.transformer.depth": 2,
    "model.transformer.heads": 2,
    "model.vocab": 200,
    "tokenizer.vocab": 60,
    "tokenizer.path": None,
    "data.batch": 8,
    "steps": 2,
    "mesh": Mesh(),
}


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


def test_its_state_can_be_planned_and_its_rows_fit_its_model(file):
    experiment = jf.load(file)
    state = abstract_state(experiment, sharding.make_mesh(Mesh(1, 1, 1)))
    table = state.params["embeddings"]["token"]
    assert table.shape == (experiment.model.vocab, experiment.model.transformer.width)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state.params))
    assert experiment.model.vocab >= experiment.tokenizer.vocab
    assert experiment.model.positions >= experiment.data.task.row["tokens"].capacity


@pytest.mark.slow
def test_it_trains_when_it_is_shrunk(file, tiny_config, tmp_path):
    folder = tiny_config.parent
    texts = {split: TextFiles((str(folder / f"{split}.txt"),)) for split in ("train", "validation")}
    sources = {f"data.{split}": source for split, source in texts.items()}
    experiment = jf.load(file, SHRUNK | sources)
    run = jf.fit(experiment, tmp_path / "run", quiet=True)
    assert run.step == 2
    assert np.isfinite(run.evaluate()["loss"])


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
