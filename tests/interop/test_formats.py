"""Files of weights, written by other libraries and read here, and the other way."""

import json
import pickle
import zipfile
from collections import OrderedDict

import flax.serialization
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch

from jaxformer.errors import InputError
from jaxformer.interop.formats.flax_msgpack import open_flax
from jaxformer.interop.formats.safetensors_file import open_safetensors, write_safetensors
from jaxformer.interop.formats.torch_pickle import open_pytorch
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.folders import write_weights

RNG = np.random.default_rng(0)
ARRAYS = {
    "a.weight": RNG.normal(size=(3, 5)).astype(np.float32),
    "b.bias": RNG.normal(size=4).astype(np.float16),
    "empty": np.zeros((0, 2), np.float32),
    "scalar": np.array(7, np.int64),
    "mask": np.array([[True, False]]),
}

TENSORS = OrderedDict((name, torch.from_numpy(np.array(array))) for name, array in ARRAYS.items() if name != "empty")
TREE = {
    "bert": {
        "embeddings": {"word_embeddings": {"embedding": ARRAYS["a.weight"]}},
        "layer": {"0": {"dense": {"kernel": ARRAYS["a.weight"], "bias": ARRAYS["b.bias"]}}},
        "LayerNorm": {"scale": ARRAYS["b.bias"].astype(ml_dtypes.bfloat16)},
    }
}
EXPECTED = {
    "bert.embeddings.word_embeddings.weight": ARRAYS["a.weight"],
    "bert.layer.0.dense.weight": ARRAYS["a.weight"].T,
    "bert.layer.0.dense.bias": ARRAYS["b.bias"],
    "bert.LayerNorm.weight": ARRAYS["b.bias"].astype(ml_dtypes.bfloat16),
}


def contents(tensors) -> dict:
    return {name: tensor.read() for name, tensor in tensors.items()}


def assert_same(actual: dict, expected: dict) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape), name
        assert np.ascontiguousarray(actual[name]).tobytes() == np.ascontiguousarray(array).tobytes(), name


class TestSafetensors:
    def test_reads_what_the_library_wrote(self, tmp_path):
        safetensors.numpy.save_file(ARRAYS, tmp_path / "file")
        assert_same(contents(open_safetensors(tmp_path / "file")), ARRAYS)

    def test_the_library_reads_what_is_written(self, tmp_path):
        described = {name: (array.dtype, array.shape) for name, array in ARRAYS.items()}
        write_safetensors(tmp_path / "file", described, iter(ARRAYS.values()))
        assert_same(safetensors.numpy.load_file(tmp_path / "file"), ARRAYS)

    def test_every_type_survives(self, tmp_path):
        array = np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)
        write_safetensors(tmp_path / "file", {"x": (array.dtype, array.shape)}, [array])
        assert_same(contents(open_safetensors(tmp_path / "file")), {"x": array})
        with safetensors.safe_open(tmp_path / "file", "pt") as file:
            assert file.get_tensor("x").dtype == torch.bfloat16
            assert file.metadata() == {"format": "pt"}

    @pytest.mark.parametrize("kept", [0, 5, 40, -1])
    def test_a_file_cut_short(self, tmp_path, kept):
        safetensors.numpy.save_file(ARRAYS, tmp_path / "file")
        (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:kept])
        with pytest.raises(InputError, match=r"claims|truncated"):
            open_safetensors(tmp_path / "file")

    @pytest.mark.parametrize(
        ("entry", "line"),
        [
            ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "truncated: x ends at byte"),
            ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "invalid header entry for x"),
            ({"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}, "invalid header entry for x"),
            ({"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}, "invalid header entry for x"),
            (7, "invalid header entry for x"),
        ],
    )
    def test_a_header_with_wrong_sizes(self, tmp_path, entry, line):
        text = json.dumps({"x": entry}).encode()
        (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
        with pytest.raises(InputError, match=line):
            open_safetensors(tmp_path / "file")

    def test_a_name_twice(self, tmp_path):
        entry = '{"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}'
        text = f'{{"x": {entry}, "x": {entry}}}'.encode()
        (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text + bytes(1))
        with pytest.raises(InputError, match="x occurs twice in the header"):
            open_safetensors(tmp_path / "file")


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch evil",)


class TestPyTorch:
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_reads_what_torch_wrote(self, tmp_path, zipped):
        base = torch.arange(24, dtype=torch.float32)
        views = {"turned": base.reshape(4, 6).T, "part": base[5:9], "half": base.to(torch.bfloat16)}
        torch.save(OrderedDict(TENSORS, **views), tmp_path / "file", _use_new_zipfile_serialization=zipped)
        numbers = np.arange(24, dtype=np.float32)
        expected = {name: ARRAYS[name] for name in TENSORS} | {"turned": numbers.reshape(4, 6).T}
        expected |= {"part": numbers[5:9], "half": numbers.astype(ml_dtypes.bfloat16)}
        assert_same(contents(open_pytorch(tmp_path / "file")), expected)

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_nothing_but_tensors_is_unpickled(self, tmp_path, zipped, monkeypatch):
        monkeypatch.chdir(tmp_path)
        torch.save({"x": torch.zeros(2), "y": Evil()}, "file", _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match=r"its pickle contains posix.system; refused"):
            open_pytorch(tmp_path / "file")
        assert not (tmp_path / "evil").exists()

    def test_a_plain_pickle_is_refused_by_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "file").write_bytes(pickle.dumps(Evil(), protocol=2))
        with pytest.raises(InputError, match=r"posix.system"):
            open_pytorch(tmp_path / "file")
        assert not (tmp_path / "evil").exists()

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    @pytest.mark.parametrize("kept", [0.2, 0.9, 0.99])
    def test_a_file_cut_short(self, tmp_path, zipped, kept):
        torch.save({"x": torch.zeros(4000)}, tmp_path / "file", _use_new_zipfile_serialization=zipped)
        whole = (tmp_path / "file").read_bytes()
        (tmp_path / "file").write_bytes(whole[: int(kept * len(whole))])
        with pytest.raises(InputError, match=r"truncated|not a PyTorch file"):
            contents(open_pytorch(tmp_path / "file"))

    def test_a_view_beyond_its_storage(self, tmp_path):
        torch.save({"x": torch.zeros(4)}, tmp_path / "whole")
        with zipfile.ZipFile(tmp_path / "whole") as whole, zipfile.ZipFile(tmp_path / "file", "w") as file:
            for name in whole.namelist():
                data = whole.read(name)
                file.writestr(name, data.replace(b"K\x04\x85", b"K\x09\x85") if name.endswith(".pkl") else data)
        with pytest.raises(InputError, match="x reaches beyond its storage of 4 numbers"):
            open_pytorch(tmp_path / "file")

    @pytest.mark.parametrize(
        ("value", "line"),
        [
            ([1], "expected tensors by name"),
            ({"x": 3}, "x is a int"),
            ({"state_dict": {}}, "expected only its state_dict"),
        ],
    )
    def test_other_values_than_a_state_dict(self, tmp_path, value, line):
        torch.save(value, tmp_path / "file")
        with pytest.raises(InputError, match=line):
            open_pytorch(tmp_path / "file")


class TestFlax:
    @pytest.mark.parametrize("wrap", [lambda tree: tree, lambda tree: {"params": tree}])
    def test_reads_what_flax_wrote(self, tmp_path, wrap):
        (tmp_path / "file").write_bytes(flax.serialization.to_bytes(wrap(TREE)))
        assert_same(contents(open_flax(tmp_path / "file")), EXPECTED)

    def test_arrays_in_pieces(self, tmp_path, monkeypatch):
        monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 16)
        (tmp_path / "file").write_bytes(flax.serialization.to_bytes(TREE))
        assert_same(contents(open_flax(tmp_path / "file")), EXPECTED)

    @pytest.mark.parametrize("kept", [0, 10, 100, -1])
    def test_a_file_cut_short(self, tmp_path, kept):
        (tmp_path / "file").write_bytes(flax.serialization.to_bytes(TREE)[:kept])
        with pytest.raises(InputError, match="truncated"):
            open_flax(tmp_path / "file")


def test_weights_in_several_files(tmp_path):
    arrays = {f"w{number}": RNG.normal(size=(number, 7)).astype(np.float32) for number in range(1, 6)}
    described = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    write_weights(tmp_path, described, iter(arrays.values()), shard=150)
    (tmp_path / "config.json").write_text("{}")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files and len(files) == 4
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays.values())
    # One tensor may be larger than a file's limit, and no other file is.
    sizes = [sum(arrays[name].nbytes for name, at in index["weight_map"].items() if at == file) for file in files]
    assert sizes == [84, 84, 112, 140]
    assert_same(contents(open_folder(tmp_path).tensors), arrays)
