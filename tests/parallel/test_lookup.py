"""The gradient of a table that is split over the mesh equals that on one device, and is never reduced as a whole."""

import re

import jax
import numpy as np
import pytest

from jaxformer.layers.lookup import lookup
from jaxformer.parallel import sharding
from jaxformer.parallel.sharding import Mesh

VOCAB, WIDTH, ROWS = 64, 128, 8
BOTH = (("vocab", ("fsdp", "tensor")), ("embed", ()))
"""Rules that split the vocabulary over two mesh axes."""


@pytest.mark.parametrize(
    "config",
    [
        Mesh(data=2, fsdp=4),
        Mesh(slices=2, data=2, fsdp=2),
        Mesh(data=1, pipeline=2, fsdp=4),
        Mesh(data=2, fsdp=2, tensor=2),
        Mesh(data=2, fsdp=2, sequence=2),
        Mesh(data=1, fsdp=2, sequence=2, tensor=2),
        Mesh(data=1, tensor=8),
        Mesh(data=1, fsdp=2, tensor=4, rules=BOTH),
    ],
)
@pytest.mark.parametrize("length", [8, 80, 9], ids=["fewer tokens than rows", "more", "not divisible"])
def test_gradient_of_a_split_table_is_scattered(config, length):
    draw = np.random.default_rng(0)
    table, weights = (draw.normal(size=shape).astype(np.float32) for shape in ((VOCAB, WIDTH), (ROWS, length, WIDTH)))
    tokens = draw.integers(-3, VOCAB, (ROWS, length))  # Negative ids are counted from the end.

    def loss(table):
        return (lookup(table, tokens) * weights).sum()

    expected = np.zeros_like(table)
    np.add.at(expected, tokens, weights)
    mesh = sharding.make_mesh(config)
    with sharding.use(mesh, config):
        compiled = jax.jit(jax.grad(loss)).lower(table).compile()
    np.testing.assert_allclose(compiled(table), expected, rtol=1e-5, atol=1e-5)
    if length == 9 and {"tensor", "sequence"} & {name for name, size in mesh.shape.items() if size > 1}:
        return  # Positions are whole on each device, so the compiler chooses.
    whole = rf"f32\[{VOCAB},{WIDTH}\]\S* all-reduce\("
    assert not re.search(whole, compiled.as_text())
