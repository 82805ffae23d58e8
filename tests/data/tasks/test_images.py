"""Images by themselves and in lanes: decoding, augmentation, mixing, and what cannot be read."""

import dataclasses
import io
import re

import numpy as np
import pytest
from PIL import Image

from jaxformer.data.fields.image import ImageField
from jaxformer.data.pipeline import loader
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources import pictures
from jaxformer.data.sources.pictures import ImageFolders, read_picture
from jaxformer.data.tasks.images import ImageTask, LabelledImages, MaskedPatches
from jaxformer.data.transforms.image import OPERATIONS, Augmentation, cutmix, mixup, pixels, random_box
from jaxformer.errors import InputError

LABELS = ("cat", "dog")
TASK = LabelledImages(ImageField(8), labels=LABELS)
STRONG = Augmentation(scale=(0.3, 1.0), operations=2)
MIXED = dataclasses.replace(TASK, image=ImageField(8, augmentation=STRONG), mixup=0.8, cutmix=1.0)


def write(path, seed=0, width=12, height=10):
    """A picture of random colours in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten pictures in two folders, one of which is a folder deeper."""
    home = tmp_path_factory.mktemp("photos")
    for number in range(10):
        write(home / LABELS[number % 2] / ("far" if number == 4 else ".") / f"{number}.png", seed=number)
    (home / "cat" / "notes.txt").write_text("no picture")
    return home


def batches(folder, task, rows=range(4), state=None, **fields):
    """Endless (batch, state) of a folder, four rows each."""
    data = Data(ImageFolders(str(folder)), task, batch=4, open_documents=2, **fields)
    return loader.train_batches(data, None, 7, rows, state)


def message(function, *arguments):
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_image_task_reads_images_without_labels(folder):
    task = ImageTask(ImageField(8))
    with batches(folder, task) as found:
        batch, _ = next(found)
    seen = {image.tobytes() for image in batch["images"]}
    paths = [example["image"] for example in ImageFolders(str(folder)).open()]
    assert len(seen) == 4 and seen <= {picture.pixels.tobytes() for picture in task.prepare_requests(paths)}


def test_image_folders_take_labels_from_folders(folder):
    source = ImageFolders(str(folder))
    examples = source.open()
    assert source.labels == LABELS and len(examples) == 10
    assert [example["label"] for example in examples] == ["cat"] * 5 + ["dog"] * 5
    assert examples[9] == {"image": str(folder / "dog" / "9.png"), "label": "dog"}
    assert "give a folder" in message(ImageFolders(str(folder / "none")).open)
    assert "holds no image in a folder of its class" in message(ImageFolders(str(folder / "dog")).open)


@pytest.mark.parametrize("task", [TASK, MIXED, MaskedPatches(ImageField(8, augmentation=STRONG), patch=4)])
def test_image_batches_depend_only_on_seed_and_step(folder, task):
    with batches(folder, task) as whole, batches(folder, task, rows=[2]) as one:
        parts = [next(whole) for _ in range(5)]
        for batch, _ in parts:
            part, _ = next(one)
            for key, array in part.items():
                np.testing.assert_array_equal(array[0], batch[key][2])
    with batches(folder, task, state=parts[2][1]) as again:
        for batch, _ in parts[3:]:
            continued, _ = next(again)
            assert all(np.array_equal(continued[key], batch[key]) for key in batch)


@pytest.mark.slow
def test_image_batches_are_the_same_with_workers(folder):
    with batches(folder, MIXED) as one, batches(folder, MIXED, workers=2) as two:
        for _ in range(2):
            (left, _), (right, _) = next(one), next(two)
            assert all(np.array_equal(left[key], right[key]) for key in left)


def test_labelled_images_rows(folder):
    with batches(folder, TASK) as stream:
        batch, _ = next(stream)
    assert batch["images"].shape == (4, 8, 8, 3) and batch["images"].dtype == np.uint8
    np.testing.assert_array_equal(batch["weights"], [[1, 0]] * 4)
    expected = {
        TASK.image.prepared(read_picture(example["image"], 3)).tobytes(): LABELS.index(example["label"])
        for example in ImageFolders(str(folder)).open()
    }
    assert [expected[image.tobytes()] for image in batch["images"]] == batch["labels"][:, 0].tolist()


def test_evaluation_uses_every_image_once_without_augmentation(folder):
    data = Data(ImageFolders(str(folder)), MIXED, batch=4, open_documents=1)
    seen = list(loader.evaluation_batches(data.train, data, None, 0, range(4)))
    weights = np.concatenate([batch["weights"] for batch in seen])
    assert weights[:, 0].sum() == 10 and not weights[:, 1].any() and len(weights) == 12
    images_ = {image.tobytes() for batch in seen for image in batch["images"][batch["weights"][:, 0] > 0]}
    plain = {TASK.image.prepared(read_picture(example["image"], 3)).tobytes() for example in data.train.open()}
    assert images_ == plain


def test_pictures_are_converted_to_the_requested_channels(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    np.testing.assert_array_equal(pixels(read_picture(grey, 1)), grey)
    assert pixels(read_picture(grey, 3)).shape == (3, 4, 3)
    hidden = np.zeros((2, 2, 4), np.uint8)  # Black, and nothing of it is seen.
    assert (pixels(read_picture(hidden, 3)) == 255).all()
    buffer = io.BytesIO()
    Image.fromarray(grey[..., 0]).save(buffer, "PNG")
    np.testing.assert_array_equal(pixels(read_picture(buffer.getvalue(), 1)), grey)


def test_undecodable_images_are_named_skipped_and_counted(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pictures, "_skipped", {})
    for number in range(4):
        write(tmp_path / LABELS[number % 2] / f"{number}.png", seed=number)
    whole = write(tmp_path / "cat" / "cut.png").read_bytes()
    (tmp_path / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "dog" / "text.jpg").write_text("no picture")
    data = Data(ImageFolders(str(tmp_path)), TASK, batch=2, open_documents=1)
    seen = list(loader.evaluation_batches(data.train, data, None, 0, range(2)))
    assert sum(batch["weights"].sum() for batch in seen) == 4
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"skipped: .*cut\.png: cannot be decoded: .* \(1 so far\)", lines[0])
    assert re.fullmatch(r"skipped: .*text\.jpg: cannot be decoded: .* \(2 so far\)", lines[1])
    strict = dataclasses.replace(data, task=dataclasses.replace(TASK, image=ImageField(8, strict=True)))
    line = message(lambda: list(loader.evaluation_batches(data.train, strict, None, 0, range(2))))
    assert re.search(r"data\.task\.image\.strict=True: .*cut\.png: cannot be decoded: ", line)
    assert "text.jpg: cannot be decoded" in message(TASK.prepare_requests, [str(tmp_path / "dog" / "text.jpg")])
    assert "none.png: cannot be decoded: No such file" in message(TASK.prepare_requests, ["none.png"]).replace(
        "[Errno 2] ", ""
    )


def test_unknown_image_labels_are_refused(folder, tmp_path):
    write(tmp_path / "owl" / "0.png")
    write(tmp_path / "cat" / "0.png")
    assert message(batches, tmp_path, TASK) == "label 'owl': unknown; expected one of cat, dog, or an index from 0"
    picture = np.zeros((2, 2, 3), np.uint8)
    assert "label 2: unknown" in message(TASK.encode, {"image": picture, "label": 2}, None)
    assert TASK.encode({"image": picture, "label": np.int64(1)}, None).values["label"].tolist() == [1]
    assert "data.task.label='label': no such column; the columns are 'image'" in message(
        TASK.encode, {"image": picture}, None
    )
    assert "image.column='image': no such column; the columns are 'photo'" in message(
        TASK.encode, {"photo": picture}, None
    )


def test_images_of_one_class_are_refused(tmp_path):
    write(tmp_path / "cat" / "0.png")
    write(tmp_path / "cat" / "1.png")
    assert "every label is 'cat'; expected examples of at least two classes" in message(batches, tmp_path, TASK)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: LabelledImages(labels=("cat",)),
            "data.task.labels=('cat',): expected the model's label names, at least two, without duplicates",
        ),
        (lambda: ImageField(size=0), "data.task.image.size=0: expected at least 1"),
        (lambda: ImageField(channels=4), "data.task.image.channels=4: expected 1 (grayscale) or 3 (RGB)"),
        (lambda: ImageField(crop=0.0), "data.task.image.crop=0.0: expected above 0, at most 1"),
        (lambda: LabelledImages(labels=LABELS, mixup=-1.0), "data.task.mixup=-1.0: expected at least 0"),
        (lambda: MaskedPatches(ImageField(20), patch=16), "data.task.image.size=20: expected a multiple of patch=16"),
        (lambda: Augmentation(scale=(0.0, 1.0)), "data.task.image.augmentation.scale=(0.0, 1.0): expected two shares"),
        (
            lambda: Augmentation(among=("spin",)),
            "data.task.image.augmentation.among=('spin',): no operation 'spin'; expected some of identity",
        ),
    ],
)
def test_invalid_image_fields_are_refused(make, line):
    assert message(make).startswith(line)


def test_images_are_not_packed(folder):
    with pytest.raises(InputError, match=r"data\.pack=True: a row of LabelledImages holds one example; expected False"):
        batches(folder, TASK, pack=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_operations_keep_the_shape_and_change_the_picture(channels):
    noise = np.random.default_rng(0).integers(40, 200, (16, 16, channels), np.uint8)
    picture = read_picture(noise, channels)
    for name, operation in OPERATIONS.items():
        changed = operation(picture, 0.9)
        assert pixels(changed).shape == noise.shape and changed.mode == picture.mode
        # A grey picture has no colour to change.
        assert np.array_equal(pixels(changed), noise) == (name == "identity" or (name, channels) == ("color", 1))


def test_random_boxes_have_the_requested_areas_and_ratios():
    rng = np.random.default_rng(0)
    boxes = [random_box(100, 80, (0.2, 0.5), (0.5, 2.0), rng) for _ in range(300)]
    for left, upper, right, lower in boxes:
        assert 0 <= left < right <= 100 and 0 <= upper < lower <= 80
        assert 0.2 <= (right - left) * (lower - upper) / 8000 <= 0.5 + 1e-9
        assert 0.5 - 1e-9 <= (right - left) / (lower - upper) <= 2 + 1e-9
    assert np.std([box[0] for box in boxes]) > 10
    assert random_box(10, 100, (1.0, 1.0), (1.0, 1.0), rng) == (0, 45, 10, 55)


def test_augmentation_depends_on_the_generator_and_flips_half():
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    picture = read_picture(noise, 3)
    augment = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    seen = [augment(picture, 8, "bicubic", np.random.default_rng(seed))[0] for seed in range(60)]
    mirrored = [np.array_equal(image, noise[:, ::-1]) for image in seen]
    assert all(flipped or np.array_equal(image, noise) for flipped, image in zip(mirrored, seen, strict=True))
    assert 18 < sum(mirrored) < 42
    one, other, third = (STRONG(picture, 8, "bicubic", np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    assert np.array_equal(one, other) and not np.array_equal(one, third)


def test_mixed_images_have_the_shares_of_their_weights(folder):
    white, black = np.full((8, 8, 1), 255, np.uint8), np.zeros((8, 8, 1), np.uint8)
    np.testing.assert_array_equal(mixup(white, black, 0.6), np.full((8, 8, 1), 153))
    for seed in range(20):
        mixed, share = cutmix(white, black, 0.7, np.random.default_rng(seed))
        assert np.isclose(mixed.mean() / 255, share) and share >= 0.7 - 0.15
    with batches(folder, MIXED) as stream:
        parts = [next(stream)[0] for _ in range(20)]
    weights = np.concatenate([batch["weights"] for batch in parts])
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    assert weights[:, 1].min() < 0.1 and weights[:, 1].max() > 0.4


def test_fit_crops_the_centre_or_stretches():
    wide = np.zeros((8, 24, 1), np.uint8)
    wide[:, 8:16] = 255
    grey = ImageField(8, 1)
    assert (grey.prepared(read_picture(wide, 1)) == 255).all()
    pressed = dataclasses.replace(grey, fit="stretch").prepared(read_picture(wide, 1))
    assert pressed[:, 0].max() < 30 and pressed[:, 3:5].min() > 225
