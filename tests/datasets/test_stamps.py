"""The data set of stamps, of a package that is made here: captions, outlines and splits; and scenes of stamps."""

import numpy as np
import pytest
from PIL import Image

from jaxformer.data.sources.sources import Tfds
from jaxformer.datasets.scenes import scenes_dataset_builder as scenes
from jaxformer.datasets.tuxpaint_stamps import tuxpaint_stamps_dataset_builder as tuxpaint
from jaxformer.errors import InputError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The unpacked package: ten things of two kinds, each in two pictures, and pictures that do not count."""
    home = tmp_path / "unpacked"
    for kind in scenes.STAMP_KINDS:
        folder = home / tuxpaint._FOLDER / kind / "some"
        folder.mkdir(parents=True)
        pixels = np.zeros((40, 60, 4), np.uint8)
        pixels[5:35, 10:50] = (200, 30, 30, 255)
        for thing in "abcdefghij":
            for number in ("", "-1"):
                file = folder / f"big_{thing}{number}.png"
                Image.fromarray(pixels).resize((600, 400), Image.Resampling.NEAREST).save(file)
                captions = (
                    f"A big {thing}.\nde.utf8=Ein großes {thing}.\nnl.utf8=Een {thing}.\nfr.utf8=Un grand {thing}.\n"
                )
                file.with_suffix(".txt").write_text(captions, encoding="utf-8")
        Image.fromarray(pixels).save(folder / "big_a_mirror.png")
        Image.fromarray(pixels).save(folder / "no_french.png")
        (folder / "no_french.txt").write_text("A thing.\nde.utf8=Ein Ding.\n", encoding="utf-8")
    monkeypatch.setattr(tuxpaint, "package_folder", lambda name, folder: str(home))
    return home


def test_stamps_have_captions_and_outlines_and_all_pictures_of_a_thing_are_in_one_split(package, tmp_path):
    splits = {split: Tfds("tuxpaint_stamps", split, str(tmp_path)).open() for split in ("train", "validation")}
    found = {split: [part[number] for number in range(len(part))] for split, part in splits.items()}
    assert (len(found["train"]), len(found["validation"])) == (6 * 18, 6 * 2)
    assert {example["name"] for example in found["validation"]} == {"big j"}
    example = found["validation"][0]
    captions = [example[language] for language in tuxpaint.LANGUAGES]
    assert captions == ["A big j.", "Ein großes j.", "Un grand j."]
    assert example["image"].shape == (192, 256, 3) and example["mask"].shape == (192, 256, 1)
    assert (example["mask"] > 250).mean() > 0.97  # Transparent edges are cut off.
    assert {tuxpaint.KINDS[example["label"]] for example in found["train"]} == set(scenes.STAMP_KINDS)


def test_scenes_of_stamps_hold_stamps_without_background(package):
    folder = tuxpaint.unpacked("anywhere")
    opaque = Image.new("RGB", (30, 30), "blue")
    for path in (folder / "food" / "some").glob("*.png"):
        opaque.save(path)
    triangle = Image.fromarray(np.tri(80, dtype=np.uint8) * 255)
    for path in (folder / "plants" / "some").glob("*.png"):
        picture = Image.new("RGBA", triangle.size, "green")
        picture.putalpha(triangle)
        picture.save(path)
    cut_outs = scenes.read_stamps(folder, "train")
    assert set(cut_outs) == set(scenes.STAMP_KINDS)
    assert not cut_outs["food"] and not cut_outs["animals"] and len(cut_outs["plants"]) == 18
    scene = scenes.compose({"plants": cut_outs["plants"]}, np.random.default_rng(1))
    assert scene["objects"] and {one["label"] for one in scene["objects"]} == {"plants"}


def test_a_package_without_stamps_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(tuxpaint, "package_folder", lambda name, folder: str(tmp_path))
    with pytest.raises(InputError, match=r"tuxpaint-stamps-default: has no usr/share/tuxpaint/stamps; another version"):
        tuxpaint.unpacked("anywhere")
