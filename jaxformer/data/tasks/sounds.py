"""Base class of tasks of models that recognize what is said in sounds, or learn from sounds."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxformer.data.fields.sound import AudioField, PreparedSound
from jaxformer.data.sources import sounds
from jaxformer.data.tasks.composed import FieldTask


@dataclasses.dataclass(frozen=True)
class SoundTask(FieldTask):
    """Task whose models are asked about sounds."""

    audio: AudioField
    """Settings for reading sounds."""

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        request = self.audio.request(example, folder)
        return () if request is None else (request,)

    def prepare_requests(self, requests: Sequence[sounds.SoundLike]) -> list[PreparedSound]:
        """Decodes the sounds that a user asks about. They can have any length.

        Raises:
          InputError: If a sound does not exist or cannot be decoded.
        """
        return self.audio.prepare(requests)
