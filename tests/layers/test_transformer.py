"""Blocks from their parts; the stack from its blocks, however it is rolled or recomputed."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from small_bert import applied, assert_trees_close, noisy_params
from small_bert import small_transformer as small

from jaxformer.errors import InputError
from jaxformer.layers.attention import Attention, AttentionInputs
from jaxformer.layers.block import Block, BlockInputs
from jaxformer.layers.masks import Mask
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm, RMSNorm
from jaxformer.layers.positions import RelativePositions, Rotary
from jaxformer.layers.stack import unstacked
from jaxformer.layers.transformer import Transformer

X = np.random.default_rng(0).normal(size=(2, 12, 16)).astype(np.float32)
MEMORY = np.random.default_rng(1).normal(size=(2, 7, 16)).astype(np.float32)
SEGMENTS = np.array([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12])
MASK = Mask.of_segments(SEGMENTS, SEGMENTS)
MEMORY_MASK = Mask.of_segments(SEGMENTS, np.array([[1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 0, 0, 0]]))
SCHEMES = {"rotary": Rotary(100.0), "relative": RelativePositions(8, 20)}
KEY = jax.random.key(3)


def apply(transformer, params, x=X, mask=MASK, rngs=None, **inputs):
    return applied(transformer, params, x, BlockInputs(mask=mask, **inputs), rngs=rngs)


@pytest.mark.parametrize("norm", [LayerNorm(), RMSNorm()], ids=lambda norm: type(norm).__name__)
@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("memory", [None, MEMORY], ids=["alone", "with a memory"])
def test_a_block_is_its_layers_with_residuals_and_norms(memory, position, norm):
    mlp, attention = Mlp(20), Attention()
    block = Block(2, attention, mlp, norm, position, 0.0, 0.0, "float32")
    params = noisy_params(block, X, BlockInputs(memory=memory))

    def part(layer, name, *inputs, **options):
        return layer.apply({"params": params[name]}, *inputs, **options)

    def sublayer(x, name, function):
        if position == "before":
            return x + function(part(norm, f"{name}_norm", x))
        return part(norm, f"{name}_norm", x + function(x))

    settings = {"heads": 2, "dtype": "float32"}
    x = sublayer(
        X, "attention", lambda x: part(attention, "attention", x, AttentionInputs(mask=MASK), **settings).output
    )
    if memory is not None:

        def attend_memory(x):
            inputs = AttentionInputs(memory=memory, mask=MEMORY_MASK)
            return part(attention, "cross_attention", x, inputs, **settings).output

        x = sublayer(x, "cross_attention", attend_memory)
    expected = sublayer(x, "mlp", lambda x: part(mlp, "mlp", x, "float32")[0])
    actual = block.apply({"params": params}, X, BlockInputs(mask=MASK, memory=memory, memory_mask=MEMORY_MASK))
    np.testing.assert_allclose(actual.hidden, expected, atol=1e-5)
    assert (actual.memory is None) == (memory is None) == ("cross_attention" not in params)


@pytest.mark.parametrize("position", ["before", "after"])
def test_the_stack_is_its_blocks_one_after_the_other_and_a_norm_at_the_end_where_norms_come_before(position):
    transformer = small(depth=3, norm_position=position)
    params = noisy_params(transformer, X)
    block = Block(2, Attention(), Mlp(), LayerNorm(1e-12), position, 0.0, 0.0, "float32")
    x = X
    for layer in range(3):
        own = unstacked(params["blocks"])[layer]
        x = block.apply({"params": own}, x, BlockInputs(mask=MASK)).hidden
    assert set(params) == ({"blocks", "norm"} if position == "before" else {"blocks"})
    if position == "before":
        without = apply(dataclasses.replace(transformer, last_norm=False), {"blocks": params["blocks"]}).hidden
        np.testing.assert_allclose(without, x, atol=1e-5)
        x = LayerNorm(1e-12).apply({"params": params["norm"]}, x)
    np.testing.assert_allclose(apply(transformer, params).hidden, x, atol=1e-5)


def test_layers_begin_different():
    kernels = jax.jit(small().init)(KEY, X)["params"]["blocks"]["mlp"]["up"]["kernel"].value
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01


def test_stacks_do_not_share_what_their_fields_share():
    """The default norm and a scheme given to several stacks are hyperparameters, no common weights."""
    first, second = (Transformer(16, 2, 2, position_embedding=SCHEMES["relative"]) for _ in range(2))
    assert first.norm == second.norm == Transformer().norm
    assert first.position_embedding == second.position_embedding == SCHEMES["relative"]
    modules = [
        first.norm,
        second.norm,
        Transformer.norm,
        first.position_embedding,
        second.position_embedding,
        SCHEMES["relative"],
    ]
    assert len({id(module) for module in modules}) == len(modules)


@functools.cache
def values_and_gradients(**fields):
    """Output, gradients of parameters and of inputs, with dropout: whatever is recomputed must drop the same."""
    fields = dict(fields)
    memory = MEMORY if fields.pop("memory", False) else None
    transformer = small(dropout=0.2, attention_dropout=0.2, **fields)
    params = noisy_params(transformer, X, BlockInputs(memory=memory))

    @jax.jit
    def run(params, x, memory):
        def loss(params, x, memory):
            inputs = BlockInputs(mask=MASK, memory=memory, memory_mask=MEMORY_MASK, train=True)
            output = transformer.apply({"params": params}, x, inputs, rngs={"dropout": KEY}).hidden
            return jnp.sum(jnp.sin(output)), output

        return jax.value_and_grad(loss, (0, 1, 2)[: 2 if memory is None else 3], has_aux=True)(params, x, memory)

    (_, output), gradients = run(params, X, memory)
    return {"output": output, "gradients": gradients}


@pytest.mark.slow
def test_scanned_equals_unrolled():
    assert_trees_close(values_and_gradients(unroll=1), values_and_gradients(unroll=2), 1e-5)


@pytest.mark.parametrize(("platform", "unroll"), [("cpu", 2), ("gpu", 1), ("tpu", 1)])
def test_blocks_are_unrolled_only_where_the_mesh_is_of_cpus(platform, unroll):
    transformer = small()
    params = jax.eval_shape(transformer.init, KEY, X)
    device = jax.sharding.AbstractDevice(device_kind="any", num_cores=1, platform=platform)
    axes = ("data", "fsdp", "tensor")
    mesh = jax.sharding.AbstractMesh((1, 1, 1), axes, (AxisType.Auto,) * 3, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.make_jaxpr(transformer.apply)(params, X)
    assert [step.params["unroll"] for step in traced.eqns if step.primitive.name == "scan"] == [unroll]


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "unroll"), [("dots", 1), ("full", 1), ("full", 2)])
def test_what_is_recomputed_changes_nothing(remat, unroll):
    assert_trees_close(values_and_gradients(unroll=unroll, remat=remat), values_and_gradients(unroll=2), 1e-5)


@pytest.mark.slow
def test_nor_does_it_with_a_memory_and_positions():
    fields = {"memory": True, "norm_position": "before", "position_embedding": SCHEMES["relative"]}
    assert_trees_close(values_and_gradients(unroll=1, remat="full", **fields), values_and_gradients(**fields), 1e-5)


@pytest.mark.slow
def test_dropout_acts_in_training_only():
    """Evaluated, a model with dropout is the one without; trained, it is not."""
    transformer, plain = small(dropout=0.2, attention_dropout=0.2), small()
    params = noisy_params(plain, X)
    evaluated = apply(plain, params).hidden
    np.testing.assert_array_equal(apply(transformer, params).hidden, evaluated)
    assert np.abs(values_and_gradients(unroll=2)["output"] - evaluated).max() > 0.01


@pytest.mark.slow
def test_layers_do_not_share_a_dropout_mask():
    """Where each layer's output is one, those of two layers add up to none, one or two."""
    transformer = small(depth=2, norm_position="before", dropout=0.5)
    params = jax.tree.map(jnp.zeros_like, noisy_params(transformer, X))
    params["blocks"]["mlp"]["down"]["bias"] += 1
    params["norm"]["scale"] += 1
    rows = apply(transformer, params, 0 * X, train=True, rngs={"dropout": KEY}).hidden.reshape(-1, 16)
    assert max(len(np.unique(row)) for row in np.asarray(rows)) == 3


@pytest.mark.slow
def test_remat_saves_memory_as_it_comes():
    """Whole blocks recomputed need less than all but matrix products, and those less than nothing recomputed."""

    def temporaries(remat):
        transformer = small(depth=3, remat=remat)
        x = np.zeros((8, 64, 16), np.float32)
        params = noisy_params(transformer, x)
        gradient = jax.jit(jax.grad(lambda params: transformer.apply({"params": params}, x).hidden.sum()))
        return gradient.lower(params).compile().memory_analysis().temp_size_in_bytes

    full, dots, none = map(temporaries, ("full", "dots", "none"))
    assert full < dots < none


@pytest.mark.slow
def test_returned_attention_has_a_row_a_query_that_sums_to_one():
    transformer = small(heads=4)
    params = noisy_params(transformer, X)
    output = apply(transformer, params, return_attention=True)
    assert output.attention.shape == (2, 2, 4, 12, 12)
    assert output.attention.dtype == jnp.float32
    np.testing.assert_allclose(output.attention.sum(-1), 1, atol=1e-6)
    assert not np.where(MASK.dense(), 0, output.attention).any()
    without = apply(transformer, params)
    assert without.attention is None
    np.testing.assert_allclose(without.hidden, output.hidden, atol=1e-6)


def test_attention_at_some_positions_cannot_be_returned():
    transformer = small()
    with pytest.raises(ValueError, match="at: the last block"):
        apply(transformer, noisy_params(transformer, X), return_attention=True, at=np.array([[0], [1]]))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("position", ["before", "after"])
def test_the_output_at_some_positions_is_that_of_all_positions(position, depth):
    transformer = small(norm_position=position, depth=depth)
    params, at = noisy_params(transformer, X), np.array([[0, 7, 3, 3], [11, 2, 0, 5]])
    expected = np.take_along_axis(np.asarray(apply(transformer, params).hidden), at[..., None], 1)
    np.testing.assert_allclose(apply(transformer, params, at=at).hidden, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("position_ids", [None, np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0, 0], range(3, 15)])])
@pytest.mark.parametrize("scheme", ["rotary", "relative"])
def test_so_it_is_with_a_scheme_of_positions_a_memory_and_a_causal_mask(scheme, position_ids):
    transformer = small(position_embedding=SCHEMES[scheme], attention=Attention(kv_heads=1))
    params, at = noisy_params(transformer, X, BlockInputs(memory=MEMORY)), np.array([[0, 7, 3, 3], [11, 2, 0, 5]])
    others = {"position_ids": position_ids, "memory": MEMORY, "memory_mask": MEMORY_MASK}
    run = jax.jit(lambda params, at: apply(transformer, params, mask=Mask.causal(12, SEGMENTS), at=at, **others).hidden)
    expected = np.take_along_axis(np.asarray(run(params, None)), at[..., None], 1)
    np.testing.assert_allclose(run(params, at), expected, atol=1e-5)


@pytest.mark.slow
def test_rotary_positions_are_those_that_are_given():
    """Each document of a row counts its own, and then is as it is alone."""
    transformer = small(position_embedding=Rotary(100.0))
    params = noisy_params(transformer, X)
    position_ids = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2], range(12)])
    together = apply(transformer, params, position_ids=position_ids).hidden
    alone = apply(transformer, params, X[:1, 5:9], None).hidden
    np.testing.assert_allclose(together[:1, 5:9], alone, atol=1e-5)
    # Distances are all that counts: without positions of their own they are the same.
    np.testing.assert_allclose(apply(transformer, params).hidden, together, atol=1e-5)
    stretched = apply(transformer, params, position_ids=2 * position_ids).hidden
    assert np.abs(stretched - together).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("position", ["before", "after"])
def test_a_segments_output_has_no_gradient_in_another_segment(position):
    transformer = small(norm_position=position)
    params = noisy_params(transformer, X)
    influence = jax.jit(jax.grad(lambda x, of: jnp.sum(jnp.sin(apply(transformer, params, x).hidden) * of)))
    for segment in (0, 1, 2):
        inside = np.equal(SEGMENTS, segment)
        gradient = np.asarray(influence(X, inside[..., None]))
        assert not gradient[~inside].any(), "exactly zero"
        assert np.abs(gradient[inside]).max(-1).all(), "every token of the segment counts"


def test_bfloat16_is_close_to_float32_and_keeps_float32_parameters():
    transformer = small(dtype="bfloat16")
    params = noisy_params(transformer, X)
    abstract = jax.eval_shape(transformer.init, KEY, jnp.bfloat16(X))
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract)} == {jnp.dtype("float32")}
    rough = apply(transformer, params, jnp.bfloat16(X)).hidden
    assert rough.dtype == jnp.bfloat16
    exact = apply(small(), params).hidden
    assert 0 < np.abs(np.float32(rough) - exact).max() < 0.15


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 0}, "transformer.width=0: expected at least 1"),
        ({"depth": 0}, "transformer.depth=0: expected at least 1"),
        ({"heads": -2}, "transformer.heads=-2: expected at least 1"),
        ({"width": 16, "heads": 5}, "transformer.heads=5 does not divide transformer.width=16: 4 would"),
        ({"width": 12, "heads": 24}, "transformer.heads=24 does not divide transformer.width=12: 12 would"),
        (
            {"width": 12, "heads": 6, "attention": Attention(kv_heads=4)},
            "transformer.attention.kv_heads=4 does not divide transformer.heads=6: 3 would",
        ),
        ({"dropout": 1.0}, "transformer.dropout=1.0: expected 0 or more, below 1"),
        ({"dropout": -0.1}, "transformer.dropout=-0.1: expected 0 or more, below 1"),
        ({"attention_dropout": 1.5}, "transformer.attention_dropout=1.5: expected 0 or more, below 1"),
        ({"dropout": float("nan")}, "transformer.dropout=nan: expected 0 or more, below 1"),
        ({"unroll": 0}, "transformer.unroll=0: expected at least 1"),
        ({"unroll": -1}, "transformer.unroll=-1: expected at least 1"),
        ({"mlp": Mlp(64), "norm": LayerNorm(), "depth": -1}, "transformer.depth=-1: expected at least 1"),
    ],
)
def test_impossible_hyperparameters_are_refused_in_one_line(fields, message):
    with pytest.raises(InputError) as error:
        Transformer(**fields)
    assert str(error.value) == message


def test_heads_of_a_size_of_their_own_need_not_divide_the_width():
    transformer = Transformer(16, 1, 5, attention=Attention(head_dim=4))
    assert noisy_params(transformer, X)["blocks"]["attention"]["query"]["kernel"].shape == (1, 16, 5, 4)


def test_a_mask_without_an_order_is_causal_with_a_cache():
    stack = small(position_embedding=Rotary(100.0))
    params = noisy_params(stack, X)
    cache = stack.new_cache(*X.shape[:2])
    cache = dataclasses.replace(cache, segments=jnp.ones(X.shape[:2], jnp.int32))
    outputs = [stack.apply({"params": params}, X, BlockInputs(mask=mask), cache).hidden for mask in (None, Mask())]
    np.testing.assert_array_equal(*outputs)


def test_inputs_of_blocks_are_offloaded_only_where_devices_have_memory_of_their_own():
    x, rngs = np.ones((1, 3, 16), np.float32), {"dropout": jax.random.key(0)}
    stack = small(remat="offload")
    params = noisy_params(small(), x)
    expected = small().apply({"params": params}, x).hidden
    np.testing.assert_allclose(stack.apply({"params": params}, x).hidden, expected, atol=1e-6)
    with pytest.raises(InputError, match=r"transformer.remat=offload: a CPU has only the memory of its host"):
        stack.apply({"params": params}, x, BlockInputs(train=True), rngs=rngs)
