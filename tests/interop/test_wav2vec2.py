"""wav2vec 2.0 and HuBERT to and from folders of the transformers library: logits, loss, gradients and texts."""

import json

import jax
import jax.export
import numpy as np
import pytest
import small_speech
from safetensors.numpy import load_file, save_file

import jaxformer as jf
from jaxformer.errors import InputError
from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.models import load
from jaxformer.interop.parity.certificate import JSON

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=small_speech.KINDS)
def theirs(request, tmp_path_factory):
    return small_speech.saved(tmp_path_factory.mktemp(request.param) / "theirs", request.param)


@pytest.fixture(scope="module")
def imported(theirs):
    """The folder as a run, whose certificate compares it with the transformers library."""
    pytest.importorskip("soundfile")
    jf.import_run(theirs, theirs.parent / "run")
    return theirs.parent / "run"


@pytest.mark.slow
def test_an_import_has_the_same_results(imported):
    certificate = json.loads((imported / JSON).read_text())
    assert certificate["passed"]
    lines = {}
    for line in certificate["lines"]:
        lines.setdefault(line["what"], []).append(line)
    assert lines.keys() == {"logits", "loss", "gradients", "tokens", "features", "speech"}
    assert any(line["where"].startswith("padded") for line in lines["logits"])
    for what in ("logits", "loss", "features"):
        assert max(line["measured"] for line in lines[what]) < TOLERANCE
    assert max(line["measured"] for line in lines["gradients"]) < 10 * TOLERANCE
    assert lines["speech"][0]["note"] == "all texts are equal"


@pytest.mark.slow
def test_an_export_is_what_was_imported(theirs, imported):
    run = jf.open_run(imported)
    out = theirs.parent / "out"
    jf.export_run(run, out, certificate=False)  # The import has compared the same results.
    before, after = (load_file(path / "model.safetensors") for path in (theirs, out))
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)
    for name in ("config.json", "preprocessor_config.json"):
        said, written = (json.loads((path / name).read_text()) for path in (theirs, out))
        kept = {"architectures", "do_stable_layer_norm", "conv_dim", "feat_extract_norm", "pad_token_id", "model_type"}
        kept |= {"do_normalize", "sampling_rate", "return_attention_mask", "feat_proj_layer_norm", "vocab_size"}
        assert {key: said[key] for key in kept & said.keys()} == {key: written.get(key) for key in kept & said.keys()}
    again = jf.from_pretrained(out)
    assert again.objective == run.objective and again.model == run.model
    assert again.tokenizer.pieces == run.tokenizer.pieces


@pytest.mark.slow
def test_a_recognizer_is_exported_as_programs(theirs, imported):
    """Both programs take waveforms of any length. The export to ONNX compares its outputs with those here."""
    if not theirs.parent.name.startswith("base"):
        pytest.skip("its operations are those of wav2vec 2.0 base")
    pytest.importorskip("onnxruntime")
    run = jf.open_run(imported)
    assert jf.export_onnx(run, theirs.parent / "onnx").startswith("outputs differ by")
    page = (theirs.parent / "onnx" / "README.md").read_text()
    assert "sounds (batch_size), each of 30 samples (sequence_length) or more" in page
    jf.export_stablehlo(run, theirs.parent / "stablehlo")
    program = jax.export.deserialize(bytearray((theirs.parent / "stablehlo" / "model.stablehlo").read_bytes()))
    samples, mask = (
        np.stack([small_speech.waveform(0.02, 1), small_speech.waveform(0.02, 2)]),
        np.ones((2, 320), np.uint8),
    )
    found = jax.jit(program.call)(parameters.flat(run.params), samples, mask)
    expected = jax.jit(lambda params: run.model.apply({"params": params}, samples, mask).logits)(run.params)
    np.testing.assert_allclose(found["logits"], expected, atol=1e-5)


def test_older_checkpoints_have_other_names_of_weight_norm(tmp_path):
    theirs = small_speech.saved(tmp_path / "theirs", "base")
    tensors = load_file(theirs / "model.safetensors")
    before = load(open_folder(theirs))
    renamed = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in tensors.items()
    }
    assert renamed.keys() != tensors.keys()
    save_file(renamed, theirs / "model.safetensors", {"format": "pt"})
    after = load(open_folder(theirs))
    np.testing.assert_array_equal(before.params["positions"]["kernel"], after.params["positions"]["kernel"])
    np.testing.assert_array_equal(before.params["positions"]["scale"], after.params["positions"]["scale"])


@pytest.mark.parametrize(
    "name, field, value, said",
    [
        ("config.json", "add_adapter", True, "add_adapter=True is not supported"),
        ("config.json", "feat_extract_norm", "batch", "feat_extract_norm='batch' is not supported"),
        ("config.json", "pad_token_id", 40, "pad_token_id=40 is not supported; expected an id below vocab_size=9"),
        ("config.json", "pad_token_id", 5, "the tokenizer's padding token has the id 0; expected that of the blank"),
        ("preprocessor_config.json", "sampling_rate", 8000, "sampling_rate=8000 is not supported; expected 16000"),
        ("tokenizer_config.json", "tokenizer_class", "Wav2Vec2PhonemeCTCTokenizer", "expected Wav2Vec2CTCTokenizer"),
    ],
)
def test_a_setting_is_supported_or_refused(name, field, value, said, tmp_path):
    theirs = small_speech.saved(tmp_path, "base")
    changed = json.loads((theirs / name).read_text()) | {field: value}
    (theirs / name).write_text(json.dumps(changed))
    with pytest.raises(InputError, match=said) as caught:
        jf.from_pretrained(theirs)
    assert str(theirs) in str(caught.value)


@pytest.mark.slow
def test_pretraining_has_the_same_results(tmp_path):
    theirs = small_speech.saved(tmp_path / "theirs", "base", "ForPreTraining")
    jf.import_run(theirs, tmp_path / "run")
    certificate = json.loads((tmp_path / "run" / JSON).read_text())
    lines = {}
    for line in certificate["lines"]:
        lines.setdefault(line["what"], []).append(line["measured"])
    assert lines.keys() == {"predictions", "quantized", "loss", "gradients"} and certificate["passed"]
    assert max(lines["predictions"] + lines["quantized"] + lines["loss"]) < TOLERANCE
    assert max(lines["gradients"]) < 10 * TOLERANCE
    run = jf.open_run(tmp_path / "run")
    assert run.experiment.data.task.negatives == 7 and run.objective.diversity_weight == 0.2
    jf.export_run(run, tmp_path / "out", certificate=False)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "out"))
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)
