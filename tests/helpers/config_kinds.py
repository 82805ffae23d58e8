"""One config file of each kind: the others differ in numbers and data."""

import functools
import json
import re
from collections.abc import Iterable
from pathlib import Path

import jaxformer as jf
from jaxformer import config


def of_each_kind(files: Iterable[Path], *fields: str) -> list[Path]:
    """The first file of each combination of classes in some fields of the experiment, such as "data.task"."""
    kinds = {}
    for file in files:
        parts = [_part(_experiment(file), field.split(".")) for field in fields]
        kinds.setdefault(frozenset(re.findall(r'"class": "([^"]+)', json.dumps(parts))), file)
    return list(kinds.values())


@functools.cache
def _experiment(file):
    return json.loads(config.to_json(jf.load(file)))


def _part(tree, path):
    return _part(tree[path[0]], path[1:]) if path else tree
