"""Speaks texts with the library of espeak-ng, which also reports the time of each phoneme."""

import concurrent.futures
import ctypes
import ctypes.util
import dataclasses
import functools
import io
import multiprocessing
import wave
from collections.abc import Iterable, Iterator
from typing import Any

from jaxformer.errors import InputError

LIBRARY = "libespeak-ng.so.1"
SYNCHRONOUS, UTF8, PHONEME = 2, 1, 7
"""Constants of speak_lib.h: the way of output, the encoding of texts, and the type of events of phonemes."""
OPTIONS = 0x8003
"""Reports events of phonemes, in IPA, and does not exit if the voices are missing."""
CHUNK = 16
"""Number of texts that are sent to the other process at once."""


class _Name(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """`espeak_EVENT` of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Name),
    )


@dataclasses.dataclass(frozen=True)
class Speech:
    """A text that has been spoken."""

    wav: bytes
    """Content of a WAV file: one channel of 16-bit samples."""
    seconds: float
    """Length in seconds."""
    phonemes: tuple[str, ...]
    """Phonemes in IPA. A pause is an empty string."""
    starts: tuple[float, ...]
    """Start of each phoneme in seconds."""


class Speaker:
    """Speaks texts with the library of espeak-ng, which has one state per process: what it returns for a text depends
    slightly on the texts before it.
    """

    def __init__(self):
        library = load()
        self.rate: int = library.espeak_Initialize(SYNCHRONOUS, 0, None, OPTIONS)
        if self.rate <= 0:
            raise InputError("espeak-ng: its voices are not installed; apt-get install espeak-ng-data")
        self._parts: list[bytes] = []
        self._phonemes: list[tuple[int, str]] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Event))
        self._callback = kind(self._receive)  # Kept, because the library calls it.
        library.espeak_SetSynthCallback(self._callback)
        self._library, self._voice = library, ""

    def speak(self, text: str, voice: str) -> Speech:
        """Speaks a text.

        Args:
          text: the text.
          voice: name of a voice of espeak-ng, such as `en-us` or `de+f2`.

        Raises:
          InputError: If there is no such voice.
        """
        if voice != self._voice and self._library.espeak_SetVoiceByName(voice.encode()):
            raise InputError(f"espeak-ng: there is no voice {voice!r}; `espeak-ng --voices` lists them")
        self._voice = voice
        self._parts, self._phonemes, content = [], [], text.encode()
        size = ctypes.c_size_t(len(content) + 1)
        if self._library.espeak_Synth(content, size, 0, 0, 0, UTF8, None, None):
            raise InputError(f"espeak-ng: cannot speak {text[:40]!r}")
        samples = b"".join(self._parts)
        with io.BytesIO() as file:
            with wave.open(file, "wb") as written:
                written.setnchannels(1)
                written.setsampwidth(2)
                written.setframerate(self.rate)
                written.writeframes(samples)
            content = file.getvalue()
        starts = tuple(sample / self.rate for sample, _ in self._phonemes)
        return Speech(content, len(samples) / 2 / self.rate, tuple(name for _, name in self._phonemes), starts)

    def _receive(self, samples: int | None, count: int, events: Any) -> int:
        if samples and count > 0:
            self._parts.append(ctypes.string_at(samples, 2 * count))
        number = 0
        while events and events[number].type:
            if events[number].type == PHONEME:
                name = bytes(events[number].id.string).decode("utf-8", "ignore")
                self._phonemes.append((events[number].sample, name))
            number += 1
        return 0  # Continue.


def load() -> Any:
    """Loads the library of espeak-ng. Raises InputError if it is not installed."""
    for name in (LIBRARY, ctypes.util.find_library("espeak-ng")):
        try:
            if name is not None:
                return ctypes.CDLL(name)
        except OSError:
            continue
    raise InputError("espeak-ng is not installed, and reads the texts of this data set; apt-get install espeak-ng")


def speak_all(texts: Iterable[tuple[str, str]]) -> Iterator[Speech]:
    """Speaks texts one after the other in a new process, so that results depend only on the texts. `texts` are pairs
    of a text and the name of a voice.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as process:
        chunk: list[tuple[str, str]] = []
        for pair in texts:
            chunk.append(pair)
            if len(chunk) == CHUNK:
                yield from process.submit(_speak, chunk).result()
                chunk = []
        yield from process.submit(_speak, chunk).result()


@functools.cache
def speaker() -> Speaker:
    """Returns the speaker of this process. The library of espeak-ng has one state per process."""
    return Speaker()


def _speak(texts: list[tuple[str, str]]) -> list[Speech]:
    return [speaker().speak(text, voice) for text, voice in texts]
