"""GPT and T5 on a mesh: numbers that do not change, and parameters that lie where the rules say."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from small_bert import assert_trees_close, noisy_params, small_transformer

from jaxformer.layers.attention import Attention
from jaxformer.layers.mlp import GatedMlp
from jaxformer.layers.norms import RMSNorm
from jaxformer.layers.positions import RelativePositions, Rotary
from jaxformer.losses.cross_entropy import decoded_cross_entropy
from jaxformer.models.gpt import Gpt
from jaxformer.models.t5 import T5
from jaxformer.parallel import sharding
from jaxformer.parallel.parameter_shards import state_shardings
from jaxformer.parallel.sharding import Mesh

VOCAB, ROWS, LENGTH = 64, 8, 12
PARTS = {"mlp": GatedMlp(32), "norm": RMSNorm(), "norm_position": "before", "depth": 2, "dropout": 0.1}


def t5_stack(bidirectional):
    attention = Attention(head_dim=4, bias=False, scale_scores=False)
    return small_transformer(
        heads=8, attention=attention, position_embedding=RelativePositions(8, 10, bidirectional), **PARTS
    )


MODELS = {
    "gpt": Gpt(small_transformer(heads=8, norm_position="before", dropout=0.1), VOCAB, LENGTH),
    # As many key heads as two tensor devices can share, and fewer than eight can: then they are whole.
    "llama": Gpt(
        small_transformer(
            heads=8, attention=Attention(kv_heads=4, bias=False), position_embedding=Rotary(100.0), **PARTS
        ),
        VOCAB,
        LENGTH,
        tie_embeddings=False,
    ),
    "t5": T5(t5_stack(True), t5_stack(False), vocab=VOCAB, max_length=LENGTH),
}
MESHES = [
    ("gpt", Mesh(2, 2, 2)),
    ("gpt", Mesh(1, 8, 1)),
    ("llama", Mesh(2, 2, 2)),
    ("llama", Mesh(1, 1, 8)),
    ("t5", Mesh(2, 2, 2)),
    ("t5", Mesh(1, 1, 8)),
]


def draw_batch(name):
    rng = np.random.default_rng(0)
    batch = {key: rng.integers(0, VOCAB, (ROWS, LENGTH)) for key in ("tokens", "targets")}
    batch["segments"] = np.sort(rng.integers(0, 3, (ROWS, LENGTH)))[:, ::-1]
    batch["weights"] = rng.random((ROWS, LENGTH)).astype(np.float32) * (batch["segments"] > 0)
    if name == "t5":
        batch["inputs"] = rng.integers(0, VOCAB, (ROWS, LENGTH))
        batch["input_segments"] = np.sort(rng.integers(0, 3, (ROWS, LENGTH)))[:, ::-1]
    return batch


def inputs_of(name, batch):
    return {key: batch[key] for key in batch if key not in ("targets", "weights")}


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradient(name, params, batch):
    """In training, so that dropout must be the same on every mesh."""

    def loss(params):
        inputs = inputs_of(name, batch)
        rngs = {"dropout": jax.random.key(1)}
        output = MODELS[name].apply({"params": params}, **inputs, train=True, rngs=rngs)
        terms = decoded_cross_entropy(output.hidden, output.lm_head, batch["targets"], batch["weights"])
        return terms.loss.value, output.logits

    return jax.value_and_grad(loss, has_aux=True)(params)


@functools.cache
def on(name, shape):
    """Loss, logits and gradients on a mesh, with the parameters laid on it."""
    mesh, batch = sharding.make_mesh(shape), draw_batch(name)
    params = noisy_params(MODELS[name], *([batch["inputs"]] if name == "t5" else []), batch["tokens"])
    boxed = jax.eval_shape(lambda: MODELS[name].init(jax.random.key(0), **inputs_of(name, batch)))["params"]
    params = jax.device_put(params, state_shardings(boxed, mesh))
    laid = sharding.global_batch(batch, sharding.local_rows(ROWS, mesh), ROWS, mesh)
    with jax.set_mesh(mesh):
        (loss, logits), gradient = loss_and_gradient(name, params, laid)
    return params, loss, logits, gradient


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), MESHES, ids=str)
def test_every_mesh_gives_the_same_loss_logits_and_gradients(name, shape):
    _, expected, expected_logits, expected_gradient = on(name, Mesh(1, 1, 1))
    _, loss, logits, gradient = on(name, shape)
    assert float(loss) == pytest.approx(float(expected), rel=2e-6)
    np.testing.assert_allclose(np.asarray(logits), np.asarray(expected_logits), atol=1e-5)
    assert_trees_close(jax.tree.map(np.asarray, gradient), jax.tree.map(np.asarray, expected_gradient), 1e-5)


def test_parameters_are_split_as_the_rules_say():
    tree, *_ = on("llama", Mesh(2, 2, 2))
    blocks = tree["transformer"]["blocks"]
    expected = [
        (tree["embeddings"]["token"], ("tensor", "fsdp"), (32, 8)),
        (tree["head"], ("tensor", "fsdp"), (32, 8)),
        (blocks["attention"]["query"]["kernel"], (None, "fsdp", "tensor", None), (2, 8, 4, 2)),
        (blocks["attention"]["key"]["kernel"], (None, "fsdp", "tensor", None), (2, 8, 2, 2)),
        (blocks["mlp"]["gate"]["kernel"], (None, "fsdp", "tensor"), (2, 8, 16)),
        (tree["transformer"]["norm"]["scale"], ("fsdp",), (8,)),
    ]
    for array, spec, shard in expected:
        assert array.sharding.is_equivalent_to(NamedSharding(array.sharding.mesh, PartitionSpec(*spec)), array.ndim)
        assert array.addressable_shards[0].data.shape == shard
    # Four key heads are not eight devices'; eight query heads are.
    attention = on("llama", Mesh(1, 1, 8))[0]["transformer"]["blocks"]["attention"]
    assert attention["key"]["kernel"].addressable_shards[0].data.shape == (2, 16, 4, 2)
    assert attention["query"]["kernel"].addressable_shards[0].data.shape == (2, 16, 1, 2)


def test_t5s_cross_attention_and_buckets_are_split_too():
    params, *_ = on("t5", Mesh(2, 2, 2))
    decoder = params["decoder"]
    assert decoder["blocks"]["cross_attention"]["value"]["kernel"].addressable_shards[0].data.shape == (2, 8, 4, 4)
    assert decoder["position_embedding"]["bias"].addressable_shards[0].data.shape == (8, 4)
