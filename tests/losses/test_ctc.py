"""CTC against PyTorch, with gradients."""

import jax
import numpy as np
import pytest

from jaxformer.losses.ctc import ctc_losses, fits

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (4, 12, 6)).astype(np.float32)
FRAMES = np.array([12, 9, 7, 0])
TARGETS = np.array([[1, 2, 2, 3, 5], [5, 5, 5, 0, 0], [4, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
WEIGHTS = np.float32([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])


def test_losses_and_gradients_are_those_of_pytorch():
    torch = pytest.importorskip("torch")

    @jax.jit
    def ours(logits):
        losses = ctc_losses(logits, FRAMES, TARGETS, WEIGHTS)
        return (losses * np.arange(1, 5)).sum(), losses

    (_, losses), gradient = jax.value_and_grad(ours, has_aux=True)(LOGITS)
    logits = torch.tensor(LOGITS, requires_grad=True)
    lengths = torch.tensor(WEIGHTS).sum(1).long()
    expected = torch.nn.functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), torch.tensor(TARGETS), torch.tensor(FRAMES), lengths, reduction="none"
    )
    (expected * torch.arange(1, 5)).sum().backward()
    np.testing.assert_allclose(losses, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, logits.grad.numpy(), atol=1e-5)
    assert np.abs(gradient[1, FRAMES[1] :]).max() == 0 and losses[3] == 0


def test_a_sequence_needs_a_frame_per_label_and_one_between_equal_labels():
    for frames, expected in (([6, 5, 1, 0], [1, 1, 1, 1]), ([5, 4, 0, 0], [0, 0, 0, 1])):
        found = jax.jit(fits)(np.array(frames), TARGETS, WEIGHTS)
        assert found.astype(int).tolist() == expected
