"""Builders of TFDS data sets whose examples are sound files with transcripts."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds


class RecordingsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base class of the builders. Examples have the columns `audio` (content of a sound file), `text` and `name`."""

    DESCRIPTION: str
    """Description of the data set's content and splits."""

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        # The content of a sound file: TFDS would decode its own audio feature with other packages.
        columns = {"audio": tfds.features.Text(), "text": text, "name": text} | self._further_columns()
        features = tfds.features.FeaturesDict(columns)
        return tfds.core.DatasetInfo(builder=self, description=self.DESCRIPTION, features=features)

    def _further_columns(self) -> dict[str, Any]:
        """Returns the features of further columns, keyed by column name. Empty by default."""
        return {}

    def _generate_examples(self, recordings: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, dict]]:
        """Yields the examples of recordings, which are dicts with the columns. A recording may have the key `path`
        instead of `audio`: the path of its sound file.
        """
        for number, one in enumerate(recordings):
            example = {name: value for name, value in one.items() if name != "path"}
            if "path" in one:
                with open(one["path"], "rb") as file:
                    example["audio"] = file.read()
            yield number, example
