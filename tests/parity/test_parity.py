"""The same numbers as an independent implementation: transformers' BertForPreTraining, in PyTorch, with our weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from small_bert import assert_trees_close, first_state, lay_out, random_examples, small_bert, small_experiment

from jaxformer.config import override
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.training.loop import loss_and_gradient, train_step
from jaxformer.training.optimizers import AdamW, Schedule

TOLERANCE = 1e-5
HIDDEN_ACT = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "silu": "silu"}


@dataclasses.dataclass(frozen=True)
class Shape:
    """The random choices of a configuration."""

    heads: int
    head_dim: int
    depth: int
    mlp: int
    activation: str
    vocab: int
    max_length: int
    epsilon: float


def draw_shape(seed: int) -> Shape:
    rng = np.random.default_rng(seed)
    return Shape(
        heads=(1, 3, 5, 2)[seed % 4],
        head_dim=int(rng.integers(3, 9)),
        depth=int(rng.integers(1, 3)),
        mlp=int(rng.integers(17, 60)),
        activation=list(HIDDEN_ACT)[seed % 4],
        vocab=int(rng.integers(60, 120)),
        max_length=int(rng.integers(16, 24)),
        epsilon=float(rng.choice([1e-12, 1e-6, 1e-3])),
    )


SHAPES = [draw_shape(seed) for seed in range(4)]


def our_bert(shape: Shape):
    return small_bert(
        shape.vocab,
        shape.max_length,
        width=shape.heads * shape.head_dim,
        depth=shape.depth,
        heads=shape.heads,
        mlp=Mlp(shape.mlp, shape.activation),
        norm=LayerNorm(shape.epsilon),
    )


def their_bert(shape: Shape, seed: int) -> transformers.BertForPreTraining:
    """Transformers' BERT with random parameters, so that none is 0 or 1."""
    config = transformers.BertConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.heads * shape.head_dim,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=shape.mlp,
        hidden_act=HIDDEN_ACT[shape.activation],
        max_position_embeddings=shape.max_length,
        layer_norm_eps=shape.epsilon,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    model = transformers.BertForPreTraining(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            center = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            parameter.normal_(0, 0.2, generator=generator).add_(center)
    return model


def as_ours(tensors: dict[str, torch.Tensor], shape: Shape) -> dict:
    """Tensors by transformers' names (parameters, or their gradients) as the tree that our BERT has.

    Raises:
      AssertionError: a tensor was left over.
    """
    left = {name: tensor.detach().numpy() for name, tensor in tensors.items()}

    def linear(name):
        return {"kernel": left.pop(f"{name}.weight").T, "bias": left.pop(f"{name}.bias")}

    def norm(name):
        return {"scale": left.pop(f"{name}.weight"), "bias": left.pop(f"{name}.bias")}

    def block(name):
        heads = {"kernel": (-1, shape.heads, shape.head_dim), "bias": (shape.heads, shape.head_dim)}

        def projection(part):
            arrays = linear(f"{name}.attention.self.{part}")
            return {key: arrays[key].reshape(heads[key]) for key in arrays}

        output = linear(f"{name}.attention.output.dense")
        output["kernel"] = output["kernel"].reshape(shape.heads, shape.head_dim, -1)
        return {
            "attention": {part: projection(part) for part in ("query", "key", "value")} | {"output": output},
            "attention_norm": norm(f"{name}.attention.output.LayerNorm"),
            "mlp": {"up": linear(f"{name}.intermediate.dense"), "down": linear(f"{name}.output.dense")},
            "mlp_norm": norm(f"{name}.output.LayerNorm"),
        }

    embeddings = "bert.embeddings"
    params = {
        "embeddings": {
            "token": left.pop(f"{embeddings}.word_embeddings.weight"),
            "position": left.pop(f"{embeddings}.position_embeddings.weight"),
            "token_type": left.pop(f"{embeddings}.token_type_embeddings.weight"),
            "norm": norm(f"{embeddings}.LayerNorm"),
        },
        "transformer": {
            "blocks": jax.tree.map(
                lambda *layers: np.stack(layers), *(block(f"bert.encoder.layer.{i}") for i in range(shape.depth))
            )
        },
        "pooler": linear("bert.pooler.dense"),
        "masked_lm": {
            "dense": linear("cls.predictions.transform.dense"),
            "norm": norm("cls.predictions.transform.LayerNorm"),
            "bias": left.pop("cls.predictions.bias"),
        },
        "next_sentence": linear("cls.seq_relationship"),
    }
    assert not left, f"not mapped: {sorted(left)}"
    return jax.tree.map(jnp.array, params)


def draw_batch(shape: Shape, seed: int) -> dict[str, np.ndarray]:
    """Three rows, one of them full and two with padding; every prediction of weight 1, as in transformers."""
    length = shape.max_length - 2
    rows = [[example] for example in random_examples(seed, (length, 9, 5), shape.vocab)]
    batch = lay_out(rows, length, predictions=4, examples_per_row=1)
    for name in ("weights", "next_sentence_weights"):
        batch[name] = np.sign(batch[name])
    return batch


def run_theirs(model, batch, **more):
    labels = np.full(batch["tokens"].shape, -100)
    rows, places = np.nonzero(batch["weights"])
    labels[rows, batch["masked_positions"][rows, places]] = batch["targets"][rows, places]
    inputs = {
        "input_ids": batch["tokens"],
        "attention_mask": batch["segments"],
        "token_type_ids": batch["token_types"],
        "labels": labels,
        "next_sentence_label": batch["next_sentence"][:, 0],
    }
    return model(**{name: torch.from_numpy(array).long() for name, array in inputs.items()}, **more)


@pytest.fixture(scope="module", params=range(4), ids=lambda i: f"{SHAPES[i].heads}heads-{SHAPES[i].activation}")
def pair(request):
    """Both models' output on one batch: (batch, their output, our output at all positions, at the masked ones)."""
    shape, seed = SHAPES[request.param], request.param
    theirs, ours, batch = their_bert(shape, seed), our_bert(shape), draw_batch(shape, seed)
    params = as_ours(dict(theirs.named_parameters()), shape)
    with torch.no_grad():
        expected = run_theirs(theirs, batch, output_hidden_states=True, output_attentions=True)
        pooled = theirs.bert.pooler(expected.hidden_states[-1])

    @jax.jit
    def run(params, batch):
        some = {name: batch[name] for name in ("tokens", "segments", "token_types")}
        everywhere = ours.apply({"params": params}, **some, return_attention=True)
        masked = ours.apply({"params": params}, **some, masked_positions=batch["masked_positions"])
        return (everywhere, everywhere.logits), masked.logits

    return batch, (expected, pooled), *run(params, batch)


class TestForward:
    def close(self, actual, expected, where=...):
        np.testing.assert_allclose(np.asarray(actual)[where], expected.numpy()[where], atol=TOLERANCE, rtol=TOLERANCE)

    @pytest.mark.slow
    def test_hidden_vectors(self, pair):
        batch, (expected, _), (output, _), _ = pair
        # Outputs at padding differ (PyTorch's attend to the text, ours to padding), and nothing reads them.
        self.close(output.hidden, expected.hidden_states[-1], batch["segments"] > 0)

    def test_masked_lm_logits_everywhere(self, pair):
        batch, (expected, _), (_, logits), _ = pair
        self.close(logits, expected.prediction_logits, batch["segments"] > 0)

    def test_masked_lm_logits_at_masked_positions(self, pair):
        batch, (expected, _), _, logits = pair
        rows, places = np.nonzero(batch["weights"])
        wanted = expected.prediction_logits[rows, batch["masked_positions"][rows, places]]
        self.close(np.asarray(logits)[rows, places], wanted)

    def test_pooled_and_next_sentence_logits(self, pair):
        _, (expected, pooled), (output, _), _ = pair
        self.close(output.pooled[:, 0], pooled)
        self.close(output.next_sentence_logits[:, 0], expected.seq_relationship_logits)

    def test_attention_weights(self, pair):
        batch, (expected, _), (output, _), _ = pair
        assert len(output.attention) == len(expected.attentions)
        for ours, theirs in zip(output.attention, expected.attentions, strict=True):
            self.close(np.moveaxis(ours, 1, 2), theirs.movedim(1, 2), batch["segments"] > 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_loss_and_every_gradient(seed):
    shape = SHAPES[seed]
    theirs, batch = their_bert(shape, seed), draw_batch(shape, seed)
    loss = run_theirs(theirs, batch).loss
    loss.backward()
    params = as_ours(dict(theirs.named_parameters()), shape)
    expected = as_ours({name: parameter.grad for name, parameter in theirs.named_parameters()}, shape)
    experiment = small_experiment(our_bert(shape))
    means, gradient = jax.jit(lambda params: loss_and_gradient(experiment, params, batch, jax.random.key(0)))(params)
    assert sum(float(means[name].value) for name in experiment.objective.loss_weights) == pytest.approx(
        loss.item(), abs=TOLERANCE
    )
    assert_trees_close(gradient, expected, TOLERANCE)
    # Nothing is equal only because it is zero; keys' biases are: softmax does not see a shift of all scores.
    del gradient["transformer"]["blocks"]["attention"]["key"]["bias"]
    assert all(jnp.abs(leaf).max() > 100 * TOLERANCE for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_steps_of_adamw():
    """Four updates of the whole model, through warm-up, peak and decay, against torch's own AdamW and clipping."""
    shape, steps, rates = SHAPES[1], 6, [0.0, 1e-3, 2e-3, 1.5e-3]
    theirs = their_bert(shape, 1)
    # The keys' biases have no gradient but rounding errors, which Adam divides by epsilon: it must not be tiny here.
    optimizer = AdamW(Schedule(2e-3, warmup=2, decay="linear"), weight_decay=0.3, clip=5.1, eps=1e-4)
    experiment = small_experiment(our_bert(shape), steps=steps, optimizer=optimizer)
    experiment = override(experiment, {"data.task.length": shape.max_length, "data.task.predictions": 3})
    named = list(theirs.named_parameters())
    plain = [p for name, p in named if name.endswith("bias") or "LayerNorm" in name]
    groups = [
        {"params": plain, "weight_decay": 0.0},
        {"params": [p for _, p in named if all(p is not other for other in plain)], "weight_decay": 0.3},
    ]
    torch_optimizer = torch.optim.AdamW(groups, betas=(optimizer.b1, optimizer.b2), eps=optimizer.eps)
    state = first_state(experiment, as_ours(dict(named), shape))
    step = jax.jit(train_step, static_argnums=0)
    norms = []
    for number, rate in enumerate(rates):
        batch = draw_batch(shape, seed=10 + number)
        state, means = step(experiment, state, batch)
        torch_optimizer.zero_grad()
        run_theirs(theirs, batch).loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), optimizer.clip)
        norms.append(norm.item())
        for group in torch_optimizer.param_groups:
            group["lr"] = rate
        torch_optimizer.step()
        assert float(means["gradient_norm"].value) == pytest.approx(norm.item(), rel=TOLERANCE)
        assert_trees_close(state.params, as_ours(dict(named), shape), TOLERANCE)
    assert min(norms) < optimizer.clip < max(norms), "some steps must be clipped and some not"
