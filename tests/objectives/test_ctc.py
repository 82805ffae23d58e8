"""CTC: the loss of a batch, and the transcripts of a run whose parameters recognize tones."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_speech import CTC, FRAMING, RATE, STACK, TOKENIZER, noisy, waveform

import jaxformer as jf
from jaxformer import cli, run_commands
from jaxformer.data.fields.sound import write_wav
from jaxformer.errors import InputError
from jaxformer.interop.huggingface import parameters
from jaxformer.losses.ctc import ctc_losses
from jaxformer.models.speech_encoder import speech_stack
from jaxformer.models.wav2vec2 import Wav2Vec2Ctc

SAMPLES = np.stack([waveform(0.02, seed) for seed in range(4)])
MASK = np.ones(SAMPLES.shape, np.uint8)
MASK[1, 200:] = MASK[2, 60:] = MASK[3] = 0
BATCH = {
    "samples": SAMPLES * MASK,
    "sample_mask": MASK,
    "targets": np.array([[5, 6, 4, 7], [7, 7, 0, 0], [5, 6, 7, 0], [0, 0, 0, 0]]),
    "weights": np.float32([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]),
}


def test_the_loss_is_per_character_of_transcripts_that_fit():
    """The third transcript has more characters than frames, and the fourth row only fills the batch."""
    params = noisy(CTC)

    def both(params):
        output = CTC.apply({"params": params}, BATCH["samples"], BATCH["sample_mask"])
        return jf.objectives.Ctc()(CTC, params, BATCH)["loss"], output

    loss, output = jax.jit(both)(params)
    assert output.frames.tolist() == [FRAMING.frames(size) for size in (320, 200, 60)] + [0] and output.frames[2] == 2
    losses = jax.jit(ctc_losses)(output.logits, output.frames, BATCH["targets"], BATCH["weights"])
    assert float(loss.weight) == 6 and np.isfinite(loss.sum)
    assert float(loss.value) == pytest.approx(float(losses[:2].sum()) / 6, rel=1e-5)


def test_parts_that_do_not_fit_are_refused():
    objective, row = jf.objectives.Ctc(), task(masking=jf.data.SpanMasking(0.1, 2)).row
    objective.check(CTC, row)
    objective.check_tokenizer(CTC, TOKENIZER)
    with pytest.raises(InputError, match=r"data\.task\.framing: rows have 79 frames; the model's framing gives"):
        objective.check(dataclasses.replace(CTC, framing=jf.data.Framing((10, 3, 2), (5, 2, 1))), row)
    with pytest.raises(InputError, match=r"has_mask_embedding=False: data\.task\.masking masks frames"):
        objective.check(dataclasses.replace(CTC, has_mask_embedding=False), row)
    with pytest.raises(InputError, match=r"model\.blank=1: expected the id of the tokenizer's padding token, 0"):
        objective.check_tokenizer(dataclasses.replace(CTC, blank=1), TOKENIZER)
    with pytest.raises(InputError, match="needs a Wav2Vec2Ctc; the model is a Whisper"):
        objective.check(jf.models.Whisper(), row)


def task(framing=FRAMING, **fields):
    return jf.data.SpelledSpeech(
        audio=jf.data.WaveformField(seconds=0.1), framing=framing, text=jf.data.CharacterField(length=8), **fields
    )


FRAME = 80
"""Samples of a frame. All tones have whole periods in it, so that they are orthogonal."""
TONES = {" ": 4600, "a": 800, "b": 1600, "c": 3000}
TEXTS = ("ab ca", "cc", "bb ca", "a", "c a", "bc ab")


def tone(hertz, length):
    return np.sin(2 * np.pi * hertz * np.arange(length) / RATE)


def said(text):
    """A tone of two frames for each character, and a frame of silence after it."""
    tones = [tone(TONES[one], 2 * FRAME) for one in text]
    return np.concatenate([part for one in tones for part in (one, np.zeros(FRAME))]).astype(np.float32) * 0.3


def recognizing(params):
    """Parameters with which a model spells tones: its convolution has the tones as kernels, its blocks add nothing."""
    kernel = np.stack([tone(hertz, FRAME) for hertz in TONES.values()], axis=1)[:, None]
    tokens = np.zeros((16, 8))
    tokens[np.arange(4), np.arange(4, 8)] = 1
    values = {
        "features/layer_0/kernel": kernel,
        "projection/kernel": np.eye(4, 16),
        "positions/scale": 0.0,
        "transformer/blocks/attention/output/kernel": 0.0,
        "transformer/blocks/mlp/down/kernel": 0.0,
        "lm_head/kernel": tokens,
        # The blank is more likely than a letter in silence, and special tokens never are.
        "lm_head/bias": np.array([2.0, -20, -20, -20, 0, 0, 0, 0]),
    }
    flat = parameters.flat(params)
    assert values.keys() < flat.keys()
    chosen = {path: values.get(path, 1.0 if path.endswith("scale") else 0.0) for path in flat}
    chosen |= {path: flat[path] for path in flat if path.endswith("kernel") and path not in values}
    return parameters.nested(
        {path: jnp.broadcast_to(jnp.asarray(chosen[path], jnp.float32), array.shape) for path, array in flat.items()}
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps, with other parameters, which spell tones."""
    pytest.importorskip("soundfile")
    home = tmp_path_factory.mktemp("tones")
    for number, text in enumerate(TEXTS):
        write_wav(home / f"{number}.wav", said(text), RATE)
    lines = [json.dumps({"audio": f"{number}.wav", "text": f"{text.upper()}!"}) for number, text in enumerate(TEXTS)]
    (home / "train.jsonl").write_text("\n".join(lines))
    source, framing = jf.data.SoundManifest((str(home / "train.jsonl"),)), jf.data.Framing((FRAME,), (FRAME,))
    model = Wav2Vec2Ctc(
        speech_stack(16, 1, 2, norm_position="before", **STACK),
        widths=(4,),
        framing=framing,
        convolution_norm="layer",
        normalize_features=False,
        position_taps=3,
        position_groups=2,
        vocab=None,
    )
    experiment = jf.Experiment(
        model=model,
        objective=jf.objectives.Ctc(scored=6),
        data=jf.data.Data(source, task(framing, masking=jf.data.SpanMasking(0.2, 2)), 6, validation=source),
        tokenizer=jf.tokenizers.Characters("abc"),
        optimizer=jf.optimizers.AdamW(jf.optimizers.Schedule(peak=1e-3)),
        steps=2,
        checkpoint=jf.Checkpoint(every=2, best="wer"),
        mesh=jf.Mesh(1),
    )
    fitted = jf.fit(experiment, home / "run", quiet=True)
    return dataclasses.replace(fitted, params=recognizing(fitted.params))


@pytest.fixture
def predict(run, tmp_path, monkeypatch, capsys):
    """Runs the command `predict` with a sound and options. Returns its status, output and errors."""
    monkeypatch.setattr(run_commands, "opened", lambda *_, **__: run)

    def predict(text, *options):
        write_wav(tmp_path / "speech.wav", said(text), RATE)
        status = cli.main(["predict", str(run.folder), str(tmp_path / "speech.wav"), *options])
        said_here = capsys.readouterr()
        return status, said_here.out.strip(), said_here.err

    return predict


@pytest.mark.slow
def test_a_run_is_evaluated_and_predict_prints_the_text(run, predict):
    assert run.model.vocab == 8 and np.isfinite(run.history[-1]["loss"])
    values = run.evaluate()
    assert values.keys() == {"loss", "wer", "cer", "wer_normalized"} and values["wer"] == values["cer"] == 0
    assert predict("ab ca")[:2] == (0, "ab ca")
    assert run.demonstrate()[:2] == ["reference: ab ca", "  output:  ab ca"]


@pytest.mark.slow
def test_transcripts_have_times_and_do_not_depend_on_each_other(run, tmp_path):
    sounds = [said("ab ca"), said("cc"), np.zeros(10, np.float32)]
    together = run.predict(sounds)
    assert [one.text for one in together] == ["ab ca", "cc", ""]
    assert [run.predict([sound])[0].words for sound in sounds] == [one.words for one in together]
    first, second = together[0].words
    assert (first.text, first.start, first.end) == ("ab", 0.0, 0.025)
    assert (second.text, second.start, second.end) == (" ca", 0.045, 0.07)
    together[0].save(tmp_path / "a.srt")
    assert (tmp_path / "a.srt").read_text() == "1\n00:00:00,000 --> 00:00:00,070\nab ca\n"
    with pytest.raises(InputError, match="3 sounds; expected one"):
        together[0].save_all(together, tmp_path / "b.srt")


@pytest.mark.slow
def test_a_long_sound_is_read_in_windows(run):
    long = np.concatenate([said("ab "), said("ca "), said("bc ")] * 2)
    parts = run.with_decoding(window=0.09, overlap=0.02)
    [samples] = [one.samples for one in run.prepare_requests([long])]
    [rows] = parts.predictor.log_probabilities([samples])
    [whole] = run.predictor.log_probabilities([samples])
    np.testing.assert_allclose(rows, whole, atol=1e-5)
    assert rows.shape == (54, 8) and parts.predict([long])[0].text == "ab ca bc ab ca bc"


@pytest.mark.slow
def test_a_search_uses_a_language_model(predict, tmp_path):
    jf.Ngrams.train(["bb ca", "bb bb ca"], 2).save(tmp_path / "lm.arpa")
    assert predict("ab ca", "--num_beams", "64")[:2] == (0, "ab ca")
    model = ("--num_beams", "64", "--language_model", str(tmp_path / "lm.arpa"), "--lm_weight", "3")
    assert predict("ab ca", *model)[:2] == (0, "bb ca")
    for options, said_in in (
        (("--temperature", "0.5"), "temperature"),
        (("--num_beams", "4", "--language_model", str(tmp_path / "none")), "none: no such file or directory"),
        (("--language_model", str(tmp_path / "lm.arpa")), "needs a beam search; set num_beams above 1"),
    ):
        status, out, error = predict("a", *options)
        assert status == 2 and not out and said_in in error and error.count("\n") == 1
