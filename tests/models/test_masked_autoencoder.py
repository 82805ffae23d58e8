import dataclasses
import re

import jax
import numpy as np
import pytest
from small_bert import applied
from small_vit import AUTOENCODER, IMAGES, noisy

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.parameters import flat
from jaxformer.layers.patches import patchify
from jaxformer.models.masked_autoencoder import MaskedAutoencoder
from jaxformer.models.vit import Vit

NOISE = np.random.default_rng(2).random((4, 9)).astype(np.float32)


@pytest.mark.slow
def test_the_patches_with_the_least_noise_are_seen_and_no_others():
    params, hidden = noisy(AUTOENCODER), NOISE.argsort(1)[:, 3:]
    output = applied(AUTOENCODER, params, IMAGES, NOISE)
    expected = np.zeros((4, 9))
    np.put_along_axis(expected, hidden, 1, axis=1)
    np.testing.assert_array_equal(output.masked, expected)
    other = np.array(patchify(IMAGES, 4))
    other[expected == 1] = 255 - other[expected == 1]
    changed = other.reshape(4, 3, 3, 4, 4, 1).swapaxes(2, 3).reshape(IMAGES.shape)
    again = applied(AUTOENCODER, params, changed, NOISE)
    np.testing.assert_array_equal(output.hidden, again.hidden)
    np.testing.assert_array_equal(output.pixels, again.pixels)
    np.testing.assert_array_equal(np.abs(output.targets - again.targets).max(-1) > 0, expected == 1)


def test_each_patch_is_painted_in_its_own_place():
    params = noisy(AUTOENCODER)
    output = applied(AUTOENCODER, params, IMAGES, NOISE)
    assert output.pixels.shape == output.targets.shape == (4, 9, 16)
    # Hidden patches differ only by their positions.
    first, second = NOISE[0].argsort()[-2:]
    assert np.abs(output.pixels[0, first] - output.pixels[0, second]).max() > 1e-3
    # The order in which patches are seen changes nothing.
    seen = NOISE.copy()
    ranks = NOISE.argsort(1)[:, :3]
    np.put_along_axis(seen, ranks[:, ::-1], np.take_along_axis(NOISE, ranks, 1), axis=1)
    np.testing.assert_allclose(applied(AUTOENCODER, params, IMAGES, seen).pixels, output.pixels, atol=1e-5)


def test_a_vit_has_its_encoders_parameters_at_the_same_paths():
    fields = {"image": 12, "patch": 4, "channels": 1, "position_embedding": "sinusoidal"}
    ours, vit = flat(noisy(AUTOENCODER)), flat(noisy(Vit(AUTOENCODER.transformer, labels=("a", "b"), **fields)))
    encoder = {path for path in ours if path.startswith(("embeddings", "transformer"))}
    assert encoder == {path for path in vit if not path.startswith("head")}
    assert all(ours[path].shape == vit[path].shape for path in encoder)


def test_all_patches_are_seen_as_a_vit_sees_them():
    whole = dataclasses.replace(AUTOENCODER, mask_rate=0.0, decoder=None)
    params = noisy(whole)
    output = applied(whole, params, IMAGES)
    vit = Vit(whole.transformer, image=12, patch=4, channels=1, position_embedding="sinusoidal")
    np.testing.assert_allclose(output.hidden, applied(vit, params, IMAGES).hidden, atol=1e-5)
    assert output.pixels is None and not jax.device_get(output.masked).any()


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"mask_rate": 1.0}, "model.mask_rate=1.0: leaves 0 of 196 patches"),
        ({"image": 100}, "model.image=100 is not a multiple of model.patch=16; 96 would be"),
    ],
)
def test_invalid_masked_autoencoders_are_refused(fields, line):
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
        MaskedAutoencoder(**fields)
