"""The loss in chunks of positions on a mesh: it equals that on one device, and sends the output table only once."""

import itertools

import jax
import numpy as np
import pytest

from jaxformer.layers.linear import LMHead
from jaxformer.losses import cross_entropy
from jaxformer.parallel import sharding
from jaxformer.parallel.parameter_shards import parameter_spec
from jaxformer.parallel.sharding import Mesh
from jaxformer.planning import topologies, traffic
from jaxformer.planning.hlo import Program

ROWS, POSITIONS, WIDTH, VOCAB, CHUNKS = 8, 12, 64, 256, 3
SEQUENCE = Mesh(data=2, fsdp=2, sequence=2)
TABLE = 4 * VOCAB * WIDTH
"""Bytes of the table."""


def arrays():
    draw = np.random.default_rng(0)
    x, table = (draw.normal(size=shape).astype(np.float32) for shape in ((ROWS, POSITIONS, WIDTH), (VOCAB, WIDTH)))
    bias = draw.normal(size=VOCAB).astype(np.float32)
    return x, table, bias, draw.integers(0, VOCAB, (ROWS, POSITIONS)), draw.random((ROWS, POSITIONS)).astype(np.float32)


def gradients(x, table, bias, targets, weights):
    def loss(x, table, bias):
        terms = {"label_smoothing": 0.1, "z_loss": 0.01}
        return cross_entropy.decoded_cross_entropy(x, LMHead(table, bias), targets, weights, **terms).loss.value

    return jax.grad(loss, (0, 1, 2))(x, table, bias)


@pytest.mark.parametrize(
    "config",
    [Mesh(data=2, fsdp=4), Mesh(data=1, fsdp=8), Mesh(data=2, fsdp=2, tensor=2), Mesh(data=8), SEQUENCE],
    ids=str,
)
def test_chunks_share_the_table_and_one_sum_of_its_gradient(config, monkeypatch):
    expected = jax.jit(gradients)(*arrays())
    mesh = sharding.make_mesh(config)
    with sharding.use(mesh, config):
        shards = sharding.current_num_parts("batch")
        monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", -(-ROWS * POSITIONS * VOCAB // (CHUNKS * shards)))
        x, table, bias, targets, weights = arrays()
        of_table = jax.sharding.NamedSharding(mesh, parameter_spec("vd", table.shape, mesh))
        of_batch = sharding.batch_sharding(mesh)
        laid = (jax.device_put(array, of_batch) for array in (x, targets, weights))
        given = next(laid), jax.device_put(table, of_table), bias, *laid
        compiled = jax.jit(gradients, out_shardings=(of_batch, of_table, None)).lower(*given).compile()
    for actual, wanted in zip(compiled(*given), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)
    if config == SEQUENCE:
        return  # Positions are split, and each chunk adds up their gradients.
    node = topologies.parse("h100:8")
    places = [(0, place) for place in itertools.product(*map(range, node.shape))]
    sent = traffic.collectives(Program.parse(compiled.as_text()), node, places)
    large = [one for one in sent if one.size >= TABLE / 8]
    assert large and all(one.times == 1 for one in large), large
