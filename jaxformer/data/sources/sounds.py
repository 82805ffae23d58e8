"""Decoding of sounds from files, bytes or arrays, and sources of sounds with transcripts."""

import csv
import dataclasses
import io
import json
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxformer import storage
from jaxformer.data.messages import Problems
from jaxformer.data.sources import columns, files
from jaxformer.data.sources.sources import Source
from jaxformer.errors import InputError
from jaxformer.limits import SAMPLES

ENDINGS = (".aif", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav")
"""File name extensions of sounds, in lower case."""

SoundLike = str | os.PathLike | bytes | np.ndarray
"""Path of a sound file, its content as bytes, or an array of samples."""

_SHORT = re.compile(r"^data *: (\w+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN = ("0", "0x0", "4294967295", "0xFFFFFFFF", "0xffffffff")
"""Sizes in a file header that mean that the length of the sound is unknown. Programs write them to streams whose length
they do not know in advance.
"""


class Undecodable(Exception):
    """Raised if a sound cannot be read. The message names the sound and the reason."""


def name_of(sound: SoundLike, otherwise: str) -> str:
    """Returns the path of a sound for error messages, or `otherwise` if it does not have one."""
    return os.fspath(sound) if isinstance(sound, str | os.PathLike) else otherwise


def read_sound(sound: SoundLike, rate: int, name: str = "", array_rate: int | None = None) -> np.ndarray:
    """Reads a sound as one channel with the given sampling rate.

    Every sound is read by this function. It decodes all formats of libsndfile, averages the channels, and resamples
    with soxr. Samples are not clipped or scaled.

    Args:
      sound: path of a sound file, its content as bytes, or an array [samples] or [samples, channels] of floats from -1
        to 1 or of integers (int16, or int64 with the range of int16, as in TFDS; uint8 with 128 as 0).
      rate: samples per second of the result.
      name: name of a sound without a path, for error messages.
      array_rate: sampling rate of `sound`, in samples per second, if it is an array. If None, it is `rate`.

    Returns:
      Samples, float32 [samples].

    Raises:
      Undecodable: If `sound` is not a sound, is truncated, or has no samples.
      InputError: If a package that reads sounds is missing.
    """
    name = name_of(sound, name)
    if isinstance(sound, np.ndarray):
        samples, given = _of_array(sound, name), array_rate or rate
    else:
        samples, given = _decoded(sound, name)
    if not len(samples):
        raise Undecodable(f"{name}: has no samples")
    if not np.isfinite(samples).all():
        raise Undecodable(f"{name}: has samples that are not finite")
    mono = samples.mean(axis=1, dtype=np.float32) if samples.ndim == 2 else samples
    return np.ascontiguousarray(mono if given == rate else _resampled(mono, given, rate), np.float32)


def _decoded(sound: str | os.PathLike | bytes, name: str) -> tuple[np.ndarray, int]:
    """Decodes a sound file. Returns its samples, float32 [samples] or [samples, channels], and its sampling rate."""
    soundfile = _package("soundfile")
    content = sound if isinstance(sound, bytes) else _content(os.fspath(sound))
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if file.frames < 2**62 and (problem := SAMPLES.problem(file.frames * file.channels)):
                raise Undecodable(f"{name}: {problem}")
            samples = file.read(dtype="float32", frames=SAMPLES.value // file.channels + 1)
            if problem := SAMPLES.problem(samples.size):
                raise Undecodable(f"{name}: {problem}")
            problem = _missing(file, len(samples))
            if problem:
                raise Undecodable(f"{name}: is truncated: {problem}")
            return samples, file.samplerate
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError) as error:
        said = str(getattr(error, "error_string", error)).removeprefix("Error : ").rstrip(".")
        reason = " ".join(said.split()) or type(error).__name__
        raise Undecodable(f"{name}: cannot be decoded as a sound: {reason[:1].lower()}{reason[1:]}") from error


def _missing(file: Any, count: int) -> str:
    """Describes how many samples of a truncated sound file are missing, for an error message. Returns an empty string
    if the file is complete. `file` is the open SoundFile, and `count` the number of samples that were decoded.
    """
    if (found := _SHORT.search(file.extra_info)) and found[1] not in _UNKNOWN:
        return f"its header announces {found[1]} bytes of samples, and {found[2]} follow"
    announced = file.frames
    # Encoders of MP3 only estimate the number of samples.
    if announced < 2**62 and count < announced - max(file.samplerate // 10, announced // 50):
        return f"its header announces {announced:,} samples, and {count:,} follow"
    return ""


def _content(path: str) -> bytes:
    try:
        return storage.read_bytes(os.path.expanduser(path))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise Undecodable(f"{path}: {reason}; give the path of a sound file") from error


def _of_array(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] > 64):
        raise Undecodable(f"{name}: an array of shape {array.shape}: expected [samples] or [samples, channels]")
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / 128
    if array.dtype.kind == "i":
        return array.astype(np.float32) / (2**31 if array.dtype == np.int32 else 2**15)
    if array.dtype.kind != "f":
        raise Undecodable(f"{name}: an array of {array.dtype}: expected floats or integers")
    return array.astype(np.float32)


def _resampled(samples: np.ndarray, given: int, rate: int) -> np.ndarray:
    return _package("soxr").resample(samples, given, rate, quality="HQ")


def _package(name: str) -> Any:
    """Imports an optional package for decoding or resampling sounds. Raises InputError if it is not installed."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"sounds: {name} is not installed; pip install 'jaxformer[audio]'") from error


@dataclasses.dataclass(frozen=True)
class SoundManifest(Source):
    """Source of sounds with transcripts: JSON Lines files (manifests) in which each line contains the path of a sound
    file and its transcript, such as `{"audio": "clips/1.wav", "text": "Hello."}`.

    Relative paths of sounds are relative to the folder of the manifest. Other columns are kept.
    """

    paths: tuple[str, ...] = ()
    """Paths or glob patterns of the manifests."""
    audio: str = "audio"
    """Name of the column with the path of the sound file, such as `audio_filepath` in manifests of NeMo."""
    encoding: str = "utf-8"
    """Python name of the file encoding, such as utf-8."""

    def __post_init__(self):
        files.check_encoding(self.encoding)

    def open(self) -> Sequence[dict[str, Any]]:
        return _Manifest(files.expand(self.paths), self.audio, self.encoding)


class _Manifest(files.JsonDocuments):
    """Sequence of the examples of a `SoundManifest`, with absolute paths of the sound files. Raises InputError on
    creation if a sound file does not exist.
    """

    def __init__(self, paths: list[str], audio: str, encoding: str):
        super().__init__(paths, encoding)
        self.audio = audio
        problems = Problems()
        for index in range(len(self)):
            example = self[index]
            if not os.path.isfile(example[audio]) and not storage.is_remote(example[audio]):
                problems.add(f"{self.place(index)}: {audio}={example[audio]!r}: no such file")
        problems.check()

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = super().__getitem__(index)
        path = columns.value(example, self.audio, "data.train.audio")
        if not isinstance(path, str):
            raise InputError(f"{self.place(index)}: {self.audio}={json.dumps(path)[:60]}: expected a path")
        home = os.path.dirname(os.path.abspath(self.paths[self.files[index]]))
        return example | {self.audio: path if storage.is_remote(path) else os.path.join(home, os.path.expanduser(path))}


@dataclasses.dataclass(frozen=True)
class SpeechFolder(Source):
    """Source of sounds with transcripts in the layout of the LJ Speech data set: a file metadata.csv with lines
    `NAME|TEXT` or `NAME|TEXT|NORMALIZED TEXT`, and sound files wavs/NAME.wav.

    An example is {"audio": path, "text": text}. The text is the normalized one if the line contains it.
    """

    path: str
    """Path of the folder that contains metadata.csv and wavs."""
    encoding: str = "utf-8"
    """Python name of the encoding of metadata.csv, such as utf-8."""

    def __post_init__(self):
        files.check_encoding(self.encoding)

    def open(self) -> Sequence[dict[str, Any]]:
        home = os.path.expanduser(self.path)
        return _Readings(home, files.decoded(os.path.join(home, "metadata.csv"), self.encoding))


class _Readings(Sequence):
    """Sequence of the examples of a `SpeechFolder`, each a dict {"audio": path, "text": text}."""

    scan = True

    def __init__(self, home: str, metadata: str):
        self.file = os.path.join(home, "metadata.csv")
        self.found: list[tuple[int, str, str]] = []
        problems = Problems()
        rows = csv.reader(io.StringIO(metadata), delimiter="|", quoting=csv.QUOTE_NONE)
        for number, row in enumerate(rows, 1):
            if not row:
                continue
            path = _sound_in(os.path.join(home, "wavs"), row[0])
            if len(row) < 2:
                problems.add(f"{self.file}: line {number}: expected NAME|TEXT")
            elif path is None:
                problems.add(f"{self.file}: line {number}: there is no wavs/{row[0]}.wav")
            else:
                self.found.append((number, path, next(filter(None, map(str.strip, row[:0:-1])), "")))
        problems.check()
        if not self.found:
            raise InputError(f"{self.file}: has no lines; expected NAME|TEXT")

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> dict[str, Any]:
        _, path, text = self.found[int(index)]
        return {"audio": path, "text": text}

    def identity(self, index: int) -> dict[str, Any]:
        """Returns example `index` with the content of its sound file instead of the path. Fingerprints of the data are
        computed from it, so that they do not change when the folder is moved.
        """
        _, path, text = self.found[index]
        return {"audio": storage.read_bytes(path), "text": text}

    def place(self, index: int) -> str:
        """Returns the path of metadata.csv and the line number of example `index` in it, for error messages."""
        return f"{self.file}: line {self.found[index][0]}"


def _sound_in(folder: str, name: str) -> str | None:
    """Returns the path of the file in `folder` that is called `name`, with or without a sound file extension. `.wav` is
    tried before the others. Returns None if none exists.
    """
    paths = (os.path.join(folder, name + ending) for ending in (".wav", "", *ENDINGS))
    return next(filter(os.path.isfile, paths), None)
