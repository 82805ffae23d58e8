"""Masks of parameters, and each optimizer against another implementation or its definition."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxformer.errors import InputError
from jaxformer.parallel import sharding
from jaxformer.parallel.metadata import Boxed, ParameterInfo
from jaxformer.parallel.parameter_shards import state_shardings
from jaxformer.parameter_paths import decay_mask, found_in, frozen_mask, join, split
from jaxformer.training.optimizers import (
    Adafactor,
    AdamW,
    Lion,
    Muon,
    Optimizer,
    Schedule,
)

EACH = [AdamW, Adafactor, Lion, Muon]
CONSTANT = Schedule(1e-2, decay="constant")


def parameters(layers=2, width=8, heads=2, mlp=16, seed=0):
    """Random parameters shaped like a small BERT's."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    head = (heads, width // heads)
    project = {"kernel": draw(layers, width, *head), "bias": draw(layers, *head)}
    return {
        "embeddings": {
            "token": draw(11, width),
            "norm": {"scale": draw(width), "bias": draw(width)},
        },
        "transformer": {
            "blocks": {
                "attention": {
                    "query": project,
                    "output": {"kernel": draw(layers, *head, width), "bias": draw(layers, width)},
                },
                "mlp": {
                    "up": {"kernel": draw(layers, width, mlp)},
                    "down": {"kernel": draw(layers, mlp, width)},
                },
                "mlp_norm": {"scale": draw(layers, width)},
            }
        },
        "pooler": {"kernel": draw(width, width), "bias": draw(width)},
    }


def paths(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


AXES = {
    "embeddings/token": ("vd", 0),
    "query/kernel": ("dhk", 1),
    "query/bias": ("hk", 0),
    "output/kernel": ("hkd", 2),
    "up/kernel": ("df", 1),
    "down/kernel": ("fd", 1),
    "pooler/kernel": ("id", 1),
    "dense/kernel": ("id", 1),
}
"""Letters and contracted axes of the parameters here, by the end of their path; of the others, `d`."""


def infos(*trees):
    """The axes of these parameters, as their initialisation would have given them."""
    found = {}
    for path in (path for tree in trees for path in paths(tree)):
        letters, contracted = next((axes for end, axes in AXES.items() if path.endswith(end)), ("d", 0))
        found[path] = ParameterInfo("l" * ("blocks" in path) + letters, contracted)
    return found


BLOCKS = parameters()["transformer"]["blocks"]
INFOS = infos(parameters(), {"blocks": BLOCKS}, {"dense": {"kernel": 0}}, {"a": 0, "b": 0})


@functools.cache
def updater(optimizer, steps):
    transform = optimizer.transform(steps, INFOS)

    @jax.jit
    def update(params, state, gradient):
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(transform.init), update


def run(optimizer, params, gradients, steps=10):
    """Parameters after an update with each of the gradients, of a run of `steps`."""
    init, update = updater(optimizer, steps)
    state = init(params)
    for gradient in gradients:
        params, state = update(params, state, gradient)
    return params


def test_decay_mask_spares_biases_and_scales():
    decayed = {path for path, decays in paths(decay_mask(parameters())).items() if decays}
    assert decayed == {
        "embeddings/token",
        "transformer/blocks/attention/query/kernel",
        "transformer/blocks/attention/output/kernel",
        "transformer/blocks/mlp/up/kernel",
        "transformer/blocks/mlp/down/kernel",
        "pooler/kernel",
    }


def torch_adamw(optimizer, params, gradients, steps):
    """The same run by PyTorch: clipping, groups with and without decay, the rate as a factor."""
    decays = paths(decay_mask(params))
    tensors = {path: torch.nn.Parameter(torch.tensor(np.array(leaf))) for path, leaf in paths(params).items()}
    groups = [
        {
            "params": [tensors[path] for path in tensors if decays[path] == decay],
            "weight_decay": optimizer.weight_decay * decay,
        }
        for decay in (True, False)
    ]
    schedule = optimizer.schedule

    def factor(step):
        if step < schedule.warmup:
            return step / schedule.warmup
        return (steps - step) / (steps - schedule.warmup)

    torch_optimizer = torch.optim.AdamW(groups, schedule.peak, (optimizer.b1, optimizer.b2), optimizer.eps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(torch_optimizer, factor)
    for gradient in gradients:
        for path, leaf in paths(gradient).items():
            tensors[path].grad = torch.tensor(np.array(leaf))
        torch.nn.utils.clip_grad_norm_(tensors.values(), optimizer.clip)
        torch_optimizer.step()
        scheduler.step()
    return {path: tensor.detach().numpy() for path, tensor in tensors.items()}


@pytest.mark.parametrize("count, warmup", [(1, 0), (10, 0), (10, 4)])
def test_adamw_equals_torch(count, warmup):
    optimizer = AdamW(Schedule(1e-2, warmup), weight_decay=0.1, clip=1.0)
    params = jax.tree.map(lambda x: x / 10, parameters())
    # Norms from 0.3 to 30, so that some gradients are clipped and others are not.
    gradients = [jax.tree.map(lambda x, i=i: x * 10 ** (i % 3 - 2), parameters(seed=i)) for i in range(1, count + 1)]
    ours = paths(run(optimizer, params, gradients, steps=20))
    theirs = torch_adamw(optimizer, params, gradients, steps=20)
    for path, value in theirs.items():
        np.testing.assert_allclose(ours[path], value, atol=1e-6, rtol=0, err_msg=path)
        assert np.abs(ours[path] - paths(params)[path]).max() > 1e-3


def test_clipping_scales_all_gradients_by_the_same_factor():
    params = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    clipped, _ = (
        Sgd(CONSTANT, clip=1.0).transform(1, INFOS).update(params, Sgd(CONSTANT).transform(1, INFOS).init(params))
    )
    np.testing.assert_allclose([clipped["a"][0], clipped["b"][0]], [0.6, 0.8], rtol=1e-6)


class Sgd(Optimizer):
    """The plain gradient, to see what `transform` does around a rule."""

    def rule(self, rate, infos):
        return optax.identity()


@pytest.mark.parametrize("kind", EACH)
def test_frozen_parameters_stay_and_take_no_memory(kind):
    params = parameters()
    patterns = ("^embeddings/", "query/kernel$")
    (trained, held), (gradient, _) = (
        split(tree, lambda path: found_in(path, patterns)) for tree in (params, parameters(seed=1))
    )
    after = join(run(kind(CONSTANT), trained, [gradient] * 3), held)
    frozen = paths(frozen_mask(params, patterns))
    assert {path for path, is_frozen in frozen.items() if is_frozen} == {
        "embeddings/token",
        "embeddings/norm/scale",
        "embeddings/norm/bias",
        "transformer/blocks/attention/query/kernel",
    }
    for path, leaf in paths(after).items():
        assert np.array_equal(leaf, paths(params)[path]) == frozen[path], path
    state = paths(kind(CONSTANT).transform(10, INFOS).init(trained))
    assert not [path for path in state if "embeddings" in path or "query/kernel" in path]
    assert [path for path in state if "pooler/kernel" in path]


def test_a_pattern_that_finds_nothing():
    with pytest.raises(InputError, match=r"optimizer.freeze='embedings': matches no parameter's path"):
        frozen_mask(parameters(), ("embedings",))


def test_nothing_left_to_train():
    with pytest.raises(InputError, match="all parameters are frozen"):
        frozen_mask(parameters(), (".",))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_each_layer_has_a_share_of_the_rate_of_the_one_above(kind):
    params, gradient = parameters(layers=3), parameters(layers=3, seed=1)
    before, plain, decayed = (
        paths(tree)
        for tree in (
            params,
            run(kind(CONSTANT), params, [gradient]),
            run(kind(CONSTANT, layer_decay=0.5), params, [gradient]),
        )
    )
    shares = np.array([0.125, 0.25, 0.5])
    for path, start in before.items():
        whole, scaled = plain[path] - start, decayed[path] - start
        share = 1.0
        if "blocks" in path:
            share = shares.reshape(-1, *[1] * (start.ndim - 1))
        elif "embeddings" in path:
            share = 0.0625
        np.testing.assert_allclose(scaled, share * whole, atol=1e-6, err_msg=path)
    assert any("pooler" in path for path in before)


def layer(tree, index):
    """The parameters of one layer, still with their layer axis."""
    blocks = jax.tree.map(lambda leaf: leaf[index : index + 1], tree["transformer"]["blocks"])
    return {**tree, "transformer": {"blocks": blocks}}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Muon, Adafactor])
def test_each_layer_of_a_stack_updates_as_if_alone(kind):
    # 128 wide, so that Adafactor factors; layers of different size, so that a statistic over all
    # would show.
    params, gradient = (parameters(3, 128, 2, 192, seed) for seed in (0, 1))
    scale = jnp.array([0.1, 1.0, 10.0])
    params["transformer"]["blocks"], gradient["transformer"]["blocks"] = (
        jax.tree.map(lambda leaf: jax.vmap(jnp.multiply)(leaf, scale), tree["transformer"]["blocks"])
        for tree in (params, gradient)
    )
    optimizer = kind(CONSTANT, clip=None)
    together = run(optimizer, params, [gradient] * 2)["transformer"]["blocks"]
    for index in range(3):
        alone = run(optimizer, layer(params, index), [layer(gradient, index)] * 2)["transformer"]["blocks"]
        for path, leaf in paths(alone).items():
            np.testing.assert_allclose(paths(together)[path][index], leaf[0], atol=1e-6, err_msg=path)


@pytest.mark.slow
def test_muon_orthogonalises_the_matrix_that_each_kernel_applies():
    params, gradient = parameters(seed=0), parameters(seed=1)
    optimizer = Muon(Schedule(1.0, decay="constant"), weight_decay=0.0, clip=None)
    after = run(optimizer, params, [gradient])
    update = jax.tree.map(jnp.subtract, params, after)["transformer"]["blocks"]
    matrices = {
        "query": update["attention"]["query"]["kernel"].reshape(2, 8, 8),
        "output": update["attention"]["output"]["kernel"].reshape(2, 8, 8),
        "up": update["mlp"]["up"]["kernel"],
        "down": update["mlp"]["down"]["kernel"],
    }
    for name, matrix in matrices.items():
        singular = np.linalg.svd(matrix / (0.2 * math.sqrt(max(matrix.shape[1:]))), compute_uv=False)
        # Five steps of Newton and Schulz bring them near 1, not to it, except for the very smallest.
        assert np.median(singular) == pytest.approx(0.95, abs=0.3), name
        assert singular.max() < 1.4, name


@pytest.mark.slow
def test_muon_updates_the_rest_by_adamw():
    params, gradients = parameters(), [parameters(seed=seed) for seed in (1, 2, 3)]
    muon, adamw = (paths(run(kind(CONSTANT, clip=None), params, gradients)) for kind in (Muon, AdamW))
    kernels = [path for path in adamw if "blocks" in path and path.endswith("kernel")]
    for path in adamw:
        assert np.allclose(muon[path], adamw[path], atol=1e-7) == (path not in kernels), path


def test_adafactor_factors_kernels_with_heads():
    params = parameters(layers=2, width=256, heads=4, mlp=512)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    state = jax.tree.leaves(Adafactor().transform(10, INFOS).init(params))
    assert sum(leaf.size for leaf in state) < 0.03 * size


def test_adafactor_without_decay_equals_optax():
    # No heads and no stack: there optax's own composition means the same.
    rng = np.random.default_rng(0)
    params, *gradients = ({"dense": {"kernel": jnp.array(rng.normal(size=(130, 140)))}} for _ in range(4))
    ours = run(Adafactor(CONSTANT, weight_decay=0.0, clip=None), params, gradients)
    theirs, transform = params, optax.adafactor(1e-2)
    state, update = transform.init(params), jax.jit(transform.update)
    for gradient in gradients:
        updates, state = update(gradient, state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    np.testing.assert_allclose(ours["dense"]["kernel"], theirs["dense"]["kernel"], atol=1e-6)


@pytest.mark.parametrize("optimizer", [AdamW(), Adafactor(momentum=0.9), Adafactor(), Lion(), Muon()])
def test_a_regression_is_learnt(optimizer):
    inputs, all_params = jax.random.normal(jax.random.key(0), (64, 8)), parameters(layers=1)
    mlp = all_params["transformer"]["blocks"]["mlp"]
    params = {"blocks": {"mlp": mlp}, "pooler": all_params["pooler"]}
    targets = jnp.tanh(inputs @ jax.random.normal(jax.random.key(1), (8, 8)))

    @jax.value_and_grad
    def loss(params):
        mlp = params["blocks"]["mlp"]
        hidden = jnp.tanh(inputs @ mlp["up"]["kernel"][0]) @ mlp["down"]["kernel"][0]
        return jnp.mean((hidden @ params["pooler"]["kernel"] + params["pooler"]["bias"] - targets) ** 2)

    # Adafactor's rate is relative to the parameter's size.
    peak = 3e-2 if isinstance(optimizer, Adafactor) else 1e-2
    init, update = updater(dataclasses.replace(optimizer, schedule=Schedule(peak, 5)), 150)
    loss, state, losses = jax.jit(loss), init(params), []
    for _ in range(150):
        value, gradient = loss(params)
        params, state = update(params, state, gradient)
        losses.append(value)
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("kind, moments", [(AdamW, 24), (Adafactor, 0), (Lion, 12), (Muon, 20)])
def test_moments_inherit_the_axes_of_boxed_parameters(kind, moments):
    # As a sharded state is made: from parameters in boxes that name their axes.
    boxed = jax.tree.map(lambda leaf: Boxed(leaf, "ldhk"[: leaf.ndim]), parameters())
    mesh = sharding.make_mesh(sharding.Mesh(1, 1, 1))
    for decay in (0.5, 1.0):
        transform = kind(layer_decay=decay).transform(10, INFOS)
        state, plain = (jax.eval_shape(transform.init, params) for params in (boxed, parameters()))
        assert jax.tree.structure(state_shardings(state, mesh)) == jax.tree.structure(plain)
        assert [leaf.shape for leaf in jax.tree.leaves(state)] == [leaf.shape for leaf in jax.tree.leaves(plain)]
    leaves = jax.tree.leaves(state, is_leaf=lambda leaf: isinstance(leaf, Boxed))
    assert sum(isinstance(leaf, Boxed) for leaf in leaves) == moments


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: AdamW(weight_decay=-0.1), "optimizer.weight_decay=-0.1: expected at least 0"),
        (lambda: AdamW(clip=0.0), "optimizer.clip=0.0: expected above 0, or None"),
        (lambda: AdamW(accumulate=0), "optimizer.accumulate=0: expected at least 1"),
        (lambda: AdamW(ema=1.0), "optimizer.ema=1.0: expected 0 to 1, below 1"),
        (lambda: AdamW(freeze=("(",)), r"optimizer.freeze='\(': expected a regular expression"),
        (lambda: AdamW(freeze="embeddings"), "freeze='embeddings': expected values, each a str"),
        (lambda: AdamW(layer_decay=1.5), "optimizer.layer_decay=1.5: expected 0 to 1"),
        (lambda: AdamW(b1=1.0), "optimizer.b1=1.0: expected 0 to 1, below 1"),
        (lambda: AdamW(eps=-1.0), "optimizer.eps=-1.0: expected at least 0"),
        (lambda: AdamW(schedule=1e-3), "schedule=0.001: expected a Schedule"),
        (lambda: Lion(b2=-0.5), "optimizer.b2=-0.5: expected 0 to 1, below 1"),
        (lambda: Muon(momentum=1.0), "optimizer.momentum=1.0: expected 0 to 1, below 1"),
        (lambda: Adafactor(decay=2.0), "optimizer.decay=2.0: expected 0 to 1"),
        (lambda: Adafactor(threshold=0.0), "optimizer.threshold=0.0: expected above 0"),
        (lambda: Adafactor(momentum=-1.0), "optimizer.momentum=-1.0: expected 0 to 1, below 1"),
    ],
)
def test_bad_fields(make, message):
    with pytest.raises(InputError, match=message):
        make()
