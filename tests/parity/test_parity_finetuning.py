"""Fifty steps of fine-tuning here and in PyTorch, from the same weights on the same batches: the same losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hf_weights import as_ours
from small_bert import first_state
from small_classifier import LABELS, PIECES, review_experiment, write_reviews

from jaxformer.data.pipeline.loader import train_batches
from jaxformer.training.loop import train_step
from jaxformer.training.optimizers import AdamW, Schedule

STEPS = 50
OPTIMIZER = AdamW(Schedule(3e-3, warmup=5), weight_decay=0.1, clip=1.0, eps=1e-4)


def small_classifier():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(PIECES),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout=0.0,
        id2label=dict(enumerate(LABELS)),
        initializer_range=0.1,
    )
    return transformers.BertForSequenceClassification(config).eval()


def torch_losses(model, batches):
    """Parameters after PyTorch's own AdamW, clipping and schedule."""
    named = list(model.named_parameters())
    plain = [name for name, _ in named if name.endswith("bias") or "LayerNorm" in name]
    groups = [
        {"params": [tensor for name, tensor in named if (name in plain) == bare], "weight_decay": 0.0 if bare else 0.1}
        for bare in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=OPTIMIZER.schedule.peak, betas=(0.9, 0.999), eps=OPTIMIZER.eps)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, OPTIMIZER.schedule.warmup, STEPS)
    losses = []
    for batch in batches:
        tokens, segments, targets = (torch.from_numpy(batch[name]).long() for name in ("tokens", "segments", "targets"))
        loss = model(tokens, (segments > 0).long(), labels=targets[:, 0]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return np.array(losses)


@pytest.mark.slow
def test_the_losses_of_fifty_steps_are_pytorchs(tmp_path):
    write_reviews(tmp_path)
    theirs = small_classifier()
    model, params = as_ours(theirs)
    params = jax.tree.map(jnp.array, params)  # Copies: PyTorch will change its own in place.
    experiment = review_experiment(tmp_path, steps=STEPS, model=model, optimizer=OPTIMIZER)
    tokenizer = experiment.tokenizer.build(None, str(tmp_path / "tokenizer"))
    with train_batches(experiment.data, tokenizer, 0, range(8)) as batches:
        batches = [next(batches)[0] for _ in range(STEPS)]
    state, step, losses = first_state(experiment, params), jax.jit(train_step, static_argnums=0), []
    for batch in batches:
        state, means = step(experiment, state, batch)
        losses.append(float(means["loss"].value))
    np.testing.assert_allclose(losses, torch_losses(theirs, batches), atol=1e-4)
    assert losses[0] > 0.5 and np.mean(losses[-5:]) < 0.45, "it must have learned, or nothing was compared"
