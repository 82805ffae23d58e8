"""Rows whose positions the mesh splits: every family computes the same, and activations are where the rules say."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec
from on_meshes import ROWS, VOCAB, laid
from small_bert import assert_trees_close, lay_out, random_examples, small_experiment, small_transformer

from jaxformer.errors import InputError
from jaxformer.layers.attention import Attention
from jaxformer.layers.mlp import GatedMlp
from jaxformer.layers.norms import RMSNorm
from jaxformer.layers.positions import RelativePositions, Rotary
from jaxformer.layers.transformer import Variant
from jaxformer.losses import cross_entropy
from jaxformer.losses.cross_entropy import decoded_cross_entropy
from jaxformer.models.bert import Bert
from jaxformer.models.gpt import Gpt
from jaxformer.models.t5 import T5
from jaxformer.models.vit import Vit
from jaxformer.parallel import sharding
from jaxformer.parallel.sharding import Mesh
from jaxformer.training import loop
from jaxformer.training.gradients import loss_and_gradient
from jaxformer.training.state import check_positions

LENGTH = 24
ONE = Mesh(1, 1, 1)
MESHES = [
    Mesh(1, sequence=2),
    Mesh(1, sequence=4),
    Mesh(2, sequence=4),
    Mesh(1, 2, sequence=4),
    Mesh(1, 1, 2, sequence=4),
    Mesh(1, 2, 2, sequence=2),
    Mesh(1, 2, 4),
]
GATED = {"mlp": GatedMlp(32), "norm": RMSNorm(), "norm_position": "before"}
GROUPED = Attention(kv_heads=2, bias=False)


def t5_stack(bidirectional):
    attention = Attention(head_dim=4, bias=False, scale_scores=False)
    positions = RelativePositions(8, 10, bidirectional)
    return small_transformer(heads=4, attention=attention, position_embedding=positions, **GATED)


MODELS = {
    "gpt": Gpt(small_transformer(heads=4, norm_position="before", dropout=0.1, attention_dropout=0.1), VOCAB, LENGTH),
    # A local block and a global one; the last has no partner.
    "llama": Gpt(
        small_transformer(
            heads=4,
            depth=3,
            unroll=1,
            attention=GROUPED,
            position_embedding=Rotary(100.0),
            period=(Variant(attention=dataclasses.replace(GROUPED, window=5)), Variant()),
            **GATED,
        ),
        VOCAB,
        LENGTH,
        tie_embeddings=False,
    ),
    "bert": Bert(small_transformer(heads=4), vocab=VOCAB, max_length=LENGTH),
    "t5": T5(t5_stack(True), t5_stack(False), vocab=VOCAB, max_length=LENGTH),
    "vit": Vit(
        small_transformer(heads=4, norm_position="before"), ("a", "b"), 16, 4, class_token=False, pooling="mean"
    ),
    "vit with a class token": Vit(small_transformer(heads=4, norm_position="before"), ("a", "b"), 16, 4),
}


def batch_of(name):
    rng = np.random.default_rng(0)
    if name.startswith("vit"):
        return {"images": rng.integers(0, 256, (ROWS, 16, 16, 3)).astype(np.uint8), "targets": rng.integers(0, 2, ROWS)}
    if name == "bert":
        examples = random_examples(0, [24, 5, 12, 20, 24, 9, 12, 3, 11, 8], VOCAB)
        return lay_out([[one] for one in examples[:6]] + [examples[6:8], examples[8:]], LENGTH, 6, 2)
    batch = {key: rng.integers(0, VOCAB, (ROWS, LENGTH)) for key in ("tokens", "targets")}
    batch["segments"] = np.sort(rng.integers(0, 3, (ROWS, LENGTH)))[:, ::-1].copy()
    batch["weights"] = rng.random((ROWS, LENGTH)).astype(np.float32) * (batch["segments"] > 0)
    if name == "t5":  # As many input tokens as the mesh splits into other parts than the targets.
        batch["inputs"] = rng.integers(0, VOCAB, (ROWS, 16))
        batch["input_segments"] = np.sort(rng.integers(0, 3, (ROWS, 16)))[:, ::-1].copy()
    return batch


def loss_of(name, params, batch):
    inputs = {key: array for key, array in batch.items() if key not in ("targets", "weights")}
    output = MODELS[name].apply({"params": params}, **inputs, train=True, rngs={"dropout": jax.random.key(1)})
    if name.startswith("vit"):
        return -jax.nn.log_softmax(output.logits)[np.arange(ROWS), batch["targets"]].mean()
    return decoded_cross_entropy(output.hidden, output.lm_head, batch["targets"], batch["weights"]).loss.value


@functools.partial(jax.jit, static_argnums=0)
def gradients(name, params, batch):
    """The loss and the gradients of all parameters."""
    if name == "bert":
        experiment = small_experiment(MODELS[name], batch=ROWS)
        terms, gradient = loss_and_gradient(experiment, params, batch, jax.random.key(0))
        return {term: mean.value for term, mean in terms.items()}, gradient
    return jax.value_and_grad(functools.partial(loss_of, name))(params, batch)


@functools.cache
def on(name, shape):
    mesh, params, batch = laid(MODELS[name], shape, batch_of(name))
    with sharding.use(mesh, shape):
        return jax.device_get(gradients(name, params, batch))


def assert_same(name, shape):
    (expected, expected_gradient), (loss, gradient) = on(name, ONE), on(name, shape)
    assert_trees_close({"loss": loss}, {"loss": expected}, 0, 1e-5)
    assert_trees_close(gradient, expected_gradient, 1e-5, 1e-5)


def compiled(name, shape):
    mesh, params, batch = laid(MODELS[name], shape, batch_of(name))
    with sharding.use(mesh, shape):
        return gradients.lower(name, params, batch).compile()


@pytest.mark.slow
@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_a_decoder_computes_the_same_on_every_product_of_axes(shape):
    assert_same("llama", shape)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [Mesh(1, sequence=4), Mesh(1, 2, 2, sequence=2)], ids=str)
@pytest.mark.parametrize("name", ["bert", "t5", "vit"])
def test_every_family_computes_the_same_with_the_axis_alone_and_with_others(name, shape):
    assert_same(name, shape)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [Mesh(1, sequence=4), Mesh(1, 2, 2, sequence=2)], ids=str)
@pytest.mark.parametrize("name", ["gpt", "vit with a class token"])
def test_dropped_weights_and_positions_that_do_not_divide_compute_the_same(name, shape):
    """Dropout of the weights gathers the keys, and the 17 positions of the ViT stay whole."""
    assert_same(name, shape)


@pytest.mark.slow
def test_the_loss_in_chunks_of_positions_is_the_same(monkeypatch):
    expected = on("llama", ONE)
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", ROWS * VOCAB * 5)  # Parts of 6 positions, in chunks of 3 or 5.
    for shape in (ONE, Mesh(1, sequence=4), Mesh(1, 2, 2, sequence=2)):
        mesh, params, batch = laid(MODELS["llama"], shape, batch_of("llama"))
        with sharding.use(mesh, shape):
            loss, gradient = jax.jit(jax.value_and_grad(lambda *given: loss_of("llama", *given)))(params, batch)
        assert float(loss) == pytest.approx(float(expected[0]), rel=1e-5)
        assert_trees_close(jax.device_get(gradient), expected[1], 1e-5, 1e-5)


@pytest.mark.slow
def test_keys_travel_and_no_device_gathers_the_activations_of_a_row():
    program = compiled("llama", Mesh(1, sequence=4)).as_text()
    assert "collective-permute" in program
    gathered = re.findall(r"= (\w+)\[([\d,]*)\]\S* all-gather\(", program)
    activations = [shape for kind, shape in gathered if kind == "f32" and str(LENGTH) in shape.split(",")]
    assert gathered and not activations, "parameters are gathered, and integers of masks"


@pytest.mark.slow
@pytest.mark.parametrize("shape", [Mesh(1, sequence=4), Mesh(1, 1, 4)], ids=str)
def test_saved_activations_are_divided_by_the_axis(shape):
    """The input of each block, which the backward pass reads."""
    model = Gpt(small_transformer(heads=4, unroll=1, remat="full", **GATED), VOCAB, LENGTH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "full", model)
        whole, split = (compiled("full", mesh).as_text() for mesh in (ONE, shape))
    saved = f"f32[2,{ROWS},{LENGTH},16]"
    assert saved in whole and saved not in split
    assert f"f32[2,{ROWS},{LENGTH // 4},16]" in split


@pytest.mark.slow
@pytest.mark.parametrize("parts", [{}, GATED], ids=["mlp", "gated"])
def test_the_width_of_an_mlp_stays_split_in_the_backward_pass(parts):
    """Otherwise the compiler exchanges its activations between devices, to split their positions."""
    model = Gpt(small_transformer(heads=4, unroll=1, remat="full", **parts), VOCAB, LENGTH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "tensor", model)
        program = compiled("tensor", Mesh(1, 1, 4)).as_text()
    assert "reduce-scatter(" in program or "all-reduce(" in program
    assert "all-to-all(" not in program


def test_positions_are_split_between_layers_over_sequence_and_tensor():
    mesh = sharding.make_mesh(Mesh(1, 1, 2, sequence=4))

    def spec(letters, *shape):
        return sharding.partition_spec(letters, shape, mesh)

    assert spec("brd", 8, 32, 16) == PartitionSpec(None, ("sequence", "tensor"), None)
    assert spec("brd", 8, 12, 15) == PartitionSpec(None, "sequence", None), "the first axes that divide it"
    assert spec("bthk", 8, 32, 4, 8) == PartitionSpec(None, "sequence", "tensor", None)
    assert spec("dhk", 16, 4, 8) == PartitionSpec("sequence", "tensor", None), "parameters too"


def test_an_axis_that_divides_no_row_is_refused():
    experiment = small_experiment(mesh=Mesh(1, sequence=5))
    with pytest.raises(
        InputError, match=r"data.task.length=24 does not divide into 5 parts \(mesh.sequence\); 25 would"
    ):
        check_positions(experiment, jax.sharding.AbstractMesh((5,), ("sequence",)))
    check_positions(experiment, jax.sharding.AbstractMesh((8,), ("sequence",)))


def test_a_ring_refuses_dropout_of_the_weights():
    attention = Attention(kernel="ring")
    model = Gpt(small_transformer(heads=4, attention=attention, attention_dropout=0.1), VOCAB, LENGTH)
    shape, tokens = Mesh(1, sequence=4), np.zeros((ROWS, LENGTH), np.int32)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    with sharding.use(sharding.make_mesh(shape), shape), pytest.raises(InputError, match=r"kernel=ring.*dropout"):
        jax.eval_shape(functools.partial(model.init, train=True), rngs, tokens)


@pytest.mark.slow
def test_a_run_continues_on_another_mesh(tiny_config, tmp_path):
    fields = {"optimizer__schedule__decay": "constant", "evaluation__every": 2, "checkpoint__every": 2}
    one, two = tmp_path / "one", tmp_path / "two"
    loop.fit(tiny.load(tiny_config, **fields, mesh=ONE, steps=4), one, quiet=True)
    for steps, shape in ((2, Mesh(1, 2, sequence=4)), (4, Mesh(1, 1, 2, sequence=2))):
        loop.fit(tiny.load(tiny_config, **fields, mesh=shape, steps=steps), two, quiet=True)
    tiny.assert_equal(tiny.saved(two), tiny.saved(one), atol=1e-5)
    for split in ("train", "validation"):
        ours, theirs = (tiny.metrics(folder, split)[-1]["loss"] for folder in (two, one))
        assert ours == pytest.approx(theirs, abs=1e-5)
