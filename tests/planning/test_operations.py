"""Operations of traced programs against the compiler's counts, and `Model.flops` against both."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
import tiny

from jaxformer import config
from jaxformer.parallel import sharding
from jaxformer.planning import operations, plans
from jaxformer.training.loop import trace_step


def counted(function, *arrays):
    traced = jax.jit(function).trace(*arrays)
    return operations.count(traced), traced.lower().compile().cost_analysis()["flops"]


def product(x, w):
    return jnp.einsum("btd,df->btf", x, w)


X, W = jnp.ones((2, 8, 16)), jnp.ones((16, 16))
ONE = 2 * 2 * 8 * 16 * 16
"""Operations of their product."""


def test_products_are_those_that_the_compiler_counts():
    assert counted(product, X, W) == (ONE, ONE)
    ours, theirs = counted(jax.grad(lambda x, w: (product(x, w) ** 2).sum(), argnums=(0, 1)), X, W)
    assert ours == 3 * ONE and ours <= theirs < 1.2 * ours, "element by element, the compiler counts more"
    images, kernel = jnp.ones((2, 3, 8, 8)), jnp.ones((5, 3, 2, 2))
    ours, theirs = counted(lambda x, k: jax.lax.conv(x, k, (2, 2), "VALID"), images, kernel)
    assert ours == theirs == 2 * (2 * 5 * 4 * 4) * (3 * 2 * 2)


def test_grouped_products_are_counted_forward_and_backward():
    rows, matrices, sizes = jnp.ones((10, 4)), jnp.ones((3, 4, 5)), jnp.array([2, 3, 5])

    def loss(rows, matrices):
        return jnp.sin(jax.lax.ragged_dot(rows, matrices, sizes)).sum()

    forward = 2 * 10 * 4 * 5
    assert operations.count(jax.jit(loss).trace(rows, matrices)) == forward
    assert operations.count(jax.jit(jax.grad(loss, argnums=(0, 1))).trace(rows, matrices)) == 3 * forward


def test_a_loop_is_counted_as_often_as_it_runs_and_of_a_choice_the_larger_branch():
    def loop(x, w):
        return jax.lax.scan(lambda x, _: (product(x, w), None), x, None, length=7)[0]

    ours, theirs = counted(loop, X, W)
    assert ours == 7 * ONE > theirs
    choice, _ = counted(lambda x, w: jax.lax.cond(x.sum() > 0, lambda: loop(x, w), lambda: product(x, w)), X, W)
    assert choice == 7 * ONE


def test_what_is_computed_again_is_counted_again():
    def loss(x, w, again):
        layer = jax.checkpoint(lambda x: jnp.sin(product(x, w))) if again else lambda x: jnp.sin(product(x, w))
        return layer(layer(x)).sum()

    def gradient(again):
        return counted(jax.grad(lambda x, w: loss(x, w, again), argnums=(0, 1)), X, W)[0]

    assert gradient(False) == 6 * ONE and gradient(True) == 8 * ONE


def test_what_each_device_does_is_counted_for_all():
    mesh = sharding.make_mesh(sharding.Mesh(1, 8))
    spec = jax.sharding.PartitionSpec("fsdp")

    def each(x):
        return jax.shard_map(lambda x: x @ x.T, in_specs=spec, out_specs=spec)(x)

    with jax.set_mesh(mesh):
        assert operations.count(jax.jit(each).trace(jnp.ones((16, 32)))) == 8 * 2 * 2 * 2 * 32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert_base", "gpt2_small", "llama_7b", "t5_base", "vit_b16_imagenet", "clip_emoji"])
def test_a_models_own_count_is_that_of_its_unrolled_step(name):
    """Two layers of the config's own width: the compiler's count has the elementwise operations too."""
    experiment = config.load(tiny.ROOT / "configs" / f"{name}.py")
    model = tiny.shallow(experiment.model, 2).replace_stacks(
        unroll=2, dtype="float32", remat="none", dropout=0.0, attention_dropout=0.0, width=256, heads=4
    )
    task = {field: 64 for field in ("length",) if name in ("gpt2_small", "llama_7b")}
    experiment = dataclasses.replace(
        experiment,
        model=model,
        # A batch so large that the update of the parameters is little beside the products.
        data=dataclasses.replace(
            experiment.data,
            batch=16 if name == "clip_emoji" else 2,
            task=dataclasses.replace(experiment.data.task, **task),
        ),
        mesh=sharding.Mesh(),
    )
    mesh = sharding.make_mesh(experiment.mesh, jax.devices()[:1])
    traced = trace_step(experiment, mesh)
    compiled = traced.lower().compile().cost_analysis()["flops"]
    ours, models = operations.count(traced), plans.model_flops(experiment, mesh)
    assert 0.93 < ours / compiled < 1.05
    assert 0.95 < models / ours < 1.08
