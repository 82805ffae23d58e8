"""The data sets of digits and of emoji, of packages that are made here: how they are cut out and split."""

import io
import json
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxformer.data.sources.sources import Tfds
from jaxformer.datasets import debian_packages, downloads
from jaxformer.datasets.emoji import emoji_dataset_builder as emoji
from jaxformer.datasets.handwritten_digits import handwritten_digits_dataset_builder as digits
from jaxformer.errors import InputError


@pytest.fixture
def sheet(tmp_path):
    """A sheet like OpenCV's, on which the brightness of each digit encodes its row and column."""
    brightness = np.arange(50)[:, None] * 2 + np.arange(100) % 2
    Image.fromarray(np.kron(brightness, np.ones((20, 20))).astype(np.uint8)).save(tmp_path / "digits.png")
    return tmp_path / "digits.png"


def test_digits_are_cut_out_row_by_row_and_every_fifth_is_held_out(sheet, monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "package_file", lambda *_: str(sheet))
    train, validation = (Tfds("handwritten_digits", split, str(tmp_path)).open() for split in ("train", "validation"))
    assert (len(train), len(validation)) == (4000, 1000)
    seen = Counter()
    for example in (validation[number] for number in range(1000)):
        assert example["image"].shape == (20, 20, 1) and example["image"].dtype == np.uint8
        brightness = set(example["image"].flat)
        assert len(brightness) == 1 and brightness.pop() // 2 // 5 == example["label"]  # Five rows a digit.
        seen[int(example["label"])] += 1
    assert seen == dict.fromkeys(range(10), 100)


def test_a_file_of_a_debian_package(tmp_path, monkeypatch):
    """The data set of a package that is made here; what apt would fetch is checked by its command."""
    ran = []

    def run(command, **settings):
        ran.append(command)
        if command[:2] == ["apt-get", "download"]:
            (tmp_path / "some_1_all.deb").touch()
        if command[0] == "dpkg-deb":
            (tmp_path / "unpacked" / "usr").mkdir(parents=True)
            (tmp_path / "unpacked" / "usr" / "file").write_text("content")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(debian_packages.subprocess, "run", run)
    monkeypatch.setattr(debian_packages.shutil, "which", lambda tool: f"/usr/bin/{tool}")
    path = debian_packages.package_file("some", "usr/file", str(tmp_path))
    assert Path(path).read_text() == "content" and not (tmp_path / "unpacked").exists()
    assert [command[:2] for command in ran] == [
        ["apt-get", "update"],
        ["apt-get", "download"],
        ["dpkg-deb", "--extract"],
    ]
    assert debian_packages.package_file("some", "usr/file", str(tmp_path)) == path and len(ran) == 3
    with pytest.raises(InputError, match=r"^some: some_1_all.deb has no usr/other; another version"):
        debian_packages.package_file("some", "usr/other", str(tmp_path))
    monkeypatch.setattr(debian_packages.shutil, "which", lambda tool: None)
    with pytest.raises(InputError, match=r"^some: needs apt-get, which is not installed; .* or put the file at"):
        debian_packages.package_file("some", "usr/third", str(tmp_path))


def test_a_package_that_cannot_be_fetched_is_an_error_in_a_line(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 100, "", "E: No route\nE: Unable to locate package some\n")
    monkeypatch.setattr(debian_packages.subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setattr(debian_packages.shutil, "which", lambda tool: tool)
    with pytest.raises(InputError) as caught:
        debian_packages.package_file("some", "usr/file", str(tmp_path))
    assert "failed: E: Unable to locate package some; a mirror" in str(caught.value) and "\n" not in str(caught.value)


def entry(number, category, tones=()):
    tones = {tone: {"image": f"{number}-{tone}.png"} for tone in tones}
    return {"name": f"NAME {number}", "category": category, "sort_order": number, "image": f"{number}.png"} | (
        {"skin_variations": tones} if tones else {}
    )


def archive(path, designer, entries):
    """An archive as npm's, with a red picture, half of it transparent, for each image of the entries."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, :32] = (255, 0, 0, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    with tarfile.open(path, "w:gz") as file:
        contents = {"package/emoji.json": json.dumps(entries).encode()}
        for one in entries:
            for form in (one, *one.get("skin_variations", {}).values()):
                contents[f"package/img/{designer}/64/{form['image']}"] = buffer.getvalue()
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))


def test_an_emoji_in_all_its_tones_is_in_one_split(monkeypatch, tmp_path):
    entries = [entry(number, "Flags") for number in range(20)]
    entries += [entry(number, "People & Body", ("light", "dark")) for number in range(20, 30)]
    entries += [entry(99, "Component")]

    def package(name, version, folder):
        path = tmp_path / f"{name}.tgz"
        archive(path, name.rpartition("-")[2], entries)
        return str(path)

    monkeypatch.setattr(downloads, "npm_package", package)
    splits = {split: Tfds("emoji/all", split, str(tmp_path)).open() for split in ("train", "validation")}
    found = {split: [part[number] for number in range(len(part))] for split, part in splits.items()}
    assert (len(found["train"]), len(found["validation"])) == (2 * (18 + 27), 2 * (2 + 3))
    names = {split: {example["name"] for example in part} for split, part in found.items()}
    assert names["validation"] == {"name 9", "name 19", "name 29"} and not names["train"] & names["validation"]
    assert Counter(example["designer"] for example in found["validation"]) == {"google": 5, "twitter": 5}
    labels = {example["name"]: emoji.CATEGORIES[example["label"]] for example in found["validation"]}
    assert labels == {"name 9": "Flags", "name 19": "Flags", "name 29": "People & Body"}
    plain = Tfds("emoji/plain", "train", str(tmp_path)).open()
    assert len(plain) == len({(plain[number]["designer"], plain[number]["name"]) for number in range(54)}) == 54
    image = found["validation"][0]["image"]
    assert image.shape == (64, 64, 3)
    assert (image[:, :32] == (255, 0, 0)).all() and (image[:, 32:] == 255).all()
