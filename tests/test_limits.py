"""Small files that describe huge objects are refused before they take memory, by limits that can be raised."""

import json
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxformer import limits
from jaxformer.data.sources import sounds
from jaxformer.data.sources.pictures import Undecodable, read_picture
from jaxformer.data.sources.sounds import read_sound
from jaxformer.data.tokenizers.loading import load_json
from jaxformer.errors import InputError
from jaxformer.interop.formats.flax_msgpack import open_flax
from jaxformer.interop.formats.safetensors_file import open_safetensors
from jaxformer.interop.formats.torch_pickle import open_pytorch
from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.folders import read_json

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"


def test_the_page_lists_all_limits():
    listed = dict(re.findall(r"^\| `(JAXFORMER_MAX_\w+)` \| ([\d,]+) \|", PAGE.read_text(), re.MULTILINE))
    assert listed == {limit.variable: f"{limit.default:,}" for limit in limits.ALL}


def test_a_limit_can_be_raised_and_must_be_a_number(monkeypatch):
    monkeypatch.setenv("JAXFORMER_MAX_LAYERS", "12000")
    assert limits.LAYERS.value == 12000
    monkeypatch.setenv("JAXFORMER_MAX_LAYERS", "many")
    with pytest.raises(InputError, match="JAXFORMER_MAX_LAYERS=many: expected a whole number of layers"):
        limits.LAYERS.check(1, "config.json")


def tensors(path, header):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    return path


def entry(begin, end, *shape):
    return {"dtype": "U8", "shape": list(shape or (end - begin,)), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "header, message",
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, "b overlaps a at byte 4"),
        ({"a": entry(0, 0, 2**32, 2**32)}, "invalid header entry for a"),
        (b"[" * 100_000, "expected JSON: nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a safetensors file: its header: expected JSON: "),
    ],
)
def test_hostile_headers_are_refused(header, message, tmp_path):
    with pytest.raises(InputError, match=message):
        open_safetensors(tensors(tmp_path / "model.safetensors", header))


def test_large_headers_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFORMER_MAX_HEADER_BYTES", "100")
    with pytest.raises(InputError, match=r"\d+ bytes in the header; expected at most 100, or a larger JAXFORMER_MAX"):
        open_safetensors(tensors(tmp_path / "model.safetensors", {"a" * 100: entry(0, 8)}))


@pytest.mark.parametrize("read", [open_safetensors, open_pytorch, open_flax, read_json])
def test_pipes_are_refused_and_not_waited_for(read, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: not a regular file"):
        read(tmp_path / "pipe")


def view(count, shape, strides):
    """A pickle of a tensor that is a view of a storage."""
    numbers = [b"K" + bytes([number]) if number < 256 else b"J" + struct.pack("<i", number) for number in shape]
    steps = [b"K" + bytes([number]) for number in strides]
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK"
    parts = [b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n(", storage, bytes([count]), b"tQK\x00("]
    return b"".join([*parts, *numbers, b"t(", *steps, b"t\x89}tRs."])


def test_a_tensor_with_more_numbers_than_its_storage_is_refused(tmp_path):
    """It would be a few bytes in the file, and gigabytes when it is copied."""
    path = tmp_path / "pytorch_model.bin"
    for shape, strides, message in (
        ((2, 2), (2, 1), ""),
        ((2**20, 2**11), (0, 0), "more numbers than its storage of 4"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", view(4, shape, strides))
            archive.writestr("archive/data/0", bytes(16))
        if message:
            with pytest.raises(InputError, match=message):
                open_pytorch(path)
        else:
            assert open_pytorch(path)["a"].read().shape == (2, 2)


def test_an_archive_that_expands_is_refused(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", view(4, (2, 2), (2, 1)))
        archive.writestr("archive/data/0", bytes(10**7))
    with pytest.raises(InputError, match=r"[\d,]+ times its size when it is decompressed; expected at most 20"):
        open_pytorch(path)


def test_a_flax_checkpoint_with_too_many_values_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFORMER_MAX_ENTRIES", "1000")
    (tmp_path / "model.msgpack").write_bytes(b"\xdd" + struct.pack(">I", 2**32 - 1) + b"\xc0" * 2000)
    with pytest.raises(InputError, match="1,001 entries; expected at most 1,000"):
        open_flax(tmp_path / "model.msgpack")


def test_configs_with_too_many_layers_and_wrong_numbers_are_refused():
    reader = ConfigReader({"num_hidden_layers": 10**7, "layer_norm_eps": -1e-12, "scale": float("nan")}, "config.json")
    with pytest.raises(InputError, match=r"config.json: num_hidden_layers: 10,000,000 layers; expected at most 10,000"):
        reader.integer("num_hidden_layers")
    with pytest.raises(InputError, match="layer_norm_eps=-1e-12 is not supported; expected a small number, not below"):
        reader.number("layer_norm_eps", 1e-12)
    with pytest.raises(InputError, match="scale=nan is not supported; expected a finite number"):
        reader.number("scale", 1.0)


def test_a_tokenizer_with_a_huge_id_is_refused(tmp_path):
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 300_000_000}, unk_token="[UNK]"))
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="its largest id: 300,000,001 token ids; expected at most 10,000,000"):
        load_json(str(tmp_path / "tokenizer.json"))


def png(width, height):
    """A PNG of this size, all black, which is small in the file."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def test_huge_pictures_and_sounds_are_refused(tmp_path, monkeypatch):
    with pytest.raises(
        Undecodable, match="120,000,000 pixels; expected at most 100,000,000, or a larger JAXFORMER_MAX"
    ):
        read_picture(png(12_000, 10_000), 3)
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(Undecodable, match="not a regular file"):
        read_picture(tmp_path / "a.png", 3)
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.wav", np.zeros(2000, np.int16), 8000)
    assert len(read_sound(str(tmp_path / "a.wav"), 8000)) == 2000
    monkeypatch.setenv("JAXFORMER_MAX_SAMPLES", "1000")
    with pytest.raises(sounds.Undecodable, match="2,000 samples; expected at most 1,000"):
        read_sound(str(tmp_path / "a.wav"), 8000)


def test_numbers_that_are_not_finite_are_found():
    values = np.full(9, 3e38, np.float32)
    assert parameters._is_finite(values), "a sum that overflows is not a wrong value"
    for wrong in (np.nan, -np.inf):
        values[4] = wrong
        assert not parameters._is_finite(values) and not parameters._is_finite(values.astype(ml_dtypes.bfloat16))
