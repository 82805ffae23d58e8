"""The operations of a training step, by which a run reports how much of its devices it uses."""

import pytest

from jaxformer.data.fields.image import ImageField
from jaxformer.data.tasks.causal_lm import NextToken
from jaxformer.data.tasks.images import LabelledImages
from jaxformer.data.tasks.masked_lm import MaskedSentencePairs
from jaxformer.models.bert import Bert
from jaxformer.models.gpt import Gpt
from jaxformer.models.vit import Vit
from jaxformer.training.utilization import step_flops

WIDTH, DEPTH = 768, 12


def test_a_step_of_gpt2_small_takes_as_many_operations_as_a_count_by_hand():
    batch, length = 8, 1024
    maps = 4 * 2 * WIDTH**2 + 2 * 2 * WIDTH * 4 * WIDTH  # Of a token: queries, keys, values, output; up and down.
    attention = 2 * 2 * (length / 2) * WIDTH  # Scores and their sums, of half of the tokens on average.
    head = 2 * WIDTH * 50_257
    forward = batch * length * (DEPTH * (maps + attention) + head)
    assert step_flops(Gpt(), NextToken(length).row, batch) == pytest.approx(3 * forward)
    assert step_flops(Gpt(), NextToken(length).row, batch, trained=0.25) == pytest.approx(2.25 * forward)


def test_only_predicted_positions_count_in_a_masked_lm():
    row = MaskedSentencePairs(128, 20).row
    few, all_positions = (step_flops(Bert(), kept, 4) for kept in (row, {"tokens": row["tokens"]}))
    assert few < all_positions


def test_images_count_by_their_patches():
    row = LabelledImages(ImageField(size=224), labels=("cat", "dog")).row
    assert step_flops(Vit(labels=("cat", "dog")), row, 2) == 2 * step_flops(Vit(labels=("cat", "dog")), row, 1)
