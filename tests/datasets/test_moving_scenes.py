"""Moving scenes: the labels say what the pixels do, and clips are the same each time."""

import numpy as np
import pytest
from PIL import Image

from jaxformer.data.sources.clips import open_clip
from jaxformer.datasets.moving_scenes import moving_scenes_dataset_builder as scenes


@pytest.fixture(scope="module")
def emoji():
    """Red, green and blue rectangles."""
    colors = ((255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255))
    return [
        scenes.CutOut(Image.new("RGBA", (40, 20), color), f"name {number}", "Objects")
        for number, color in enumerate(colors)
    ]


def frames_of(example):
    found = open_clip(example["clip"]).pictures(range(16))
    return np.stack([np.asarray(found[number].convert("RGB")) for number in range(16)]).astype(int)


def test_a_clip_depends_on_its_number_alone(emoji):
    first, again, other = (scenes.scene(emoji, np.random.default_rng((0, number))) for number in (1, 1, 2))
    assert first == again and first["clip"] != other["clip"]
    assert frames_of(first).shape == (16, 64, 64, 3)


def principal_angle(inside):
    """The angle of the longer axis of a shape in pixels, clockwise from the x axis, in radians modulo π."""
    y, x = np.nonzero(inside)
    (xx, xy), (_, yy) = np.cov(x, y)
    return np.arctan2(2 * xy, xx - yy) / 2


@pytest.mark.parametrize("number", range(12))
def test_labels_say_how_the_emoji_moves(number, emoji, monkeypatch):
    monkeypatch.setattr(scenes, "gradient", lambda rng: Image.new("RGB", (64, 64)))
    example = scenes.scene(emoji, np.random.default_rng(number))
    inside = frames_of(example)[..., int(example["name"][-1])] > 128
    centre = np.stack([[axis.mean() for axis in np.nonzero(frame)[::-1]] for frame in inside])
    shift, growth = centre[-1] - centre[0], inside[-1].sum() / inside[0].sum()
    turn = np.degrees(np.ptp(np.unwrap([principal_angle(frame) for frame in inside], period=np.pi)))
    clockwise = np.unwrap([principal_angle(inside[0]), principal_angle(inside[3])], period=np.pi)
    along = int(np.abs(shift).argmax())
    found = (
        scenes.DIRECTIONS[2 * along + int(shift[along] > 0)],
        "grows" if growth > 1.5 else "shrinks" if growth < 0.67 else "same size",
        "no turn" if turn < 20 else "clockwise" if clockwise[1] > clockwise[0] else "counterclockwise",
    )
    assert scenes.MOTIONS[example["motion"]] == ", ".join(found)
    said = scenes.DIRECTIONS[example["direction"]], scenes.GROWTHS[example["growth"]]
    assert (*said, scenes.ROTATIONS[example["rotation"]]) == found and np.abs(shift[1 - along]) < 2
