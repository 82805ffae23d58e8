"""Readers of foreign bytes with damaged and hostile input: nothing but their own errors, in bounded time and memory.

    python tests/fuzz/hostile.py [--count 100000] [--only NAME] [--seed 0]

tries this number of inputs with each reader, and prints a line for each: inputs, how many were refused, the longest
time and the largest memory. The memory of the process is limited, so that a reader that needs too much fails.
`test_hostile.py` runs the same with few inputs.
"""

import argparse
import functools
import io
import json
import random
import resource
import struct
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

OWN_MEMORY = 3 << 30
"""Memory in bytes that a reader may need beside that of the idle process."""
LONGEST = 10.0
"""Seconds that an input may take."""
NUMBERS = [0, -1, 1, 2**31, 2**63, 2**64, 10**400, 10**7, 3 * 10**8, 1e308, -1e-12, 0.5, float("nan"), float("inf")]
CHARACTERS = b'{"<pad>": 0, "<unk>": 1, "|": 2, "a": 3}'
SPELLING = b'{"pad_token": "<pad>", "unk_token": {"content": "<unk>"}, "do_lower_case": true}'
VALUES = [*NUMBERS, None, True, "", "x", "\ud83d", "\x00", "../../etc/passwd", "9" * 400, [], {}, [[]], {"a": {}}]


def deep(depth):
    return json.loads("[" * depth + "]" * depth)


def places(tree, path=()):
    """The paths of all values in a JSON tree."""
    yield path
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(value, (*path, key))


def changed(tree, path, value):
    """A JSON tree with another value at a path; without the value at the path if it is `places`, as a marker."""
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    if value is places and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(copy[path[0]], path[1:], value)
    return copy


def damaged_json(draw, content):
    """JSON with one to three hostile values, or damaged as bytes."""
    if draw.random() < 0.2:
        return damaged_bytes(draw, content)
    if draw.random() < 0.02:
        return b"[" * 100_000
    tree = json.loads(content)
    for _ in range(draw.randint(1, 3)):
        found = list(places(tree))
        path = draw.choice(found[1:] or found)
        tree = changed(tree, path, places if path and draw.random() < 0.2 else draw.choice([*VALUES, deep(50)]))
        if not isinstance(tree, dict | list):
            break
    return json.dumps(tree).encode()


def damaged_bytes(draw, content):
    """Bytes with a few flips, cuts, repeated parts and large numbers."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place, how = draw.randrange(len(data) + 1), draw.randrange(6)
        if how == 0 and data:
            data[place % len(data)] ^= 1 << draw.randrange(8)
        elif how == 1:
            data = data[:place]
        elif how == 2:
            data[place:place] = draw.randbytes(draw.randint(1, 8))
        elif how == 3:
            data[place : place + draw.randint(1, 16)] = b""
        elif how == 4:
            large = draw.choice([2**32 - 1, 2**31 - 1, 2**63 - 1, 0, 10**7])
            code, size = draw.choice([("<I", 4), (">I", 4), ("<Q", 8), (">Q", 8)])
            data[place : place + size] = struct.pack(code, large % 2 ** (8 * size))
        else:
            data[place:place] = data[draw.randrange(len(data) + 1) :][:64]
    return bytes(data)


def safetensors_seed():
    header = {
        name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [24 * n, 24 * n + 24]} for n, name in enumerate("ab")
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(48)


def damaged_safetensors(draw, content):
    """A hostile header with a right length, or damaged bytes."""
    if draw.random() < 0.3:
        return damaged_bytes(draw, content)
    length = int.from_bytes(content[:8], "little")
    text = damaged_json(draw, content[8 : 8 + length])
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def pickled():
    """A PyTorch file of two tensors, written without PyTorch."""
    operations = (
        b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\x00\x00\x00storage"
    )
    operations += b"q\x03ctorch\nFloatStorage\nq\x04X\x01\x00\x00\x000q\x05X\x03\x00\x00\x00cpuq\x06K\x06tq\x07QK\x00"
    operations += b"K\x02K\x03\x86q\x08K\x03K\x01\x86q\x09\x89}q\ntq\x0bRq\x0cu."
    return operations


def archive(operations):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        written.writestr("archive/data.pkl", operations)
        written.writestr("archive/data/0", bytes(24))
    return file.getvalue()


def damaged_archive(draw, content):
    """A hostile pickle in a right archive, or damaged bytes."""
    return damaged_bytes(draw, content) if draw.random() < 0.4 else archive(damaged_bytes(draw, pickled()))


def flax_seed():
    def array(values):
        inner = b"\x93" + b"\x92\x02\x03" + b"\xa7float32" + b"\xc4\x18" + values.tobytes()
        return b"\xc7" + bytes([len(inner)]) + b"\x01" + inner

    values = np.arange(6, dtype=np.float32)
    return b"\x81\xa5dense\x82\xa6kernel" + array(values) + b"\xa4bias" + array(values)


def tokenizer_seed():
    import tokenizers

    vocab = {piece: number for number, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    made.add_special_tokens(["[PAD]", "[CLS]", "[SEP]", "[MASK]"])
    return made.to_str().encode()


def sentence_piece_seed():
    from jaxformer.data.tokenizers.training import train_sentencepiece

    texts = [{"text": f"a b c d e f{number}"} for number in range(20)]
    return train_sentencepiece(texts, 20, 30, "unigram", False)


def picture_seed(kind):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file, kind)
    return file.getvalue()


def sound_seed():
    samples = (np.sin(np.arange(400) / 9) * 9000).astype("<i2").tobytes()
    head = (
        b"RIFF"
        + struct.pack("<I", 36 + len(samples))
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
    )
    return head + b"data" + struct.pack("<I", len(samples)) + samples


def bert_config():
    names = {
        "vocab_size": 60,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    names |= {"model_type": "bert", "architectures": ["BertForMaskedLM"], "max_position_embeddings": 16}
    return json.dumps(names | {"layer_norm_eps": 1e-12, "hidden_act": "gelu", "type_vocab_size": 2}).encode()


def read_config(path):
    from jaxformer.interop.huggingface.config_reader import ConfigReader, config_errors
    from jaxformer.interop.huggingface.families import family_of_config
    from jaxformer.interop.huggingface.folders import read_json

    config = read_json(path)
    with config_errors(str(path)):
        family, _ = family_of_config(config, {}, str(path), ())
        reader = ConfigReader(config, str(path))
        family.build(reader, {})
        reader.finish()


def read_generation(path):
    from jaxformer.decoding.settings import Decoding
    from jaxformer.interop.huggingface.folders import read_json
    from jaxformer.interop.huggingface.generation_config import decoding_of

    decoding_of(read_json(path), Decoding())


def read_experiment(path):
    from jaxformer import config
    from jaxformer.runs.files import experiment_text

    config.from_json(experiment_text(path.parent), path.parent)


def read_digests(path):
    from jaxformer import digests

    digests.problems(path.parent, digests.read(path.parent, path.name))


def read_history(path):
    from jaxformer.runs.history import read_history

    read_history(path)


def read_characters(path):
    """Reads a vocabulary of characters with its settings. The file that is not at the path is undamaged."""
    from jaxformer.data.tokenizers import characters, loading

    other = {"vocab.json": CHARACTERS, "tokenizer_config.json": SPELLING}
    vocab = path.parent / "vocab.json"
    characters.load_characters(vocab, lambda name: loading.read(name) if name == str(path) else other[Path(name).name])


def read_phonemes(path):
    from jaxformer.data.tokenizers import loading, phonemes

    phonemes.load_phonemes(str(path), loading.read)


def read_tensors(reader, path):
    for tensor in reader(path).values():
        tensor.read()


def opened(name):
    """The reader of a format of weights, which reads all tensors."""
    from jaxformer.interop.formats import flax_msgpack, safetensors_file, torch_pickle

    readers = {"safetensors": safetensors_file.open_safetensors, "torch": torch_pickle.open_pytorch}
    return functools.partial(read_tensors, readers.get(name, flax_msgpack.open_flax))


def documents(make, path):
    found = make(str(path)).open()
    for index in range(min(len(found), 20)):
        found[index]


def targets():
    """Maps the name of each reader to (name of the file, content, function that damages it, reader)."""
    from jaxformer import digests
    from jaxformer.data.sources import clips, pictures, sounds
    from jaxformer.data.sources.sources import JsonLines, TextFiles
    from jaxformer.data.sources.tables import Csv
    from jaxformer.data.tokenizers import loading

    lines = b'{"text": "a b", "label": 1}\n' * 3
    sealed = digests.seal(json.dumps({"files": {"a/b": "xxh3:0123456789abcdef 12"}}, indent=2) + "\n").encode()
    line = digests.seal_line(json.dumps({"step": 1, "split": "train", "loss": 0.5})).encode() + b"\n"
    experiment = json.dumps({"class": "jaxformer.training.optimizers.AdamW", "schedule": {"peak": 0.1}}).encode()
    decoding = json.dumps({"do_sample": True, "top_k": 5, "max_length": 9, "eos_token_id": [1, 2]}).encode()
    return {
        "safetensors": ("w.safetensors", safetensors_seed(), damaged_safetensors, opened("safetensors")),
        "torch": ("w.bin", archive(pickled()), damaged_archive, opened("torch")),
        "flax": ("w.msgpack", flax_seed(), damaged_bytes, opened("flax")),
        "tokenizer.json": ("tokenizer.json", tokenizer_seed(), damaged_json, lambda path: loading.load_json(str(path))),
        "SentencePiece": (
            "tokenizer.model",
            sentence_piece_seed(),
            damaged_bytes,
            lambda path: loading.load(loading.SentencePieceTokenizer, str(path)),
        ),
        "vocab.json": ("vocab.json", CHARACTERS, damaged_json, read_characters),
        "tokenizer_config.json": ("tokenizer_config.json", SPELLING, damaged_json, read_characters),
        "phonemes.json": ("phonemes.json", b'["a", "ai", "t"]', damaged_json, read_phonemes),
        "config.json": ("config.json", bert_config(), damaged_json, read_config),
        "generation_config.json": ("generation_config.json", decoding, damaged_json, read_generation),
        "experiment.json": ("experiment.json", experiment, damaged_json, read_experiment),
        "digests": ("digests.json", sealed, damaged_bytes, read_digests),
        "metrics": ("metrics.jsonl", line * 3, damaged_bytes, read_history),
        "JSON lines": ("a.jsonl", lines, damaged_bytes, functools.partial(documents, lambda path: JsonLines((path,)))),
        "text": ("a.txt", lines, damaged_bytes, functools.partial(documents, lambda path: TextFiles((path,)))),
        "CSV": (
            "a.csv",
            b'text,label\n"a\nb",1\nc,0\n',
            damaged_bytes,
            functools.partial(documents, lambda path: Csv((path,))),
        ),
        "PNG": ("a.png", picture_seed("PNG"), damaged_bytes, lambda path: pictures.read_picture(path, 3)),
        "JPEG": ("a.jpg", picture_seed("JPEG"), damaged_bytes, lambda path: pictures.read_picture(path, 3)),
        "TIFF": ("a.tif", picture_seed("TIFF"), damaged_bytes, lambda path: pictures.read_picture(path, 3)),
        "GIF": ("a.gif", picture_seed("GIF"), damaged_bytes, lambda path: clips.open_clip(path).pictures([0])),
        "WAV": ("a.wav", sound_seed(), damaged_bytes, lambda path: sounds.read_sound(str(path), 8000)),
    }


class Fuzzer:
    """Damages the input of one reader, and reads it."""

    def __init__(self, name, folder):
        from jaxformer.data.sources import pictures, sounds
        from jaxformer.errors import InputError

        self.name, self._errors = name, (InputError, pictures.Undecodable, sounds.Undecodable)
        file, self._content, self._damage, self._read = targets()[name]
        self._path = Path(folder) / name.replace(" ", "-") / file
        self._path.parent.mkdir()
        self.refused, self.slowest = 0, 0.0

    def run(self, seed):
        """Reads the input of a seed. Raises an error that is not the reader's own, with the seed and the input."""
        content = self._damage(random.Random(f"{self.name} {seed}"), self._content)
        self._path.write_bytes(content)
        began = time.monotonic()
        try:
            self._read(self._path)
        except self._errors as error:
            self.refused += 1
            assert "\n" not in str(error), f"seed {seed}: an error of several lines: {error}"
        except BaseException as error:
            error.add_note(f"{self.name}, seed {seed}: {content[:200]!r}")
            raise
        self.slowest = max(self.slowest, time.monotonic() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="number of inputs of each reader")
    parser.add_argument("--only", action="append", help="name of a reader; can be repeated")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only or targets():
            fuzzer, began, found = Fuzzer(name, folder), time.monotonic(), {}
            for seed in range(options.seed, options.seed + options.count):
                try:
                    fuzzer.run(seed)
                except KeyboardInterrupt:
                    raise
                except BaseException as error:
                    found.setdefault(f"{type(error).__name__}: {error}"[:160], error)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(
                f"{name:24} {options.count:,} inputs, {fuzzer.refused:,} refused, {len(found)} other errors, slowest "
                f"{fuzzer.slowest:.2f} s, {time.monotonic() - began:.0f} s, at most {memory:.1f} GiB",
                flush=True,
            )
            for said, error in list(found.items())[:10]:
                print(f"    {said}\n    {' '.join(getattr(error, '__notes__', []))[:300]}", flush=True)
            failed += bool(found) or fuzzer.slowest > LONGEST
    return 1 if failed else 0


if __name__ == "__main__":
    limit = OWN_MEMORY + (6 << 30)  # Addresses: libraries reserve more than they use.
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.exit(main())
