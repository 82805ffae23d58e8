"""ModernBERT: what its kinds of block see, how many parameters it has, and that it trains and fine-tunes."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny
from small_bert import applied, noisy_params, paths
from small_classifier import LABELS, PIECES, review_experiment, write_reviews
from small_modern_bert import LOCAL, WINDOW, modern_bert, modern_classifier, modern_transformer

import jaxformer as jf
from jaxformer.config import Checkpoint
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import JsonLines
from jaxformer.data.tasks.masked_lm import MaskedSentencePairs
from jaxformer.data.tokenizers import WordPiece
from jaxformer.interop.huggingface import parameters
from jaxformer.models.flops import stack_flops
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.training.optimizers import AdamW, Schedule
from jaxformer.training.warm_start import Weights, match

TOKENS = np.random.default_rng(0).integers(1, 96, (2, 24))


def seen(model) -> np.ndarray:
    """Boolean [t, s]: whether the hidden vector at t depends on the embedding of token s."""
    tokens = np.arange(1, 25)[None]
    params = noisy_params(model, tokens)

    def hidden(table):
        embeddings = params["embeddings"] | {"token": table}
        return applied(model, params | {"embeddings": embeddings}, tokens).hidden[0].sum(-1)

    jacobian = np.abs(jax.jit(jax.jacrev(hidden))(params["embeddings"]["token"])).max(-1)
    return jacobian[:, 1:25] > 0


@pytest.mark.slow
def test_a_local_block_sees_its_window_and_a_global_one_everything():
    near = np.abs(np.arange(24)[:, None] - np.arange(24)) < WINDOW
    np.testing.assert_array_equal(seen(modern_bert(depth=1, period=(LOCAL,))), near)
    assert seen(modern_bert(depth=1)).all()
    twice = np.abs(np.arange(24)[:, None] - np.arange(24)) <= 2 * (WINDOW - 1)
    np.testing.assert_array_equal(seen(modern_bert(depth=2, period=(LOCAL,))), twice)


@pytest.mark.slow
def test_packed_examples_longer_than_the_window_get_what_they_get_alone():
    model = modern_bert()
    params = noisy_params(model, TOKENS)
    segments = np.repeat([[1, 2, 0]], [11, 10, 3], axis=1)
    positions = np.concatenate([np.arange(11), np.arange(10), np.zeros(3, int)])[None]
    packed = applied(model, params, TOKENS[:1], segments, positions)
    for start, stop in ((0, 11), (11, 21)):
        alone = applied(model, params, TOKENS[:1, start:stop])
        np.testing.assert_allclose(packed.hidden[:, start:stop], alone.hidden, atol=1e-5)
        np.testing.assert_allclose(packed.logits[:, start:stop], alone.logits, atol=1e-5)


@pytest.mark.slow
def test_predictions_at_some_positions_are_those_of_all_positions():
    """The last block is a global one here, and leaves the other positions out; a local one must do so too."""
    for depth in (4, 3):
        model = modern_bert(depth=depth)
        params = noisy_params(model, TOKENS)
        at = np.array([[0, 7, 23], [5, 6, 12]])
        some = applied(model, params, TOKENS, masked_positions=at)
        every = applied(model, params, TOKENS)
        np.testing.assert_allclose(some.logits, np.take_along_axis(every.logits, at[..., None], 1), atol=1e-5)


def test_there_is_no_table_of_positions_and_no_bias_but_the_decoders():
    shapes = parameters.abstract(modern_bert())
    assert [path for path in shapes if path.endswith("bias")] == ["masked_lm/bias"]
    assert {path for path in shapes if path.startswith("embeddings")} == {"embeddings/token", "embeddings/norm/scale"}


def test_the_paper_s_base_has_149_million_parameters():
    model = jf.load(str(tiny.ROOT / "configs" / "modernbert_base.py")).model
    shapes = parameters.abstract(model)
    unused = model.transformer.width  # The first block's norm of its attention.
    assert sum(int(np.prod(shape)) for shape in shapes.values()) - unused == 149_655_232


def test_local_blocks_cost_their_window():
    local, everywhere = (modern_transformer(depth=2, period=period) for period in ((LOCAL,), ()))
    saved = 2 * 4 * 60 * 24 * (60 - (2 * WINDOW - 1))
    assert stack_flops(everywhere, 60) - stack_flops(local, 60) == saved
    assert stack_flops(everywhere, 5) == stack_flops(local, 5)


@pytest.mark.slow
def test_a_small_one_pretrains_and_is_fine_tuned(tmp_path):
    """The fine-tuned one starts from all of the pretrained one, the layer before its classes too."""
    write_reviews(tmp_path)
    texts = {split: JsonLines((str(tmp_path / f"{split}.jsonl"),)) for split in ("train", "validation")}
    pretraining = jf.Experiment(
        model=modern_bert(len(PIECES), 16),
        objective=MaskedLM(next_sentence=0.0),
        data=Data(
            train=texts["train"],
            validation=texts["validation"],
            task=MaskedSentencePairs(16, 5, mask_rate=0.3, next_sentence=False),
            batch=16,
            pack=True,
        ),
        tokenizer=WordPiece(path=str(tmp_path / "vocab.txt")),
        optimizer=AdamW(Schedule(2e-2, warmup=5)),
        steps=60,
        checkpoint=Checkpoint(every=60),
        log=jf.Log(every=1),
    )
    run = jf.fit(pretraining, tmp_path / "pretrained", quiet=True)
    losses = [line["loss"] for line in tiny.metrics(run.folder, "train")]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1
    assert str(run.predict("the film is [MASK]")).startswith("the film is")
    model = modern_classifier(LABELS, vocab=len(PIECES), max_length=16)
    start = match("x", Weights(run.model, run.params), Weights(model, noisy_params(model, TOKENS[:, :4] % 19)))
    assert start.summary.endswith("are those of x; new: head; unused: masked_lm")
    kernels = start.params["transform"]["dense"]["kernel"], run.params["masked_lm"]["dense"]["kernel"]
    np.testing.assert_array_equal(*map(np.asarray, kernels))
    experiment = review_experiment(tmp_path, steps=40, model=model, init=str(run.folder), checkpoint=Checkpoint(40))
    tuned = jf.fit(dataclasses.replace(experiment, tokenizer=pretraining.tokenizer), tmp_path / "tuned", quiet=True)
    assert tuned.evaluate()["accuracy"] > 0.8
    assert json.loads((tmp_path / "tuned" / "experiment.json").read_text())


def test_a_layer_before_the_classes_starts_at_random_where_there_is_no_masked_lm_head():
    model = modern_classifier(LABELS)
    encoder = modern_bert(heads=())
    theirs, ours = noisy_params(encoder, TOKENS), noisy_params(model, TOKENS, seed=1)
    start = match("x", Weights(encoder, theirs), Weights(model, ours))
    assert start.summary.endswith("are those of x; new: head, transform")
    assert paths(start.params)["transform/norm/scale"] is paths(ours)["transform/norm/scale"]
