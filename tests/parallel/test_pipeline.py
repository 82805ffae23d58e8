"""Pipelines: every family computes the same in stages, and each device holds only the blocks of its stage."""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec
from on_meshes import LENGTH, ROWS, VOCAB, gradients, inputs_of, laid, on
from small_bert import assert_trees_close, lay_out, noisy_params, random_examples, small_experiment, small_transformer

from jaxformer.decoding.generate import Decoding, generate
from jaxformer.errors import InputError
from jaxformer.layers import pipeline
from jaxformer.layers.attention import Attention
from jaxformer.layers.experts import ExpertMlp
from jaxformer.layers.mlp import GatedMlp
from jaxformer.layers.pipeline import Schedule
from jaxformer.layers.positions import RelativePositions, Rotary
from jaxformer.layers.residual import ResidualBranch
from jaxformer.layers.transformer import Variant
from jaxformer.models.bert import Bert
from jaxformer.models.gpt import Gpt
from jaxformer.models.t5 import T5
from jaxformer.models.vit import Vit
from jaxformer.parallel import sharding
from jaxformer.parallel.sharding import Mesh
from jaxformer.planning import operations
from jaxformer.runs import run
from jaxformer.training import loop, optimizers
from jaxformer.training.gradients import loss_and_gradient
from jaxformer.training.stages import check_pipeline
from jaxformer.training.state import abstract_state

DEPTH = 4
ONE = Mesh(1, 1, 1)
CIRCULAR = Mesh(1, pipeline=2, pipeline_repeats=2, pipeline_microbatches=4)


def stack(**fields):
    return small_transformer(**({"heads": 4, "norm_position": "before", "depth": DEPTH, "unroll": 1} | fields))


def t5_stack(bidirectional):
    return stack(position_embedding=RelativePositions(8, 10, bidirectional))


LOCAL = Variant(attention=Attention(window=4), position_embedding=Rotary(50.0))
DENSE_AND_EXPERTS = (Variant(mlp=GatedMlp(32)), Variant(mlp=ExpertMlp(experts=4, width=24)))
MODELS = {
    "gpt": Gpt(stack(position_embedding=Rotary(100.0), period=(LOCAL, Variant()), remat="full"), VOCAB, LENGTH),
    "experts": Gpt(stack(period=DENSE_AND_EXPERTS), VOCAB, LENGTH),
    "bert": Bert(stack(norm_position="after"), vocab=VOCAB, max_length=24),
    "t5": T5(t5_stack(True), t5_stack(False), vocab=VOCAB, max_length=LENGTH),
    "vit": Vit(stack(remat="dots"), ("a", "b"), image=8, patch=4, pooling="mean"),
    "dropout": Gpt(stack(dropout=0.1, attention_dropout=0.1, residual=ResidualBranch(drop_path=0.2)), VOCAB, LENGTH),
}


def assert_same(name, shape, other=ONE):
    expected, found = on(MODELS[name], other), on(MODELS[name], shape)
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5)
    assert_trees_close(found[2], expected[2], 1e-5, 1e-5)


@pytest.mark.parametrize(
    "schedule", [Schedule(2, 2, 1), Schedule(4, 8, 1), Schedule(2, 4, 3), Schedule(4, 4, 2), Schedule(3, 6, 2)], ids=str
)
def test_in_each_tick_every_stage_continues_what_the_stage_before_it_has_passed_on(schedule):
    stages, done, held = schedule.stages, {}, [None] * schedule.stages
    for time in range(schedule.ticks):
        if time in schedule.entries:
            held[0] = (int(np.flatnonzero(schedule.entries == time)[0]), 0)
        for stage, work in enumerate(held):
            since = time - stage
            if not 0 <= since < schedule.micro_batches * schedule.repeats:
                continue
            group, place = divmod(since, schedule.parts)
            repeat, place = divmod(place, stages)
            assert work == (group * stages + place, repeat * stages + stage), "the part that the schedule says"
            if work[1] == schedule.parts - 1:
                done[work[0]] = time
        held = [work and (work[0], work[1] + 1) for work in [held[-1], *held[:-1]]]
    assert done == dict(enumerate(schedule.exits)), "every micro-batch has passed through all parts"


@pytest.mark.parametrize(("stages", "repeats"), [(2, 2), (2, 3), (4, 2), (4, 6), (6, 4), (3, 5)])
def test_in_each_round_of_dealing_every_stage_receives_one_part(stages, repeats):
    sent = np.stack(pipeline._rounds(stages, repeats))
    assert (np.sort(sent, axis=0) == np.arange(repeats)[:, None]).all(), "every stage sends all that it has stored"
    for source in sent:
        assert sorted((np.arange(stages) * repeats + source) % stages) == list(range(stages))


@pytest.mark.parametrize("schedule", [Schedule(2, 2, 1), Schedule(4, 4, 2)], ids=str)
def test_a_pipeline_of_simple_blocks_equals_a_loop(schedule):
    rng = np.random.default_rng(0)
    x, own, w = (rng.normal(size=size).astype(np.float32) for size in ((8, 3, 2), (8, 1, 2), (8, 2)))
    shared = jnp.asarray(rng.normal(size=(1, 3, 2)), jnp.float32)

    def block(given, x, scale, number):
        own, shared = given
        return jnp.sin(x * scale + own + shared) + number / 10

    def run_stage(given, x, blocks, first, micro_batch):
        for number in range(len(blocks)):
            x = block(given, x, blocks[number], first + number)
        return x, {}

    def in_stages(x, given, w):
        return (pipeline.run(run_stage, x, given, w, schedule)[0] ** 2).sum()

    def in_a_loop(x, given, w):
        for number in range(len(w)):
            x = block(given, x, w[number], number)
        return (x**2).sum()

    shape = Mesh(1, pipeline=schedule.stages)
    arguments = x, (own, shared), w
    with sharding.use(sharding.make_mesh(shape), shape):
        found = jax.jit(jax.value_and_grad(in_stages, (0, 1, 2)))(*arguments)
    expected = jax.jit(jax.value_and_grad(in_a_loop, (0, 1, 2)))(*arguments)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5), found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "bert", "t5", "vit"])
def test_every_family_computes_the_same_in_stages(name):
    assert_same(name, Mesh(1, pipeline=2) if name == "gpt" else Mesh(1, pipeline=4))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "bert", "t5", "vit"])
def test_the_pipeline_goes_with_other_axes_in_every_family(name):
    assert_same(name, Mesh(1, 2, 2, pipeline=2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [Mesh(2, pipeline=2, pipeline_microbatches=4), Mesh(1, slices=2, fsdp=2, pipeline=2), Mesh(1, 1, 2, pipeline=2)],
    ids=str,
)
def test_every_product_of_axes_gives_the_same_loss_and_gradients(shape):
    assert_same("gpt", shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "bert", "t5", "vit"])
def test_a_ring_runs_inside_a_stage(name):
    """Devices of a stage share the positions of its rows."""
    assert_same(name, Mesh(1, pipeline=2, sequence=2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "t5"])
def test_micro_batches_that_pass_several_times_give_the_same(name):
    assert_same(name, CIRCULAR)


@pytest.mark.slow
def test_dropout_depends_on_the_number_of_micro_batches_and_not_on_the_mesh():
    first = Mesh(1, pipeline=2, pipeline_microbatches=4)
    assert_same("dropout", Mesh(1, 2, pipeline=2, pipeline_microbatches=4), first)
    assert_same("dropout", Mesh(1, 1, 2, pipeline=4), first)
    assert float(on(MODELS["dropout"], first)[0]) != float(on(MODELS["dropout"], ONE)[0])


@pytest.mark.slow
def test_auxiliary_means_are_those_of_the_micro_batches():
    """The means of experts on a pipeline are the sums of those of its micro-batches alone."""
    shape, inputs = Mesh(1, expert=2, pipeline=2), inputs_of(MODELS["experts"])
    params = noisy_params(MODELS["experts"], **inputs)
    alone = [
        gradients(MODELS["experts"], params, {key: array[number::2] for key, array in inputs.items()})
        for number in range(2)
    ]
    means = jax.tree.map(lambda *parts: np.sum(parts, axis=0), *[part[0][1] for part in alone])
    assert {"load_balance", "router_z"} < means.keys()
    assert_trees_close(on(MODELS["experts"], shape)[1], means, 1e-5, 1e-5)


@pytest.mark.slow
def test_a_masked_lm_takes_the_positions_that_it_predicts_from_the_last_stage():
    batch = lay_out([[example] for example in random_examples(0, [12, 5, 12, 9, 12, 3, 12, 11], VOCAB)], LENGTH, 3, 1)
    optimizer = optimizers.AdamW(optimizers.Schedule(1e-3), accumulate=2)
    params = noisy_params(MODELS["bert"], np.zeros((1, 4), np.int32))
    found = []
    for shape in (ONE, Mesh(2, pipeline=2)):
        experiment = small_experiment(MODELS["bert"], batch=ROWS, optimizer=optimizer, mesh=shape)
        mesh = sharding.make_mesh(shape)
        with sharding.use(mesh, shape):
            rows = sharding.global_batch(batch, range(ROWS), ROWS, mesh)
            step = jax.jit(functools.partial(loss_and_gradient, experiment))
            found.append(jax.device_get(step(params, rows, jax.random.key(0))))
    assert_trees_close(found[1][1], found[0][1], 1e-5, 1e-5)
    for name, mean in found[0][0].items():
        assert float(found[1][0][name].value) == pytest.approx(float(mean.value), rel=1e-5), name


def test_each_stage_holds_its_share_of_the_blocks():
    experiment = small_experiment(MODELS["bert"], mesh=Mesh(1, 2, 2, pipeline=2))
    state = abstract_state(experiment, sharding.make_mesh(experiment.mesh))
    up = state.params["transformer"]["blocks"]["mlp"]["up"]["kernel"]
    expected = NamedSharding(up.sharding.mesh, PartitionSpec("pipeline", "fsdp", "tensor"))
    assert up.sharding.is_equivalent_to(expected, up.ndim) and up.sharding.shard_shape(up.shape) == (2, 8, 32)
    table = state.params["embeddings"]["token"]
    assert table.sharding.shard_shape(table.shape) == (32, 8), "stages have the same embeddings"
    assert sharding.batch_sharding(sharding.make_mesh(Mesh(2, pipeline=4))).shard_shape((8, 3)) == (1, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), [("gpt", Mesh(1, 2, 2, pipeline=2)), ("bert", CIRCULAR)])
def test_the_compiled_step_passes_activations_on_and_gathers_no_stack(name, shape):
    mesh, params, inputs = laid(MODELS[name], shape, inputs_of(MODELS[name]))
    with sharding.use(mesh, shape):
        lowered = gradients.lower(MODELS[name], params, inputs)
        compiled = lowered.compile()
    text = compiled.as_text() or ""
    assert re.search(r" collective-permute(-start)?\(", text)
    # A norm has as many entries as a vector of activations, which may be gathered.
    kernels = {math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(params["transformer"]) if leaf.ndim > 2} - {16}
    for sizes in re.findall(r"= \S*?\[([\d,]*)\]\S* (?:all-gather|all-to-all)\(", text):
        numbers = [int(size) for size in sizes.split(",")]
        assert not (numbers[0] > 1 and math.prod(numbers[1:]) in kernels), f"several layers on a device: {sizes}"
    gradient = jax.tree.leaves_with_path(compiled.output_shardings[1])
    places = {jax.tree_util.keystr(path): place for path, place in gradient}
    stacked = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(params["transformer"])]
    for path, leaf in stacked:
        if "blocks" in path and leaf.ndim > 2:
            whole = places["['transformer']" + path].shard_shape(leaf.shape)
            assert whole[0] == leaf.shape[0] // shape.pipeline, path


@pytest.mark.slow
def test_a_stage_computes_its_blocks_in_every_tick():
    """The products of a traced pipeline are those of all ticks."""
    model, inputs = MODELS["gpt"], inputs_of(MODELS["gpt"])
    params = nn.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs)))

    def products(shape):
        with sharding.use(sharding.make_mesh(shape), shape):
            return operations.count(jax.jit(lambda params: model.apply(params, **inputs).hidden).trace(params))

    schedule = Schedule(2, 4, 1)
    split = products(Mesh(1, pipeline=2, pipeline_microbatches=4))
    assert split == pytest.approx(products(ONE) * schedule.ticks / schedule.micro_batches)


@pytest.mark.slow
def test_a_run_moves_between_pipelines_and_other_meshes(tiny_config, tmp_path):
    fields = {"model__transformer__depth": 4, "optimizer__schedule__decay": "constant"}
    fields |= {"model__transformer__dropout": 0.0, "model__transformer__attention_dropout": 0.0}
    fields |= {"evaluation__every": 2, "checkpoint__every": 2}
    one, two = tmp_path / "one", tmp_path / "two"
    loop.fit(tiny.load(tiny_config, **fields, mesh=ONE, steps=6), one, quiet=True)
    for steps, shape in ((2, Mesh(1, 2, pipeline=2)), (4, Mesh(2, 2, 2)), (6, Mesh(1, pipeline=4))):
        trained = loop.fit(tiny.load(tiny_config, **fields, mesh=shape, steps=steps), two, quiet=True)
    tiny.assert_equal(tiny.saved(two), tiny.saved(one), atol=1e-5)
    opened, saved = run.open_run(two), tiny.saved(two)
    for path, leaf in jax.tree.leaves_with_path(trained.params):
        name = jax.tree_util.keystr(path)
        np.testing.assert_array_equal(np.asarray(leaf), saved["['params']" + name], err_msg=name)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(opened.params), jax.device_get(trained.params))
    assert opened.mesh.shape["pipeline"] == 4
    for split in ("train", "validation"):
        ours, theirs = (tiny.metrics(folder, split)[-1] for folder in (two, one))
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    assert opened.evaluate()["loss"] == pytest.approx(tiny.metrics(one, "validation")[-1]["loss"], abs=1e-5)
    text = "The dog [MASK] the sea."
    assert str(opened.predict(text)) == str(run.open_run(one).predict(text))


@pytest.mark.slow
def test_decoding_on_a_pipeline_runs_the_blocks_one_after_the_other():
    prompts = np.random.default_rng(1).integers(1, VOCAB, (4, 5))
    tokens = []
    for shape in (ONE, Mesh(1, 2, pipeline=2)):
        mesh, params, _ = laid(MODELS["gpt"], shape, inputs_of(MODELS["gpt"]))
        with sharding.use(mesh, shape):
            tokens.append(generate(MODELS["gpt"], params, list(prompts), Decoding(max_new_tokens=4)))
    np.testing.assert_array_equal(*tokens)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"mesh": Mesh(1, pipeline=3), "batch": 6},
            r"model.transformer.depth=4 does not divide into 3 parts \(mesh.pipeline=3\); 3 would",
        ),
        (
            {"mesh": Mesh(1, pipeline=4, pipeline_repeats=2)},
            r"depth=4 does not divide into 8 parts \(mesh.pipeline=4 × mesh.pipeline_repeats=2\); 8 would",
        ),
        (
            {"mesh": Mesh(1, pipeline=4), "model": Gpt(stack(period=(LOCAL, Variant())), VOCAB, LENGTH)},
            r"depth=4 does not divide into 4 parts of whole periods of 2 blocks \(mesh.pipeline=4\); 8 would",
        ),
        (
            {"mesh": Mesh(1, pipeline=4, pipeline_microbatches=6)},
            "mesh.pipeline_microbatches=6 is not a multiple of mesh.pipeline=4; 8 would be",
        ),
        (
            {"mesh": Mesh(2, 2, pipeline=2, pipeline_microbatches=4)},
            r"data.batch=8 does not divide into mesh.data=2 × mesh.fsdp=2 × 4 micro-batches of the pipeline; 16 would",
        ),
        ({"mesh": Mesh(2, pipeline_repeats=2)}, "mesh.pipeline_repeats=2: mesh.pipeline is 1; expected 1"),
        ({"mesh": Mesh(2, pipeline_microbatches=4)}, "mesh.pipeline_microbatches=4: mesh.pipeline is 1; expected None"),
    ],
)
def test_what_does_not_divide_is_refused_in_one_line(fields, message):
    experiment = small_experiment(fields.pop("model", MODELS["bert"]), **({"batch": ROWS} | fields))
    with pytest.raises(InputError, match=message):
        check_pipeline(experiment, sharding.make_mesh(experiment.mesh))


def test_a_field_of_the_pipeline_is_at_least_one():
    for field in ("pipeline_microbatches", "pipeline_repeats"):
        with pytest.raises(InputError, match=f"mesh.{field}=0: expected at least 1"):
            Mesh(**{field: 0})


def test_experts_that_count_only_predicted_positions_are_refused_in_training():
    model = Bert(stack(mlp=ExpertMlp(experts=4, width=24)), vocab=VOCAB, max_length=LENGTH)
    shape, positions = Mesh(1, pipeline=2), np.zeros((ROWS, 2), np.int32)
    tokens = np.ones((ROWS, LENGTH), np.int32)
    params = nn.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), tokens)))

    def apply(train):
        options = {"masked_positions": positions, "train": train, "rngs": {"dropout": jax.random.key(0)}}
        return jax.eval_shape(lambda params: model.apply(params, tokens, **options), params)

    with sharding.use(sharding.make_mesh(shape), shape):
        with pytest.raises(InputError, match=r"mesh.pipeline=2: the experts of the last block count"):
            apply(True)
        apply(False)
