"""Builders of TFDS data sets whose examples are sound files with transcripts."""

from collections.abc import Iterable, Iterator, Mapping

import tensorflow_datasets as tfds


class RecordingsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base class of the builders. Examples have the columns `audio` (content of a sound file), `text` and `name`."""

    DESCRIPTION: str
    """Description of the data set's content and splits."""

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        # The content of a sound file: TFDS would decode its own audio feature with other packages.
        features = tfds.features.FeaturesDict({"audio": tfds.features.Text(), "text": text, "name": text})
        return tfds.core.DatasetInfo(builder=self, description=self.DESCRIPTION, features=features)

    def _generate_examples(self, recordings: Iterable[Mapping[str, str]]) -> Iterator[tuple[int, dict]]:
        """Yields the examples of recordings, which are dicts with the keys `path`, `text` and `name`."""
        for number, one in enumerate(recordings):
            with open(one["path"], "rb") as file:
                yield number, {"audio": file.read(), "text": one["text"], "name": one["name"]}
