"""The parity certificate: what an exported folder computes in PyTorch is what the model computes here.

`certify` measures logits, loss, gradients, greedy decoding and tokens on both sides, in float32 and on the CPU, and
writes `parity.json` and `parity.html` into the folder.
"""

import dataclasses
import json
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.interop.certificate_page import page
from jaxformer.interop.hard_strings import HARD_STRINGS

JSON, HTML = "parity.json", "parity.html"
LOGITS, LOSS, GRADIENTS, TIE = 2e-5, 1e-5, 1e-3, 1e-4
"""Tolerances: of logits against the largest of them (or 1), of the loss against itself (or 1), of gradients against
each tensor's largest, and of the logits of two tokens of which either may be chosen."""
PACKAGES = ("jaxformer", "jax", "flax", "torch", "transformers", "tokenizers", "sentencepiece", "numpy")


@dataclasses.dataclass(frozen=True)
class Line:
    """One thing that was compared."""

    what: str
    """Such as `logits`."""
    where: str
    """On which inputs."""
    measured: float
    """How far the two sides are apart."""
    tolerance: float
    """How far they may be."""
    note: str = ""
    """More for a reader."""

    @property
    def passed(self) -> bool:
        """Whether they are near enough; what is not a number is not."""
        return bool(self.measured <= self.tolerance)


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What was compared, and with what."""

    architecture: str
    """PyTorch's class."""
    parameters: int
    """How many numbers the model has."""
    dtype: str
    """Of the folder's weights; both sides computed with them in float32."""
    lines: tuple[Line, ...]
    """The comparisons."""
    versions: dict[str, str]
    """Of what computed."""

    @property
    def passed(self) -> bool:
        """Whether all of them did."""
        return all(line.passed for line in self.lines)

    def to_json(self) -> dict[str, Any]:
        """As `parity.json` has it."""
        lines = [dataclasses.asdict(line) | {"passed": line.passed} for line in self.lines]
        return {"passed": self.passed, **dataclasses.asdict(self), "lines": lines}

    def __str__(self) -> str:
        worst = max(
            (line for line in self.lines if line.what == "logits"), key=lambda line: line.measured, default=None
        )
        told = f"logits differ by {worst.measured:.1e} at most, relative to the largest; " if worst else ""
        passed = sum(line.passed for line in self.lines)
        versions = f"transformers {self.versions['transformers']}, torch {self.versions['torch']}"
        return f"{told}{passed} of {len(self.lines)} comparisons with {versions} passed; all are in `{HTML}`."


def certify(model: nn.Module, params: Any, tokenizer: Tokenizer | None, folder: str | os.PathLike) -> Certificate:
    """Compares a model with PyTorch's of the folder that it was exported to, and writes the certificate there.

    Args:
      model: ours.
      params: its parameters.
      tokenizer: its tokenizer, if the folder has one.
      folder: with config.json, weights and tokenizer.

    Raises:
      InputError: the two differ by more than the tolerances, or torch or transformers is not there.
    """
    _check_installed()
    from jaxformer.interop import parity

    folder = Path(folder)
    theirs = parity.Theirs(folder)
    dtype = str(theirs.config.get("dtype") or theirs.config.get("torch_dtype") or "float32")
    ours = parity.Ours(model, params, dtype)
    lines = tuple(_lines(ours, theirs, tokenizer, folder))
    count = sum(int(np.prod(array.shape)) for array in parity.parameters.flat(ours.params).values())
    certificate = Certificate(theirs.architecture, count, dtype, lines, _versions())
    content = certificate.to_json()
    (folder / JSON).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / HTML).write_text(page(content), encoding="utf-8")
    if wrong := [line for line in lines if not line.passed]:
        told = [
            f"{line.what} ({line.where}) differ by {line.measured:.1e}, above {line.tolerance:.0e}" for line in wrong
        ]
        more = f"; and {len(told) - 4} more" if len(told) > 4 else ""
        raise InputError(f"{folder}: not what PyTorch computes: {'; '.join(told[:4])}{more}")
    return certificate


def certify_run(run: Any, folder: Path) -> str:
    """The certificate of an exported run, as a line for its model card; raises as `certify` does."""
    return str(certify(run.model, run.params, run.tokenizer, folder))


def _check_installed() -> None:
    for name in ("torch", "transformers"):
        try:
            __import__(name)
        except ImportError as error:
            raise InputError(
                f"the parity certificate needs {name} ({error}): pip install 'jaxformer[torch]', "
                "or leave the certificate out with --no-certificate"
            ) from error


def _lines(ours: Any, theirs: Any, tokenizer: Tokenizer | None, folder: Path) -> Iterator[Line]:
    from jaxformer.interop import parity

    model = ours.model
    pad = theirs.config.get("pad_token_id")
    texts = [] if tokenizer is None else [tokenizer.encode(text) for text in HARD_STRINGS]
    every = list(parity.inputs(model, texts, 0 if pad is None else pad))
    for rows in every:
        found, loss = theirs(rows, model)
        mine, my_loss = ours(rows, list(found))
        shape = f"{rows.name}: {' × '.join(map(str, rows.tokens.shape))} tokens"
        for name, expected in found.items():
            yield _compared(name, shape, mine[name], expected, rows.mask)
        yield Line("loss", shape, abs(my_loss - loss) / max(1.0, abs(loss)), LOSS, f"{my_loss:.6f} and {loss:.6f}")
    names = list(found)
    gradients = parity.by_their_names(theirs.config, ours.gradients(every[2], names))
    difference, name = parity.largest_difference(gradients, theirs.gradients(every[2], model))
    yield Line("gradients", "padded", difference, GRADIENTS, f"of {len(gradients)} tensors, most in {name}")
    if not isinstance(model, parity.Bert):
        yield _written(ours, theirs, every, 0 if pad is None else pad)
    if tokenizer is not None:
        yield _tokens(tokenizer, folder)


def _compared(name: str, where: str, ours: np.ndarray, theirs: np.ndarray, mask: np.ndarray) -> Line:
    """The largest difference where there are tokens, relative to the largest number."""
    if ours.shape != theirs.shape:
        return Line(name, where, float("inf"), LOGITS, f"shapes {ours.shape} and {theirs.shape}")
    real = mask > 0 if ours.ndim == 3 else np.ones(len(ours), bool)
    difference, size = np.abs(ours - theirs)[real].max(), max(1.0, np.abs(theirs[real]).max())
    return Line(name, where, float(difference / size), LOGITS, f"{difference:.1e}, where they reach {size:.1f}")


def _written(ours: Any, theirs: Any, every: list[Any], pad: int) -> Line:
    """How far apart the logits are of the first tokens that differ: near 0, either may be chosen."""
    from jaxformer.interop import parity

    answers = isinstance(ours.model, parity.EncoderDecoder)
    start = theirs.config.get("decoder_start_token_id", pad) if answers else None
    prompts = [row for rows in (every[0], every[3]) for row in (rows.read if answers else rows.tokens)[:2, :8]]
    room = ours.model.positions - (1 if answers else prompts[0].size)
    new = max(1, min(parity.NEW, room))
    gap, equal = 0.0, 0
    for prompt, mine in zip(prompts, ours.write(prompts, new, start), strict=True):
        expected, logits = theirs.write(prompt, new, start, pad)
        differ = np.flatnonzero(mine != expected) if mine.shape == expected.shape else [0]
        equal += not len(differ)
        if len(differ):
            one, other = logits[differ[0], [mine[differ[0]], expected[differ[0]]]]
            gap = max(gap, float(abs(one - other)))
    note = f"{equal} of {len(prompts)} outputs of {new} tokens are equal"
    return Line("greedy tokens", f"{len(prompts)} prompts", gap, TIE, note)


def _tokens(tokenizer: Tokenizer, folder: Path) -> Line:
    """How many hard strings the two tokenizers encode differently."""
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    differing = [
        text
        for text in HARD_STRINGS
        if theirs(text, add_special_tokens=False).input_ids != tokenizer.encode(text).tolist()
    ]
    note = f"first {differing[0]!r}" if differing else "all ids are equal"
    return Line("tokens", f"{len(HARD_STRINGS)} hard strings", float(len(differing)), 0.0, note)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # It runs from its source.
            from jaxformer import __version__

            found[name] = __version__ if name == "jaxformer" else "?"
    return found
