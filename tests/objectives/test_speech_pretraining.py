"""Pretraining on speech: losses against their formulas, and runs whose encoder a recognizer continues."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from small_speech import FRAMING, RATE, SIZES, STACK, noisy, waveform

import jaxformer as jf
from jaxformer.data.fields.sound import write_wav
from jaxformer.data.transforms.span_masking import negatives
from jaxformer.errors import InputError
from jaxformer.layers.quantizer import ProductQuantizer
from jaxformer.losses.speech_contrast import code_perplexity, contrast
from jaxformer.models.speech_encoder import speech_stack
from jaxformer.models.wav2vec2 import Hubert, Wav2Vec2

STACK_OF = speech_stack(16, 1, 2, **STACK)
WAV2VEC2 = Wav2Vec2(STACK_OF, quantizer=ProductQuantizer(2, 4, 8), projected=6, **SIZES)
HUBERT = Hubert(STACK_OF, clusters=5, projected=6, **SIZES)
RNG = np.random.default_rng(0)


def test_the_contrast_is_the_cross_entropy_of_the_right_frame():
    predicted, quantized = (RNG.normal(size=(2, 6, 5)).astype(np.float32) for _ in range(2))
    codes = np.arange(12).reshape(2, 6, 1)
    codes[0, 3] = codes[0, 1]  # A negative example that is the same as the frame.
    drawn = np.stack([negatives(np.ones(6), 4, RNG) for _ in range(2)])
    drawn[0, 1, 0] = 3
    found = jax.jit(lambda *arrays: contrast(*arrays, 0.1))(predicted, quantized, codes, drawn)
    for row in range(2):
        for frame in range(6):
            others = [one for one in drawn[row, frame] if codes[row, one] != codes[row, frame]]
            vectors = quantized[row, [frame, *others]]
            cosines = vectors @ predicted[row, frame] / np.linalg.norm(vectors, axis=1)
            scores = cosines / np.linalg.norm(predicted[row, frame]) / 0.1
            expected = np.log(np.exp(scores).sum()) - scores[0]
            assert float(found.losses[row, frame]) == pytest.approx(expected, abs=1e-4)
            assert bool(found.right[row, frame]) == (scores[0] >= scores.max())


def test_the_perplexity_of_codes_counts_masked_frames():
    shares = np.zeros((1, 4, 2, 4), np.float32)
    shares[0, np.arange(4), 0, np.arange(4)] = 1  # The first codebook uses all entries, the second only one.
    shares[0, :, 1, 2] = 1
    for masked, expected in (([1, 1, 1, 1], [4, 1]), ([1, 0, 0, 1], [2, 1]), ([0, 0, 0, 0], [1, 1])):
        np.testing.assert_allclose(code_perplexity(shares, np.array([masked])), expected, rtol=1e-5)


def test_a_quantizer_chooses_entries_and_has_gradients_in_training():
    quantizer, x = ProductQuantizer(2, 4, 6, temperature=1.5), RNG.normal(size=(1, 3, 5)).astype(np.float32)
    params = nn.unbox(jax.jit(lambda: quantizer.init(jax.random.key(0), x, False))())["params"]

    @jax.jit
    def both(params):
        def loss(params, train):
            found = quantizer.apply({"params": params}, x, train, rngs={"dropout": jax.random.key(1)})
            return found.vectors.sum(), found

        return jax.grad(loss, has_aux=True)(params, True), jax.grad(loss, has_aux=True)(params, False)

    (gradient, trained), (still, found) = both(params)
    for output in (trained, found):
        for frame in range(3):
            chosen = [params["codebook"][book, output.codes[0, frame, book]] for book in range(2)]
            np.testing.assert_allclose(output.vectors[0, frame], np.concatenate(chosen), rtol=1e-5)
    np.testing.assert_allclose(trained.probabilities.sum(-1), 1.0, rtol=1e-5)
    assert set(np.unique(found.probabilities)) == {0.0, 1.0}
    assert np.abs(gradient["logits"]["kernel"]).max() > 0 and np.abs(still["logits"]["kernel"]).max() == 0


def test_the_cluster_loss_is_that_of_masked_frames():
    samples = np.stack([waveform(0.02, seed) for seed in range(2)])
    frames = FRAMING.frames(320)
    masked, weights = (RNG.integers(0, 2, (2, frames)).astype(dtype) for dtype in (np.uint8, np.float32))
    mask = np.ones(samples.shape, np.uint8)
    mask[1, 200:] = 0
    batch = {"samples": samples * mask, "sample_mask": mask, "masked": masked, "weights": weights}
    batch["targets"] = RNG.integers(0, 5, (2, frames))

    def both(params):
        terms = jf.objectives.SpeechClusters()(HUBERT, params, batch)
        return terms, HUBERT.apply({"params": params}, batch["samples"], mask, masked).logits

    terms, logits = jax.jit(both)(noisy(HUBERT))
    losses = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), batch["targets"][..., None], 2)[..., 0]
    real = weights * (np.arange(frames) < np.array([[frames], [FRAMING.frames(200)]]))
    assert float(terms["masked"].value) == pytest.approx(
        (losses * masked * real).sum() / (masked * real).sum(), rel=1e-4
    )
    assert float(terms["unmasked"].weight) == ((1 - masked) * real).sum()
    assert np.abs(logits).max() <= 10.01 and jf.objectives.SpeechClusters(1.0).loss_weights["unmasked"] == 1.0


def test_parts_that_do_not_fit_are_refused():
    contrastive, clusters = jf.objectives.SpeechContrast(), jf.objectives.SpeechClusters()
    row = jf.data.MaskedSpeech(audio=jf.data.WaveformField(seconds=0.1), framing=FRAMING).row
    contrastive.check(WAV2VEC2, row)
    with pytest.raises(InputError, match="SpeechContrast: needs a Wav2Vec2; the model is a Hubert"):
        contrastive.check(HUBERT, row)
    with pytest.raises(InputError, match="SpeechClusters: needs a Hubert; the model is a Wav2Vec2"):
        clusters.check(WAV2VEC2, row)
    with pytest.raises(InputError, match="SpeechClusters: the task's rows have no targets; use ClusteredSpeech"):
        clusters.check(HUBERT, row)
    with pytest.raises(InputError, match=r"data\.task\.framing: rows have 79 frames"):
        contrastive.check(dataclasses.replace(WAV2VEC2, framing=jf.data.Framing((10, 3, 2), (5, 2, 1))), row)
    with pytest.raises(InputError, match=r"quantizer\.codebooks=2 does not divide the width 7"):
        dataclasses.replace(WAV2VEC2, quantizer=ProductQuantizer(2, 4, 7))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Manifests of sounds, and centers of clusters of their frames."""
    pytest.importorskip("soundfile")
    home = tmp_path_factory.mktemp("sounds")
    waveforms = [waveform(0.15, seed) * (1 + np.sin(np.arange(2400) / (5 + seed))) for seed in range(8)]
    for number, samples in enumerate(waveforms):
        write_wav(home / f"{number}.wav", samples, RATE)
    lines = [json.dumps({"audio": f"{number}.wav", "text": "ab"}) for number in range(8)]
    (home / "train.jsonl").write_text("\n".join(lines))
    np.save(home / "centers.npy", jf.data.fit_clusters(waveforms, 5, jf.data.Mfcc(FRAMING)))
    return home


def trained(home, name, model, objective, task, **fields):
    source = jf.data.SoundManifest((str(home / "train.jsonl"),))
    fields = {"tokenizer": None} | fields
    experiment = jf.Experiment(
        model=model,
        objective=objective,
        data=jf.data.Data(train=source, validation=source, task=task, batch=4),
        optimizer=jf.optimizers.AdamW(jf.optimizers.Schedule(peak=3e-3, warmup=5)),
        steps=fields.pop("steps", 30),
        evaluation=jf.Evaluation(every=30),
        mesh=jf.Mesh(1),
        log=jf.Log(every=5),
        **fields,
    )
    return jf.fit(experiment, home / name, quiet=True)


@pytest.mark.slow
def test_an_encoder_is_pretrained_and_continued_as_a_recognizer(sounds):
    audio = jf.data.WaveformField(seconds=0.1, crop="random")
    task = jf.data.MaskedSpeech(audio=audio, framing=FRAMING, masking=jf.data.SpanMasking(0.5, 4), negatives=5)
    run = trained(sounds, "wav2vec2", WAV2VEC2, jf.objectives.SpeechContrast(), task)
    losses = [line["contrastive"] for line in run.history if line["split"] == "train"]
    assert losses[-1] < losses[0] and 0 <= run.evaluate()["diversity"] < 1
    assert run.evaluate().keys() >= {"loss", "contrastive", "code_perplexity", "contrastive_accuracy"}
    model = jf.models.Wav2Vec2Ctc(STACK_OF, vocab=8, **SIZES)
    spelled = jf.data.SpelledSpeech(
        audio=jf.data.WaveformField(seconds=0.2), framing=FRAMING, text=jf.data.CharacterField(length=8)
    )
    finetuned = trained(
        sounds,
        "ctc",
        model,
        jf.objectives.Ctc(),
        spelled,
        tokenizer=jf.tokenizers.Characters("abc"),
        init=str(run.folder),
        steps=2,
    )
    before, after = run.params["features"]["layer_1"]["kernel"], finetuned.params["features"]["layer_1"]["kernel"]
    assert 0 < np.abs(before - after).max() < 0.01


@pytest.mark.slow
def test_clusters_are_predicted(sounds):
    task = jf.data.ClusteredSpeech(
        audio=jf.data.WaveformField(seconds=0.1, crop="random"),
        framing=FRAMING,
        clusters=jf.data.Clusters(str(sounds / "centers.npy")),
        masking=jf.data.SpanMasking(0.5, 4),
    )
    run = trained(sounds, "hubert", HUBERT, jf.objectives.SpeechClusters(), task)
    losses = [line["masked"] for line in run.history if line["split"] == "train"]
    assert losses[-1] < losses[0] and 0 <= run.evaluate()["accuracy"] <= 1
    with pytest.raises(InputError, match="transformers has no class for it"):
        jf.export_run(run, sounds / "hf")
    broken = dataclasses.replace(task, clusters=jf.data.Clusters(str(sounds / "train.jsonl")))
    with pytest.raises(InputError, match=r"clusters\.path=.*give a \.npy file"):
        broken.check(None, False)
    assert jf.data.Mfcc(FRAMING)(waveform(0.1)).shape == (79, 39)
    with pytest.raises(InputError, match="clusters=500: the sounds have 79 frames; expected at least as many"):
        jf.data.fit_clusters([waveform(0.1)], 500, jf.data.Mfcc(FRAMING))
