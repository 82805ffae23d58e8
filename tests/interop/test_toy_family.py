"""A family defined outside of the library goes wherever the library's own do."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from small_bert import assert_trees_close, assert_trees_identical
from tiny import write_texts
from toy_family import FAMILIES, Toy

import jaxformer as jf
from jaxformer.config import Checkpoint, Experiment
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import TextFiles
from jaxformer.data.tasks.causal_lm import NextToken
from jaxformer.data.tokenizers import WordPiece
from jaxformer.errors import InputError
from jaxformer.models.classifier import Classifier
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.parallel import sharding
from jaxformer.planning import compiling, operations, plans, topologies
from jaxformer.runs.run import open_run
from jaxformer.training.loop import trace_step
from jaxformer.training.optimizers import AdamW, Schedule
from jaxformer.training.warm_start import Weights, check_model, match


@pytest.fixture(scope="module", autouse=True)
def allowed():
    jf.allow("toy_family")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    texts = tmp_path_factory.mktemp("texts") / "train.txt"
    write_texts(texts, 40, seed=0)
    data = Data(TextFiles((str(texts),)), NextToken(16), batch=8, pack=True)
    return Experiment(
        Toy(),
        CausalLM(),
        data,
        WordPiece(vocab=80),
        AdamW(Schedule(1e-2)),
        steps=6,
        checkpoint=Checkpoint(every=3, keep=4),
    )


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory):
    return jf.fit(experiment, tmp_path_factory.mktemp("run"), quiet=True)


@pytest.mark.slow
def test_it_trains_and_resumes(run, experiment, tmp_path):
    jf.fit(
        dataclasses.replace(experiment, steps=3, optimizer=AdamW(Schedule(1e-2, decay="constant"))),
        tmp_path / "a",
        True,
    )
    resumed = jf.fit(
        dataclasses.replace(experiment, optimizer=AdamW(Schedule(1e-2, decay="constant"))), tmp_path / "a", True
    )
    straight = jf.fit(
        dataclasses.replace(experiment, optimizer=AdamW(Schedule(1e-2, decay="constant"))), tmp_path / "b", True
    )
    assert resumed.step == straight.step == 6
    assert_trees_identical(resumed.params, straight.params)
    assert set(run.params) == {"words", "places", "body"}


@pytest.mark.slow
def test_it_generates(run):
    (answer,) = run.with_decoding(max_new_tokens=5, temperature=0.0).predict(["the dog"])
    assert answer.continuation
    assert open_run(run.folder).model == run.model


@pytest.mark.slow
def test_it_goes_to_hugging_face_with_a_certificate_and_comes_back(run, tmp_path):
    pytest.importorskip("torch")
    summary = jf.export_run(run, tmp_path / "hf")
    assert "comparisons with transformers" in summary
    model, params = jf.import_hf(tmp_path / "hf", families=FAMILIES)
    assert isinstance(model, Toy)
    assert_trees_close(params, jax.device_get(run.params), 1e-6)
    assert "AutoModelForCausalLM" in (tmp_path / "hf" / "README.md").read_text()


def test_it_becomes_programs(run, tmp_path):
    jf.export_stablehlo(run, tmp_path / "stablehlo")
    assert "up to 32 tokens" in (tmp_path / "stablehlo" / "README.md").read_text()
    pytest.importorskip("onnxruntime")
    assert "differ by" in jf.export_onnx(run, tmp_path / "onnx")
    assert (tmp_path / "onnx" / "onnx" / "model.onnx").is_file()


@pytest.mark.slow
def test_others_start_from_it(run, experiment, tmp_path):
    started = jf.fit(
        dataclasses.replace(experiment, init=str(run.folder), steps=1, optimizer=AdamW(Schedule(0.0))),
        tmp_path / "run",
        True,
    )
    assert_trees_close(started.params["body"], run.params["body"], 1e-6)
    model = Classifier(run.model, ("old", "new"), "last")
    check_model("x", run.model, model)
    params = nn.unbox(model.init(jax.random.key(0), np.zeros((1, 4), np.int32)))["params"]
    start = match("x", Weights(run.model, run.params), Weights(model, params))
    assert start.summary.endswith("new: head")
    assert_trees_identical(start.params["backbone"], run.params)


def test_it_is_planned(experiment):
    """The plan's parts that need no compiler; then a whole plan where one is installed."""
    mesh, topology = sharding.Mesh(data=2, fsdp=4), topologies.parse("v5e:2x4")
    experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, vocab=96), mesh=mesh)
    plans.check(experiment, topology)
    devices = sharding.make_mesh(mesh)
    memory = plans.state_memory(experiment, topology, devices)
    assert memory.optimizer == pytest.approx(2 * memory.params, rel=0.01), "AdamW has two moments"
    flops = operations.count(trace_step(experiment, devices))
    assert 0.9 < flops / plans.model_flops(experiment, devices) < 1.5
    try:
        compiling.check_compiler(topology)
    except InputError:
        return
    plan = jf.plan(experiment, topology)
    assert plan.memory.fits and plan.memory.params == memory.params and plan.flops == flops
    assert plan.roofline is not None and "all-reduce" in {one.kind for one in plan.collectives}
