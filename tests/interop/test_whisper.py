"""Whisper to and from folders of the transformers library: features, logits, loss, gradients and generated tokens."""

import json

import numpy as np
import pytest
import small_whisper
import torch
from safetensors.numpy import load_file
from small_bert import applied

import jaxformer as jf
from jaxformer import cli
from jaxformer.errors import InputError
from jaxformer.interop.formats.ctranslate2_file import open_ctranslate2
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.models import load
from jaxformer.interop.parity.certificate import JSON

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=["english", "multilingual"])
def theirs(request, tmp_path_factory):
    return small_whisper.saved(tmp_path_factory.mktemp(request.param) / "theirs", request.param == "multilingual")


@pytest.fixture(scope="module")
def imported(theirs):
    """The folder as a run, whose certificate compares it with the transformers library."""
    jf.import_run(theirs, theirs.parent / "run")
    return theirs.parent / "run"


@pytest.mark.slow
def test_an_import_has_the_same_results(imported):
    certificate = json.loads((imported / JSON).read_text())
    assert certificate["passed"]
    lines = {}
    for line in certificate["lines"]:
        lines.setdefault(line["what"], []).append(line)
    assert lines.keys() == {"logits", "loss", "gradients", "greedy tokens", "tokens", "features", "speech"}
    for what in ("logits", "loss", "features"):
        assert max(line["measured"] for line in lines[what]) < TOLERANCE
    assert lines["greedy tokens"][0]["note"] == "4 of 4 outputs of 64 tokens are equal"
    assert [line["where"] for line in lines["speech"]] == [f"2 sounds, with{out} timestamps" for out in ("out", "")]


@pytest.mark.slow
def test_an_export_is_what_was_imported(theirs, imported):
    run = jf.open_run(imported)
    out = theirs.parent / "out"
    assert "passed" in jf.export_run(run, out)
    before, after = (load_file(path / "model.safetensors") for path in (theirs, out))
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)
    for name in ("generation_config.json", "preprocessor_config.json", "config.json"):
        said, written = (json.loads((path / name).read_text()) for path in (theirs, out))
        kept = {"max_length", "suppress_tokens", "begin_suppress_tokens", "alignment_heads", "is_multilingual"}
        kept |= {"lang_to_id", "task_to_id", "feature_size", "chunk_length", "d_model", "decoder_start_token_id"}
        assert {key: said[key] for key in kept & said.keys()} == {key: written.get(key) for key in kept & said.keys()}
    again = jf.from_pretrained(out)
    assert again.objective == run.objective and again.model == run.model


@pytest.mark.slow
def test_gradients_are_those_of_transformers(theirs):
    transformers = pytest.importorskip("transformers")
    import jax

    network = transformers.WhisperForConditionalGeneration.from_pretrained(theirs)
    imported = load(open_folder(theirs))
    rng = np.random.default_rng(0)
    log_mel = rng.normal(0, 0.5, (2, small_whisper.FRAMES, small_whisper.MELS)).astype(np.float32)
    tokens, targets = rng.integers(0, 280, (2, 2, 12))
    loss = network(
        input_features=torch.tensor(log_mel.swapaxes(1, 2)),
        decoder_input_ids=torch.tensor(tokens),
        labels=torch.tensor(targets),
    ).loss
    loss.backward()

    @jax.jit
    def ours(params):
        logits = applied(imported.model, params, log_mel, tokens).logits
        chosen = np.arange(2)[:, None], np.arange(12)[None], targets
        return -jax.nn.log_softmax(logits)[chosen].mean()

    value, gradients = jax.value_and_grad(ours)(imported.params)
    assert abs(float(value) - loss.item()) < TOLERANCE
    expected = network.model.encoder.conv2.weight.grad.numpy().transpose(2, 1, 0)
    np.testing.assert_allclose(gradients["stem"]["second"]["kernel"], expected, atol=TOLERANCE)
    expected = network.model.decoder.embed_tokens.weight.grad.numpy()
    np.testing.assert_allclose(gradients["embeddings"]["token"], expected, atol=TOLERANCE)
    expected = network.model.encoder.embed_positions.weight.grad
    if expected is not None:  # Whether the class freezes its positions depends on how they are loaded.
        np.testing.assert_allclose(gradients["audio_positions"]["bias"], expected.numpy(), atol=TOLERANCE)


@pytest.mark.parametrize(
    "name, field, value, said",
    [
        ("config.json", "scale_embedding", True, "scale_embedding=True is not supported"),
        ("config.json", "use_weighted_layer_sum", True, "use_weighted_layer_sum=True is not supported"),
        ("preprocessor_config.json", "hop_length", 80, "hop_length=80 is not supported; expected 160"),
        ("preprocessor_config.json", "dither", 0.1, "dither=0.1 is not supported; expected 0.0"),
        ("generation_config.json", "no_timestamps_token_id", 3, "no_timestamps_token_id=3: the tokenizer has"),
        ("generation_config.json", "penalty_alpha", 0.5, "penalty_alpha=0.5 is not supported"),
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


def test_settings_of_transcription_are_read(theirs):
    objective = jf.from_pretrained(theirs).objective
    english = theirs.parent.name.startswith("english")
    assert objective.transcribing.language == ("" if english else "auto")
    assert objective.transcribing.alignment_heads == ((1, 0), (1, 1))
    assert objective.decoding.suppress_tokens == (3, 5) and objective.decoding.max_length == small_whisper.LENGTH


def test_weights_for_ctranslate2_must_be_whole(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    for content in (b"", b"\x06\x00\x00\x00\x0c\x00Whisper", b"\x02\x00\x00\x00"):
        (tmp_path / "model.bin").write_bytes(content)
        with pytest.raises(InputError, match=r"model\.bin: (not a complete|version 2 of)"):
            open_ctranslate2(tmp_path / "model.bin")
    assert cli.main(["import", str(tmp_path), str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
