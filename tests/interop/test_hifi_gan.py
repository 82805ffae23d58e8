"""HiFi-GAN to and from folders of the transformers library: the same waveforms and gradients, with padding too."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hf_weights import redraw
from safetensors.numpy import load_file

import jaxformer as jf
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.models import export_hf, import_hf
from jaxformer.models.hifi_gan import HifiGan

transformers = pytest.importorskip("transformers")

FRAMES, MELS = 9, 8
SIZES = {
    "model_in_dim": MELS,
    "upsample_initial_channel": 16,
    "upsample_rates": [4, 3],
    "upsample_kernel_sizes": [8, 5],
    "resblock_kernel_sizes": [3, 5, 7],
    "resblock_dilation_sizes": [[1, 3], [1, 2], [1, 3]],
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A vocoder of the transformers library with random weights, and its folder."""
    folder = tmp_path_factory.mktemp("vocoder") / "theirs"
    network = transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig(**SIZES))
    redraw(network, seed=0, size=0.3)
    with torch.no_grad():
        network.mean.copy_(torch.linspace(-2, -1, MELS))
        network.scale.copy_(torch.linspace(0.5, 1.5, MELS))
    network.save_pretrained(folder)
    return network.eval(), folder


@pytest.fixture(scope="module")
def ours(theirs):
    return import_hf(theirs[1])


@pytest.fixture(scope="module")
def spectrograms():
    return np.random.default_rng(0).normal(-1.5, 0.7, (2, FRAMES, MELS)).astype(np.float32)


@pytest.fixture(scope="module")
def computed(ours, spectrograms):
    """The waveforms without padding, and with two frames of padding in the second row; the gradients of a loss."""
    model, params = ours

    @jax.jit
    def run(params, log_mel):
        def loss(params):
            waveform = model.apply({"params": params}, log_mel).waveform
            return jnp.mean(waveform**2), waveform

        padded = model.apply({"params": params}, log_mel, jnp.array([FRAMES, FRAMES - 2])).waveform
        (_, waveform), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return waveform, padded, gradients

    return jax.device_get(run(params, spectrograms))


@pytest.mark.slow
def test_waveforms_and_gradients_are_those_of_transformers(theirs, spectrograms, computed):
    network, _ = theirs
    network.zero_grad()
    expected = network(torch.tensor(spectrograms))
    (expected**2).mean().backward()
    waveform, _, gradients = computed
    assert waveform.shape == (2, FRAMES * 12) and np.abs(waveform).max() > 0.1
    np.testing.assert_allclose(waveform, expected.detach().numpy(), atol=1e-5)
    for path, weight, order in (
        (("up_1", "kernel"), network.upsampler[1].weight, (2, 0, 1)),
        (("block_1_2_dilated_1", "kernel"), network.resblocks[5].convs1[1].weight, (2, 1, 0)),
    ):
        found, wanted = gradients[path[0]][path[1]], weight.grad.numpy().transpose(order)
        np.testing.assert_allclose(found, wanted, atol=1e-5 * max(1.0, np.abs(wanted).max()))
    assert not gradients["mean"].any() and not gradients["scale"].any()


@pytest.mark.slow
def test_padding_does_not_change_the_samples_before_it(theirs, spectrograms, computed):
    network, _ = theirs
    _, padded, _ = computed
    with torch.no_grad():
        alone = network(torch.tensor(spectrograms[1, : FRAMES - 2])).numpy()
        whole = network(torch.tensor(spectrograms[0])).numpy()
    np.testing.assert_allclose(padded[1, : len(alone)], alone, atol=1e-5)
    np.testing.assert_allclose(padded[0], whole, atol=1e-5)


@pytest.mark.slow
def test_an_export_is_what_was_imported(theirs, ours, tmp_path):
    model, params = ours
    assert (model.hop, model.mels, model.rate) == (12, MELS, 16_000)
    export_hf(model, params, None, tmp_path / "out")
    before, after = (load_file(path / "model.safetensors") for path in (theirs[1], tmp_path / "out"))
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert SIZES.items() <= said.items() and said["architectures"] == ["SpeechT5HifiGan"]


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("upsample_kernel_sizes", [8, 6], r"model.kernels=\(8, 6\): expected each stride"),
        ("resblock_kernel_sizes", [3, 5], r"resblock_kernel_sizes=\[3, 5\] is not supported; expected 3 numbers"),
        ("resblock_kernel_sizes", [3, 4, 5], r"block_kernels=\(3, 4, 5\): expected odd numbers"),
        ("upsample_rates", [4, "3"], "expected a list of whole numbers above 0"),
    ],
)
def test_a_setting_is_supported_or_refused(theirs, field, value, said, tmp_path):
    for file in theirs[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    changed = json.loads((tmp_path / "config.json").read_text()) | {field: value}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match=said) as caught:
        import_hf(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_vocoder_is_not_imported_as_a_run(theirs):
    with pytest.raises(InputError, match="--vocoder FOLDER"):
        jf.from_pretrained(theirs[1])


def test_the_vocoder_of_speecht5_makes_256_samples_per_frame():
    model = HifiGan()
    assert model.hop == 256 and model.flops({"b": 2, "a": 10}) == 2 * model.flops({"b": 1, "a": 10})
    # The first convolution has 2 · 7 · 80 · 512 operations per frame.
    assert model.flops({"b": 1, "a": 1}) > 2 * 7 * 80 * 512
