"""Experts on a mesh: every family computes the same on any, and parameters are where the rules say."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding, PartitionSpec
from on_meshes import LENGTH, ROWS, VOCAB, gradients, inputs_of, laid, on
from small_bert import assert_trees_close, lay_out, noisy_params, random_examples, small_experiment, small_transformer

from jaxformer.errors import InputError
from jaxformer.layers.experts import ExpertMlp
from jaxformer.layers.mlp import GatedMlp
from jaxformer.layers.positions import RelativePositions
from jaxformer.layers.transformer import Variant
from jaxformer.models.bert import Bert
from jaxformer.models.gpt import Gpt
from jaxformer.models.t5 import T5
from jaxformer.models.vit import Vit
from jaxformer.parallel import sharding
from jaxformer.parallel.sharding import Mesh
from jaxformer.training import loop
from jaxformer.training.gradients import loss_and_gradient
from jaxformer.training.optimizers import Adafactor, AdamW, Muon, Schedule
from jaxformer.training.state import abstract_params, abstract_state, init_state

EXPERTS = ExpertMlp(experts=4, width=24)
LIMITED = ExpertMlp(experts=4, width=24, capacity=1.0)


def stack(**fields):
    return small_transformer(heads=4, norm_position="before", unroll=1, **fields)


def t5_stack(bidirectional):
    return stack(mlp=EXPERTS, position_embedding=RelativePositions(8, 10, bidirectional))


MODELS = {
    "gpt": Gpt(stack(period=(Variant(mlp=GatedMlp(32)), Variant(mlp=EXPERTS))), VOCAB, LENGTH),
    "gpt limited": Gpt(stack(mlp=LIMITED), VOCAB, LENGTH),
    "bert": Bert(small_transformer(heads=4, mlp=EXPERTS, unroll=1), vocab=VOCAB, max_length=24),
    "t5": T5(t5_stack(True), t5_stack(False), vocab=VOCAB, max_length=LENGTH),
    "vit": Vit(stack(mlp=EXPERTS), ("a", "b"), image=8, patch=4),
}
ALONE, ONE = Mesh(1, expert=4), Mesh(1, 1, 1)
PRODUCTS = [Mesh(2, expert=2), Mesh(1, 2, expert=2), Mesh(1, 1, 2, expert=2), Mesh(1, 2, 2, expert=2)]


def assert_same(name, shape):
    expected, found = on(MODELS[name], ONE), on(MODELS[name], shape)
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5)
    assert_trees_close(found[1], expected[1], 1e-5, 1e-5)
    assert_trees_close(found[2], expected[2], 1e-5, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_family_computes_the_same_with_its_experts_on_several_devices(name):
    assert_same(name, ALONE)


@pytest.mark.slow
@pytest.mark.parametrize("shape", PRODUCTS, ids=str)
def test_every_product_of_axes_gives_the_same_loss_and_gradients(shape):
    assert_same("gpt", shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt limited", "bert", "t5", "vit"])
def test_the_expert_axis_goes_with_all_others_in_every_family(name):
    assert_same(name, Mesh(1, 2, 2, expert=2))


@pytest.mark.slow
def test_rows_and_experts_that_do_not_divide_stay_whole():
    """Three rows on two devices, and four experts on eight: each device has all, and nothing changes."""
    mlp, x = EXPERTS, np.random.default_rng(1).normal(size=(3, 5, 16)).astype(np.float32)
    params = noisy_params(mlp, x)

    @jax.jit
    def run(params, x):
        return jax.value_and_grad(lambda x: (mlp.apply({"params": params}, x, "float32")[0] ** 2).sum())(x)

    expected = run(params, x)
    for shape in (Mesh(1, expert=2), Mesh(1, expert=8), Mesh(1, 1, 2, expert=4)):
        with sharding.use(sharding.make_mesh(shape), shape):
            jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-5), run(params, x), expected)


def test_parameters_of_experts_are_split_over_the_expert_axis_and_all_others():
    experiment = small_experiment(MODELS["bert"], mesh=Mesh(1, 2, 2, expert=2))
    mlp = abstract_params(experiment, sharding.make_mesh(experiment.mesh))["transformer"]["blocks"]["mlp"]
    wanted = {
        "gate": ((None, "expert", "fsdp", "tensor"), (2, 2, 8, 12)),
        "up": ((None, "expert", "fsdp", "tensor"), (2, 2, 8, 12)),
        "down": ((None, "expert", "tensor", "fsdp"), (2, 2, 12, 8)),
        "router": ((None, "fsdp", None), (2, 8, 4)),
    }
    for name, (spec, shard) in wanted.items():
        kernel = mlp[name]["kernel"]
        assert kernel.sharding.is_equivalent_to(NamedSharding(kernel.sharding.mesh, PartitionSpec(*spec)), kernel.ndim)
        assert kernel.sharding.shard_shape(kernel.shape) == shard
    assert sharding.batch_sharding(sharding.make_mesh(Mesh(2, expert=4))).shard_shape((8, 3)) == (1, 3)


def bert_batch():
    rows = [[example] for example in random_examples(0, [12, 5, 12, 9, 12, 3, 12, 11], VOCAB)]
    return lay_out(rows, LENGTH, 3, 1)


def trained(optimizer, shape, steps=2):
    """The parameters after some steps on a mesh, and the means of the last."""
    experiment = small_experiment(MODELS["bert"], batch=ROWS, optimizer=optimizer, mesh=shape)
    mesh = sharding.make_mesh(shape)
    state, batch = init_state(experiment, abstract_state(experiment, mesh)), bert_batch()
    step, means = loop.compile_step(experiment, mesh), {}
    for _ in range(steps):
        state, means = step(state, sharding.global_batch(batch, range(ROWS), ROWS, mesh))
    return jax.device_get((state.params, means))


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer", [Muon(Schedule(1e-2)), Adafactor(Schedule(1e-2))], ids=lambda one: type(one).__name__
)
def test_optimizers_of_matrices_train_experts_alike_on_every_mesh(optimizer):
    alone, means = trained(optimizer, ONE)
    split, split_means = trained(optimizer, Mesh(1, 2, expert=2))
    for tree in (alone, split):
        # A bias of keys changes no attention: its gradient is rounding, which Adafactor scales to a whole update.
        del tree["transformer"]["blocks"]["attention"]["key"]["bias"]
    assert_trees_close(split, alone, 2e-5)
    for name, mean in means.items():
        assert float(split_means[name].value) == pytest.approx(float(mean.value), rel=1e-4), name
    assert {"auxiliary/load_balance", "auxiliary/router_z", "reported/largest_expert_load"} < means.keys()


@pytest.mark.slow
def test_micro_batches_weigh_their_auxiliary_losses_by_their_tokens():
    experiment = small_experiment(MODELS["bert"], batch=ROWS)
    params = noisy_params(MODELS["bert"], **inputs_of(MODELS["bert"]))
    batch = bert_batch()

    def terms(part, experiment=experiment):
        return jax.jit(functools.partial(loss_and_gradient, experiment))(params, part, jax.random.key(0))

    whole, _ = terms(batch, small_experiment(MODELS["bert"], batch=ROWS, optimizer=AdamW(Schedule(1e-3), accumulate=2)))
    parts = [terms({key: array[number::2] for key, array in batch.items()})[0] for number in range(2)]
    for name in ("auxiliary/load_balance", "auxiliary/router_z"):
        sums, weights = (sum(float(getattr(part[name], field)) for part in parts) for field in ("sum", "weight"))
        assert float(whole[name].value) == pytest.approx(sums / weights, rel=1e-5)
    assert float(parts[0]["auxiliary/router_z"].weight) != float(parts[1]["auxiliary/router_z"].weight)


@pytest.mark.slow
def test_limited_experts_exchange_slots_by_an_all_to_all_and_gather_no_stack():
    """In the compiled step the stacked kernels of experts are never whole on a device."""
    shape = Mesh(1, 2, expert=4)
    for name, wanted in (("gpt limited", "all-to-all"), ("gpt", "reduce-scatter")):
        mesh, params, inputs = laid(MODELS[name], shape, inputs_of(MODELS[name]))
        with sharding.use(mesh, shape):
            text = gradients.lower(MODELS[name], params, inputs).compile().as_text()
        assert re.search(rf" {wanted}\(", text)
        gathered = re.findall(r"= \S*?\[([\d,]*)\]\S* all-gather\(", text)
        assert gathered, "the embeddings' axis of kernels is gathered"
        for sizes in gathered:
            assert not re.search(r"(^|,)4,(16,24|24,16)$", sizes), f"all experts on a device: {sizes}"


def test_an_expert_axis_without_experts_or_that_does_not_divide_them_is_refused():
    for model, shape, message in [
        (None, Mesh(1, expert=2), r"mesh.expert=2: the model has no experts \(ExpertMlp\); expected 1"),
        (MODELS["bert"], Mesh(1, expert=8), "mesh.expert=8 does not divide mlp.experts=4; 4 would"),
    ]:
        experiment = small_experiment(model, mesh=shape)
        with pytest.raises(InputError, match=message):
            loop.check_experts(experiment, sharding.make_mesh(shape))
    loop.check_experts(small_experiment(), sharding.make_mesh(ONE))


def test_means_of_experts_are_reported():
    experiment = small_experiment(MODELS["bert"])
    names = [name for metric in experiment.objective.all_metrics(experiment.model) for name in metric.names]
    assert names[-4:] == [
        "auxiliary/load_balance",
        "auxiliary/router_z",
        "reported/largest_expert_load",
        "reported/dropped_tokens",
    ]
    assert dataclasses.replace(experiment, model=Bert(small_transformer(), vocab=VOCAB)).model.mean_names == ()


@pytest.mark.slow
def test_a_run_continues_on_another_mesh(tiny_config, tmp_path):
    fields = {"model__transformer__mlp": EXPERTS, "optimizer__schedule__decay": "constant"}
    fields |= {"evaluation__every": 2, "checkpoint__every": 2}
    one, two = tmp_path / "one", tmp_path / "two"
    loop.fit(tiny.load(tiny_config, **fields, mesh=ONE, steps=4), one, quiet=True)
    loop.fit(tiny.load(tiny_config, **fields, mesh=Mesh(1, 2, expert=2), steps=2), two, quiet=True)
    loop.fit(tiny.load(tiny_config, **fields, mesh=Mesh(2, expert=4), steps=4), two, quiet=True)
    tiny.assert_equal(tiny.saved(two), tiny.saved(one), atol=1e-5)
    for split in ("train", "validation"):
        ours, theirs = (tiny.metrics(folder, split)[-1] for folder in (two, one))
        for name in ("loss", "auxiliary/load_balance", "auxiliary/router_z", "reported/largest_expert_load"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5), name
