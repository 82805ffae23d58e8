"""Digests of files, of JSON files and of lines."""

import hashlib
import json
import random

import pytest

from jaxformer import digests
from jaxformer.digests import Mismatch


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "large").write_bytes(random.Random(0).randbytes(300_000))
    (tmp_path / "small").write_text("text")
    digests.write(tmp_path, digests.of_folder(tmp_path))
    return tmp_path


def test_digests_of_a_folder_are_read_back(folder):
    files = digests.read(folder)
    assert {name: digest.size for name, digest in files.items()} == {"a/large": 300_000, "small": 4}
    assert files["small"].value == digests.of(b"text")
    assert digests.problems(folder, files) == []


def test_each_kind_of_damage_is_named(folder):
    files = digests.read(folder)
    (folder / "small").write_text("test")
    (folder / "foreign").touch()
    assert digests.problems(folder, files) == [
        "foreign does not belong there",
        "small has another content than was written",
    ]
    (folder / "small").write_text("tex")
    (folder / "a" / "large").unlink()
    found = digests.problems(folder, files)
    assert found == ["a/large is missing", "foreign does not belong there", "small has 3 bytes; 4 were written"]
    assert digests.summary(found) == "a/large is missing (and 2 more)"
    assert digests.problems(folder, files, lambda name: name.startswith("a/")) == ["a/large is missing"]


def test_a_file_is_compared_with_the_checksum_of_a_bucket(folder):
    files = digests.read(folder) | {"small": digests.Digest(4, f"md5:{hashlib.md5(b'text').hexdigest()}")}
    assert digests.problems(folder, files) == []
    (folder / "small").write_text("test")
    assert digests.problems(folder, files) == ["small has another content than was written"]


def test_shares_read_every_file_once(folder):
    files = digests.read(folder)
    for name in files:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found = [digests.problems(folder, files, share=(index, 3)) for index in range(3)]
    assert sorted(map(len, found)) == [0, 1, 1] and len({line for lines in found for line in lines}) == 2


@pytest.mark.parametrize("index", range(0, 160, 7))
def test_a_changed_byte_of_the_digests_themselves_is_found(index, folder):
    path = folder / digests.DIGESTS
    content = bytearray(path.read_bytes())
    content[index % len(content)] ^= 1 << index % 8
    path.write_bytes(content)
    with pytest.raises(Mismatch, match=r"digests.json: it"):
        digests.read(folder)
    path.unlink()
    with pytest.raises(Mismatch, match=r"digests.json is missing"):
        digests.read(folder)


def test_a_sealed_text_is_json_and_gives_back_what_was_sealed():
    text = json.dumps({"class": "Experiment", "steps": 3}, indent=2) + "\n"
    sealed = digests.seal(text)
    assert json.loads(sealed) == {"digest": digests.of(text.encode()), "class": "Experiment", "steps": 3}
    assert digests.unseal(sealed) == text
    with pytest.raises(Mismatch, match="does not match"):
        digests.unseal(sealed.replace("3", "4"))
    with pytest.raises(Mismatch, match="has no digest"):
        digests.unseal(text)


def test_a_sealed_line_is_json_and_no_bit_of_it_can_change():
    text = json.dumps({"step": 1, "split": "train", "loss": 2.5})
    sealed = digests.seal_line(text)
    assert json.loads(sealed) == {"step": 1, "split": "train", "loss": 2.5, "digest": digests.of(text.encode())}
    assert digests.unseal_line(sealed) == text and digests.unseal_line(text) is None
    for bit in range(8 * len(sealed)):
        changed = bytearray(sealed.encode())
        changed[bit // 8] ^= 1 << bit % 8
        assert digests.unseal_line(changed.decode(errors="replace")) is None
