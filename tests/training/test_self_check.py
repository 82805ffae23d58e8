"""Fast implementations are compared with plain ones before a run uses them."""

import dataclasses
import json
import shutil

import jax
import pytest
import tiny

from jaxformer import cli
from jaxformer.errors import InputError
from jaxformer.layers import grouped, kernels, pipeline
from jaxformer.layers.attention import AttendOptions, attend
from jaxformer.layers.cache import KeyValue
from jaxformer.layers.experts import ExpertMlp
from jaxformer.parallel import sharding
from jaxformer.parallel.sharding import Mesh
from jaxformer.training import self_check

LONG = {"data__task__length": 256, "model__max_length": 256, "model__transformer__attention_dropout": 0}


def right(query, key, value, mask, scale):
    return attend(query, KeyValue(key, value), AttendOptions(mask=mask, scale=scale, kernel="blocks"))


def unordered(query, key, value, mask, scale):
    """Attends to later tokens too."""
    mask = mask and dataclasses.replace(mask, query_order=None, key_order=None, in_order=False)
    return right(query, key, value, mask, scale)


def with_wrong_gradient(query, key, value, mask, scale):
    return right(query, key, value + 0.1 * (jax.lax.stop_gradient(value) - value), mask, scale)


@pytest.fixture
def kernel(monkeypatch):
    """Replaces splash attention, as if it ran on a CPU. In a fresh process, with nothing compared yet."""
    monkeypatch.setattr(kernels, "PLATFORMS", {"splash": "cpu"})
    monkeypatch.setattr(self_check, "_passed", set())
    return lambda function: monkeypatch.setattr(kernels, "splash", function)


@pytest.fixture
def cache(tmp_path):
    before, folder = jax.config.values["jax_compilation_cache_dir"], tmp_path / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    yield folder / self_check.FOLDER
    jax.config.update("jax_compilation_cache_dir", before)


def check(experiment):
    self_check.run(experiment, sharding.make_mesh(experiment.mesh))


@pytest.mark.slow
def test_what_passes_is_kept_beside_the_compilation_cache(tiny_config, kernel, cache, monkeypatch):
    experiment = tiny.load(tiny_config, **LONG, mesh=Mesh(2, 2, 2))
    kernel(right)
    check(experiment)
    (file,) = cache.iterdir()
    kept = json.loads(file.read_text())
    assert kept["device"] == "cpu" and len(kept["passed"]) == 2
    assert "splash attention (2 heads of 8, 2 of keys, causal, float32, data 2 × fsdp 2 × tensor 2)" in kept["passed"]
    monkeypatch.setattr(self_check, "difference", None)  # Nothing is compared again, in another process either.
    monkeypatch.setattr(self_check, "_passed", set())
    check(experiment)


@pytest.mark.slow
@pytest.mark.parametrize("broken", [unordered, with_wrong_gradient])
def test_a_broken_kernel_is_refused(broken, tiny_config, kernel):
    kernel(broken)
    with pytest.raises(
        InputError, match=r"^self-check: splash attention \(.*\) on cpu differs .* by \d+%, expected at"
    ):
        check(tiny.load(tiny_config, **LONG, mesh=Mesh(1, 1, 1)))


@pytest.mark.slow
def test_a_run_with_a_broken_kernel_ends_in_one_line(tiny_config, kernel, cache, tmp_path, capsys):
    kernel(unordered)
    flags = ["--data.task.length", "256", "--model.max_length", "256", "--model.transformer.attention_dropout", "0"]
    command = ["train", str(tiny_config), *flags, "--steps", "1", "--mesh.data", "1", "--workdir", str(tmp_path / "a")]
    assert cli.main(command) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "set model.transformer.attention.kernel=blocks, or train with --no-self-check" in line
    assert not (tmp_path / "a").exists() and not cache.exists()
    assert cli.main([*command, "--no-self-check"]) == 0


def test_short_rows_and_plain_attention_need_no_check(tiny_config, kernel):
    kernel(None)
    mesh = sharding.make_mesh(Mesh(1, 1, 1))
    assert not list(self_check.checks(tiny.load(tiny_config), mesh))
    plain = {"model__transformer__attention__kernel": "blocks"}
    assert not list(self_check.checks(tiny.load(tiny_config, **LONG, **plain), mesh))


@pytest.mark.slow
@pytest.mark.parametrize("capacity", [None, 1.5])
def test_experts_on_a_mesh_are_compared_with_all_experts_of_all_tokens(capacity, tiny_config, cache, monkeypatch):
    mlp = ExpertMlp(experts=4, top_k=2, width=32, capacity=capacity)
    experiment = tiny.load(tiny_config, model__transformer__mlp=mlp, mesh=Mesh(data=1, fsdp=2, tensor=2, expert=2))
    monkeypatch.setattr(self_check, "_passed", set())
    check(experiment)
    shutil.rmtree(cache)
    monkeypatch.setattr(self_check, "_passed", set())
    move = grouped.move
    monkeypatch.setattr(grouped, "move", lambda x, source, target: move(x[::-1], source, target))
    with pytest.raises(InputError, match=r"self-check: experts \(4, 2 a token, .* differs from the plain computation"):
        check(experiment)


PIPELINE = Mesh(1, fsdp=2, tensor=2, pipeline=2, pipeline_microbatches=4, pipeline_repeats=2)


def in_stages(tiny_config, **fields):
    return tiny.load(tiny_config, model__transformer__depth=4, mesh=PIPELINE, **fields)


@pytest.mark.slow
def test_a_pipeline_is_compared_with_a_loop_over_blocks(tiny_config, cache, monkeypatch):
    monkeypatch.setattr(self_check, "_passed", set())
    check(in_stages(tiny_config, model__transformer__remat="full"))
    (file,) = cache.iterdir()
    mesh = "pipeline 2 × fsdp 2 × tensor 2"
    expected = f"pipeline (micro-batches 4, repeats 2, period 1, remat full, {mesh})"
    assert json.loads(file.read_text())["passed"] == [expected]


def without_order(blocks, stage, schedule):
    """Each stage computes its blocks in reverse order."""
    return jax.tree.map(lambda array: array[:, ::-1], exchanged(blocks, stage, schedule))


def with_wrong_masks(arrays, axis, ring):
    """Vectors travel, but masks and positions stay with their stage."""
    return (permuted(arrays[0], axis, ring), arrays[1]) if isinstance(arrays, tuple) else permuted(arrays, axis, ring)


exchanged, permuted = pipeline._exchange_stage_parameters, jax.lax.ppermute
BROKEN = {
    "order": (pipeline, "_exchange_stage_parameters", without_order),
    "masks": (jax.lax, "ppermute", with_wrong_masks),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_pipeline_is_refused(name, tiny_config, monkeypatch):
    module, function, broken = BROKEN[name]
    monkeypatch.setattr(self_check, "_passed", set())
    monkeypatch.setattr(module, function, broken)
    message = r"^self-check: pipeline \(.*\) on cpu differs from .* by \d+%, expected .*: set mesh.pipeline=1, or train"
    with pytest.raises(InputError, match=message):
        check(in_stages(tiny_config))


def test_the_check_of_a_pipeline_has_rows_for_all_of_its_micro_batches(tiny_config):
    """Blocks that cannot run in a pipeline would be compared with themselves."""
    experiment, mesh = in_stages(tiny_config), sharding.make_mesh(PIPELINE)
    (found,) = self_check.checks(experiment, mesh)
    rows = self_check.ROWS * self_check._copies(mesh, found.parts)
    assert rows % (sharding.num_parts(mesh, "batch") // 2 * 4) == 0
    assert not list(self_check.checks(tiny.load(tiny_config, mesh=Mesh(2)), sharding.make_mesh(Mesh(2))))
