"""SpeechT5 to and from folders of the transformers library: spectrograms, losses, gradients and generated speech."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import small_speech_t5
import torch
from safetensors.numpy import load_file

import jaxformer as jf
from jaxformer.data.tasks.speaking import PreparedText
from jaxformer.data.tasks.spoken_text import previous_frames
from jaxformer.data.transforms.log_mel import SPOKEN
from jaxformer.errors import InputError
from jaxformer.interop.parity.certificate import JSON

transformers = pytest.importorskip("transformers")
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return small_speech_t5.saved(tmp_path_factory.mktemp("speech_t5") / "theirs")


@pytest.fixture(scope="module")
def imported(theirs):
    """The folder as a run, whose certificate compares it with the transformers library."""
    jf.import_run(theirs, theirs.parent / "run")
    return jf.open_run(theirs.parent / "run")


@pytest.fixture(scope="module")
def speaker(theirs):
    """The path of a file with the vector of a speaker."""
    np.save(theirs.parent / "speaker.npy", np.linspace(-1, 1, small_speech_t5.SPEAKER)[None])
    return str(theirs.parent / "speaker.npy")


@pytest.mark.slow
def test_an_import_has_the_same_results(imported):
    certificate = json.loads((imported.folder / JSON).read_text())
    lines = {}
    for line in certificate["lines"]:
        lines.setdefault(line["what"], []).append(line)
    assert certificate["passed"]
    assert lines.keys() == {"spectrogram", "loss", "gradients", "tokens", "speech"}
    for what in ("spectrogram", "loss", "speech"):
        assert max(line["measured"] for line in lines[what]) < TOLERANCE
    assert [line["where"].partition(",")[0] for line in lines["spectrogram"]] == [
        "without padding",
        "padded",
        "out of distribution",
    ]
    assert lines["speech"][0]["where"].endswith(" texts")


@pytest.mark.slow
def test_the_loss_with_guided_attention_and_the_end_are_those_of_transformers(theirs, imported):
    network = transformers.SpeechT5ForTextToSpeech.from_pretrained(theirs, attn_implementation="eager").eval()
    network.speecht5.decoder.prenet._consistent_dropout = lambda inputs, rate: inputs
    rng, model, objective = np.random.default_rng(0), imported.model, imported.objective
    segments = np.array([[1] * 9, [1] * 6 + [0] * 3], np.int32)
    tokens = np.where(segments, rng.integers(4, 20, (2, 9)), 1).astype(np.int32)
    mask = np.array([[1] * 12, [1] * 8 + [0] * 4], np.uint8)
    log_mel = (rng.normal(-1, 1, (2, 12, model.mels)) * mask[..., None]).astype(np.float32)
    speaker = rng.normal(size=(2, model.speaker_size)).astype(np.float32)
    loss = network(
        input_ids=torch.tensor(tokens).long(),
        attention_mask=torch.tensor(segments).long(),
        labels=torch.tensor(np.where(mask[..., None], log_mel, np.float32(-100))),
        speaker_embeddings=torch.tensor(speaker),
    ).loss
    assert objective.guided_weight == 10 and objective.guided_heads == 2
    batch = {"tokens": tokens, "segments": segments, "spectrogram": log_mel, "frame_mask": mask, "speaker": speaker}
    batch["frames"] = np.stack([previous_frames(one, 2) for one in log_mel])
    means = jax.jit(lambda params: objective(model, params, batch))(imported.params)
    assert set(means) == {"spectrogram", "before", "stop", "attention"}
    ours = sum(weight * float(means[name].value) for name, weight in objective.loss_weights.items())
    assert ours == pytest.approx(loss.item(), abs=TOLERANCE)


@pytest.mark.slow
def test_texts_are_spoken_together_as_alone(imported, speaker):
    run = imported.with_speaking(speaker=speaker, longest=3.0, iterations=0)
    texts = ["the dog ran.", "a quiz"]
    together, again = run.predict(texts), run.predict(texts)
    for one, other in zip(together, again, strict=True):
        np.testing.assert_array_equal(one.log_mel, other.log_mel)
        assert len(one.log_mel) % 2 == 0 and one.seconds > 0
    assert np.abs(run.with_speaking(seed=1).predict(texts)[0].log_mel - together[0].log_mel).max() > 1e-3
    model = dataclasses.replace(run.model, prenet_dropout=0.0)
    quiet = dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, model=model))
    (alone,) = quiet.predict(texts[1:])
    np.testing.assert_allclose(quiet.predict(texts)[1].log_mel, alone.log_mel, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("logit", [-20.0, 20.0])
def test_speech_ends_at_the_threshold_or_the_limit(imported, speaker, logit):
    run = imported.with_speaking(speaker=speaker, longest=2.0, iterations=0)
    stop = run.params["stop"] | {"bias": np.full(2, logit, np.float32)}
    log_mel = dataclasses.replace(run, params=run.params | {"stop": stop}).predict("the dog ran.").log_mel
    tokens = len(imported.tokenizer.encode("the dog ran.")) + 1
    assert len(log_mel) == (2 if logit > 0 else int(tokens * 2.0 / 2) * 2)


@pytest.mark.slow
def test_an_export_is_what_was_imported(theirs, imported):
    out = theirs.parent / "out"
    assert "passed" in jf.export_run(imported, out)
    before, after = (load_file(path / "model.safetensors") for path in (theirs, out))
    counts = {name for name in before if name.endswith("num_batches_tracked")}
    assert before.keys() - counts == after.keys() and all((before[name] == after[name]).all() for name in after)
    said, written = (json.loads((path / "preprocessor_config.json").read_text()) for path in (theirs, out))
    for name in ("num_mel_bins", "sampling_rate", "hop_length", "win_length", "fmin", "fmax", "mel_floor"):
        assert written[name] == said[name]
    again = jf.from_pretrained(out)
    assert again.model == imported.model and again.tokenizer.pieces == imported.tokenizer.pieces


@pytest.mark.slow
def test_bad_requests_get_a_line(imported, speaker, tmp_path):
    run = imported.with_speaking(speaker=speaker)
    np.save(tmp_path / "long.npy", np.ones(7))
    np.save(tmp_path / "zeros.npy", np.zeros(small_speech_t5.SPEAKER))
    (tmp_path / "text.npy").write_text("no array")
    for other, text, said in (
        (run, " ", "text 1, ' ': has no words to speak"),
        (run, "a dög", "text 1, 'a dög': the vocabulary has no 'ö', at character 3"),
        (run, "a " * 80, "161 tokens; the model reads 60"),
        (imported, "a", r"no speaker; give a \.npy file with a vector of 5 numbers \(--speaker\)"),
        (
            imported.with_speaking(speaker=str(tmp_path / "long.npy")),
            "a",
            "a vector of 7 numbers; expected a vector of 5",
        ),
        (imported.with_speaking(speaker=str(tmp_path / "zeros.npy")), "a", "expected a vector of finite numbers"),
        (imported.with_speaking(speaker=str(tmp_path / "text.npy")), "a", "expected a vector of 5 numbers"),
        (imported.with_speaking(speaker=str(tmp_path / "none.npy")), "a", "no such file or directory"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            other.predict(text)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, field, value, said",
    [
        ("config.json", "scale_embedding", True, "scale_embedding=True is not supported"),
        ("config.json", "speech_decoder_postnet_kernel", 4, "postnet_taps=4: expected an odd number"),
        ("preprocessor_config.json", "hop_length", 10, "hop_length=10 is not supported; expected 16"),
    ],
)
def test_a_setting_is_supported_or_refused(theirs, name, field, value, said, tmp_path):
    for file in theirs.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    changed = json.loads((tmp_path / name).read_text()) | {field: value}
    (tmp_path / name).write_text(json.dumps(changed))
    with pytest.raises(InputError, match=said) as caught:
        jf.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.slow
def test_requests_become_arguments_of_the_model(imported, speaker):
    predictor = imported.with_speaking(speaker=speaker).predictor
    arrays = predictor.encode([PreparedText("a dog", SPOKEN), PreparedText("a", SPOKEN)])
    assert arrays["tokens"].shape == arrays["segments"].shape == (2, 32)
    assert arrays["tokens"][0, arrays["segments"][0].sum() - 1] == imported.tokenizer.eos_id
    assert arrays["frames"].shape == (2, 1, small_speech_t5.MELS)
