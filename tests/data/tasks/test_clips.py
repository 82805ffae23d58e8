"""Clips: decoded, sampled, resized and augmented alike; and files that are not clips."""

import re

import numpy as np
import pytest
from small_video import animation, shades, write_video

import jaxformer as jf
from jaxformer.data.examples import Visit
from jaxformer.data.fields.clip import ClipField
from jaxformer.data.pipeline.loader import evaluation_batches, train_batches
from jaxformer.data.sources.clips import open_clip
from jaxformer.data.sources.pictures import Undecodable
from jaxformer.data.tasks.clips import LabelledClips, MaskedTubes
from jaxformer.data.transforms import frames as sampling
from jaxformer.data.transforms.image import Augmentation
from jaxformer.errors import InputError


def brightness(clips):
    """The numbers of the frames made by `shades`."""
    return (clips.reshape(*clips.shape[:-3], -1).mean(-1) / 10).round().astype(int)


def view(field, content, seed=0):
    return field.view(open_clip(content), np.random.default_rng(seed))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "shades.mp4"
    write_video(path, shades(20))
    return path


def test_a_video_an_animation_and_an_array_hold_the_same_frames(video, tmp_path):
    (tmp_path / "shades.webp").write_bytes(animation(shades(20)))
    contents = (
        str(video),
        video.read_bytes(),
        animation(shades(20)),
        str(tmp_path / "shades.webp"),
        np.stack(shades(20)),
    )
    field = ClipField(12, frames=20, stride=1)
    for content in contents:
        clip = open_clip(content)
        assert clip.frames == 20
        np.testing.assert_array_equal(brightness(field.views(clip, [np.arange(20)], 1)), [range(20)])
    assert open_clip(str(video)).rate == 25 and open_clip(animation(shades(5))).rate == 10
    assert sorted(open_clip(str(video)).pictures([3, 7])) == [3, 7]


def test_dense_sampling_begins_anywhere_and_repeats_the_last_frame_of_a_short_clip():
    field = ClipField(12, frames=4, stride=3)
    starts = {tuple(brightness(view(field, np.stack(shades(20)), seed)[0])) for seed in range(40)}
    assert starts == {tuple(range(start, start + 10, 3)) for start in range(11)}
    assert brightness(view(field, np.stack(shades(5)))[0]).tolist() == [0, 3, 4, 4]


def test_uniform_sampling_takes_a_frame_of_each_segment():
    field = ClipField(12, frames=4, sampling="uniform")
    found = np.stack([brightness(view(field, np.stack(shades(20)), seed)[0]) for seed in range(40)])
    assert (found // 5 == range(4)).all() and all(len(set(column)) == 5 for column in found.T)
    assert sampling.uniform(20, 4, 0.5).tolist() == [2, 7, 12, 17]
    assert sampling.uniform(2, 4, 0.5).tolist() == [0, 0, 1, 1]


def test_all_frames_of_a_clip_are_augmented_alike():
    frame = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    field = ClipField(12, frames=3, stride=1, augmentation=Augmentation(operations=2))
    clip, geometry = view(field, np.stack([frame] * 6))
    assert (clip == clip[0]).all() and geometry.width == 12
    other, _ = view(field, np.stack([frame] * 6), 1)
    assert (clip != other).any()


def test_an_evaluation_reads_clips_spread_over_the_video_in_three_crops():
    ramp = np.tile(np.arange(24, dtype=np.uint8)[None, :, None] * 10, (12, 1, 3))
    clip = np.stack([ramp + shade // 10 for shade in range(0, 100, 10)])
    field = ClipField(12, frames=2, stride=2, clips=3, crops=3).for_evaluation()
    visit = Visit(None, np.random.default_rng(0), lambda rng: None)
    arrays, _ = field.transform(open_clip(clip), visit)
    assert arrays["clips"].shape == (3 * 3 * 2, 12, 12, 3) and field.features()["clips"].capacity == 18
    views = arrays["clips"].reshape(3, 3, 2, 12, 12, 3)
    assert (
        views[:, :, :, 0, 0, 0] == np.array([0, 60, 120])[:, None] + np.array([[0, 2], [4, 6], [7, 9]])[:, None]
    ).all()


def test_windows_cover_a_video_in_order():
    assert [w.tolist() for w in sampling.windows(10, "dense", 2, 2, 60)] == [[0, 2], [3, 5], [6, 8]]
    assert [w[0] for w in sampling.windows(1000, "dense", 2, 2, 3)] == [0, 498, 996]
    (prepared,) = ClipField(12, frames=2, stride=5).prepare([np.stack(shades(20))])
    assert prepared.seconds == ((0.0, 0.4), (0.4, 0.8)) and brightness(prepared.windows).tolist() == [[0, 5], [10, 15]]
    assert brightness(prepared.views).tolist() == [[7, 12]]


@pytest.mark.parametrize("keep", [0, 0.02, 0.6])
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_truncated_video_is_named(ending, keep, tmp_path):
    path = tmp_path / f"cut.{ending}"
    noise = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), np.uint8)
    write_video(path, list(noise))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(Undecodable, match=rf"^{re.escape(str(path))}: cannot be decoded: [^\n]+$") as caught:
        open_clip(str(path))
    assert "truncated" in str(caught.value) or keep < 0.5


def test_a_damaged_frame_is_named(tmp_path):
    path = tmp_path / "damaged.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), np.uint8)
    write_video(path, list(noise))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)
    clip = open_clip(str(path))
    with pytest.raises(
        Undecodable, match=r"damaged.mp4: (frame \d+ or one before it cannot be decoded|ends before frame)"
    ):
        clip.pictures(range(50))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), "clip 1: cannot be decoded: it has no frames"),
        (np.zeros((8, 8), np.uint8), "clip 1: cannot be decoded: an array of shape (8, 8): expected [frames, height"),
        (b"no video", "clip 1: cannot be decoded: invalid data found when processing input"),
        ("missing.mp4", "missing.mp4: cannot be decoded: no such file or directory"),
        ("missing.gif", "missing.gif: cannot be decoded: no such file or directory"),
    ],
)
def test_other_content_is_refused_in_a_line(content, line):
    with pytest.raises(InputError, match=re.escape(line)):
        ClipField(8).prepare([content])


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"frames": 0}, "data.task.clip.frames=0: expected at least 1"),
        ({"crops": 2}, "data.task.clip.crops=2: expected 1 or 3"),
        ({"crops": 3, "fit": "stretch"}, "data.task.clip.crops=3: expected 1 with fit=stretch"),
        ({"size": 0}, "data.task.clip.size=0: expected at least 1"),
        ({"channels": 2}, "data.task.clip.channels=2: expected 1 (grayscale) or 3 (RGB)"),
    ],
)
def test_wrong_fields_are_named(fields, line):
    with pytest.raises(InputError, match=re.escape(line)):
        ClipField(**fields)
    with pytest.raises(InputError, match=r"data.task.clip.clips=2 and crops=1: expected 1 of each"):
        MaskedTubes(ClipField(16, clips=2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("classes")
    for label, factor in (("dark", 1), ("light", 2)):
        (home / label).mkdir()
        for number in range(4):
            frames = [factor * frame for frame in shades(8)]
            (home / label / f"{number}.webp").write_bytes(animation(frames))
    (home / "dark" / "broken.webp").write_bytes(animation(shades(8))[:60])
    return home


def test_a_folder_of_clips_for_each_class(folder, capsys):
    source = jf.data.ClipFolders(str(folder))
    assert source.labels == ("dark", "light") and len(source.open()) == 9
    task = LabelledClips(ClipField(8, frames=2, stride=7, clips=2), labels=("dark", "light"), mixup=0.5, cutmix=0.5)
    data = jf.data.Data(source, task, batch=4)
    with train_batches(data, None, 0, range(4)) as batches:
        batch = [next(batches)[0] for _ in range(6)]
    assert batch[0]["clips"].shape == (4, 2, 8, 8, 3) and batch[0]["weights"].shape == (4, 2)
    assert "broken.webp: cannot be decoded" in capsys.readouterr().err
    held_out = next(evaluation_batches(source, data, None, 0, range(4)))
    assert held_out["clips"].shape == (4, 4, 8, 8, 3)
    assert (held_out["clips"][:, 1].mean((1, 2, 3)).round() == 70 * (1 + held_out["labels"][:, 0])).all()


def test_a_strict_field_stops_at_a_broken_clip(folder):
    field = ClipField(8, strict=True)
    with pytest.raises(InputError, match=r"data.task.clip.strict=True: .*broken.webp: cannot be decoded"):
        field.encode(str(folder / "dark" / "broken.webp"))


def test_a_folder_without_clips(tmp_path):
    with pytest.raises(
        InputError, match=r"holds no clip in a folder of its class; expected names such as walking/1.mp4"
    ):
        jf.data.ClipFolders(str(tmp_path)).open()
