"""Parity certificate: compares the JAX model with the PyTorch model of a Hugging Face folder.

`certify` compares logits, loss, gradients, greedy decoding and tokenization, in float32 on the CPU, and writes
`parity.json` and `parity.html`.
"""

import dataclasses
import importlib.util
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer import strict_json
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.families import FAMILIES, families_of, family_of_config
from jaxformer.interop.huggingface.folders import CONFIG
from jaxformer.interop.huggingface.table import tensor_mappings
from jaxformer.interop.parity.hard_strings import HARD_STRINGS, NAMED_STRINGS
from jaxformer.interop.parity.lines import GRADIENTS, LOSS, TIE, Line, compared
from jaxformer.models.base import Model
from jaxformer.reports.certificate import page
from jaxformer.runs.run import Run

JSON, HTML = "parity.json", "parity.html"
PACKAGES = ("jaxformer", "jax", "flax", "torch", "transformers", "tokenizers", "sentencepiece", "numpy")


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Results of comparing a JAX model with the PyTorch model of a Hugging Face folder."""

    architecture: str
    """Name of the class in the transformers library that loads the PyTorch model."""
    parameters: int
    """Number of parameters of the model."""
    dtype: str
    """Dtype of the weights in the Hugging Face folder. Both models round their parameters to it before they compute in
    float32.
    """
    lines: tuple[Line, ...]
    """One entry per comparison, such as the logits for one kind of input."""
    versions: dict[str, str]
    """Versions of Python and of the packages that were used, keyed by package name."""

    @property
    def passed(self) -> bool:
        """Whether all comparisons passed."""
        return all(line.passed for line in self.lines)

    def to_json(self) -> dict[str, Any]:
        """Converts the certificate to a dict, the content of `parity.json`."""
        lines = [dataclasses.asdict(line) | {"passed": line.passed} for line in self.lines]
        return {"passed": self.passed, **dataclasses.asdict(self), "lines": lines}

    def __str__(self) -> str:
        worst = max(
            (line for line in self.lines if line.what == "logits"), key=lambda line: line.measured, default=None
        )
        logits = f"logits differ by {worst.measured:.1e} at most, relative to the largest; " if worst else ""
        passed = sum(line.passed for line in self.lines)
        versions = f"transformers {self.versions['transformers']}, torch {self.versions['torch']}"
        return f"{logits}{passed} of {len(self.lines)} comparisons with {versions} passed; all are in `{HTML}`."


def certify(
    model: Model,
    params: Any,
    tokenizer: Tokenizer | None,
    source: str | os.PathLike,
    out: str | os.PathLike | None = None,
    dtype: str | None = None,
    run: Run | None = None,
) -> Certificate:
    """Compares a JAX model with the PyTorch model of a Hugging Face folder, and writes the results to `parity.json` and
    `parity.html`.

    Args:
      model: JAX model.
      params: Parameters of the model.
      tokenizer: Tokenizer of the model. If None, tokenization is not compared.
      source: Hugging Face folder that the model was exported to or imported from.
      out: Folder to write the certificate to. Defaults to `source`.
      dtype: Dtype that the weights are rounded to before the comparison. Defaults to the dtype of the folder.
      run: Run of the model. If given, its predictions for raw inputs, such as texts or image files, are also compared
        with those of the transformers library. If None, only the models are compared.

    Raises:
      Unreadable: If the transformers library cannot load the folder.
      InputError: If a difference exceeds its tolerance, or if no certificate can be made (see `obstacle`).
    """
    if problem := obstacle(model):
        raise InputError(f"no parity certificate: {problem}")
    from jaxformer.interop.parity import compare

    folder, out = open_folder(source), Path(source if out is None else out)
    where = str(folder.path / CONFIG)
    family, architecture = family_of_config(folder.config, folder.tensors, where, families_of(model))
    dtype = dtype or str(folder.config.get("dtype") or folder.config.get("torch_dtype") or "float32")
    shapes = {path: tuple(array.shape) for path, array in parameters.flat(params).items()}
    headless = architecture in family.headless_architectures
    theirs = compare.TorchModel(
        folder,
        lambda names: tensor_mappings(family.table.layout(names), shapes, headless),
        architecture,
        dtype,
        family.bridge.prepare_network,
    )
    ours = compare.JaxModel(model, params, dtype)
    lines = tuple(_lines(ours, theirs, tokenizer, folder.path))
    if run is not None:
        from jaxformer.interop.parity.end_to_end import compare_answers

        lines += tuple(compare_answers(run, ours, folder.path, theirs.round))
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    certificate = Certificate(architecture, count, dtype, lines, _versions())
    content = certificate.to_json()
    (out / JSON).write_text(strict_json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / HTML).write_text(page(content), encoding="utf-8")
    if wrong := [line for line in lines if not line.passed]:
        raise InputError(_refusal(wrong))
    return certificate


def obstacle(model: Model) -> str | None:
    """Returns the reason why `model` cannot be compared with a PyTorch model, such as a missing package or a model
    class without a PyTorch counterpart. None if it can be compared.
    """
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed; pip install 'jaxformer[torch]'"
    if isinstance(model, Model) and families_of(model):
        return None
    kinds = ", ".join(dict.fromkeys(family.module.__name__ for family in FAMILIES))
    return f"model={type(model).__name__} is none of {kinds}"


def _lines(ours: Any, theirs: Any, tokenizer: Tokenizer | None, folder: Path) -> Iterator[Line]:
    from jaxformer.interop.parity import compare
    from jaxformer.interop.parity.batches import comparison_batches

    pad = theirs.config.get("text_config", theirs.config).get("pad_token_id") or 0
    texts = [] if tokenizer is None else [tokenizer.encode(text) for text in HARD_STRINGS]
    every = list(comparison_batches(ours.model, texts, pad))
    for rows in every:
        expected = theirs(rows, ours.model)
        actual = ours(rows, list(expected.outputs))
        where = f"{rows.name}, {' × '.join(map(str, rows.shape))}"
        for name, output in expected.outputs.items():
            yield compared(compare.NAMES[name], where, actual.outputs[name], output, rows.mask)
        apart = abs(actual.loss - expected.loss) / max(1.0, abs(expected.loss))
        yield Line("loss", where, apart, LOSS, f"{actual.loss:.6f} here, {expected.loss:.6f} in PyTorch")
        gradients = theirs.named(actual.gradients)
        difference, name = compare.largest_difference(gradients, expected.gradients)
        yield Line("gradients", where, difference, GRADIENTS, f"of {len(gradients)} tensors, most in {name}")
    if ours.model.is_generative:
        yield _written(ours, theirs, every, pad)
    if tokenizer is not None:
        yield _tokens(tokenizer, folder)


def _written(ours: Any, theirs: Any, every: list[Any], pad: int) -> Line:
    """Compares the tokens that both models generate greedily from the same prompts. Returns an entry of the
    certificate.

    If two outputs differ, the measured difference is taken at the first differing position: the gap between the PyTorch
    logits of the two tokens, relative to max(1, largest logit). A gap near 0 means a tie, in which either token may be
    chosen.

    Args:
      ours: `JaxModel`.
      theirs: `TorchModel`.
      every: inputs of the comparison (`ComparisonBatch`), from which the prompts are taken.
      pad: id of the padding token.
    """
    from jaxformer.interop.parity import compare
    from jaxformer.interop.parity.prompts import LENGTH, prompt_arguments, prompts_of

    answers = ours.model.is_encoder_decoder
    start = theirs.config.get("decoder_start_token_id", pad) if answers else None
    prompts = prompts_of(ours.model, (every[0], every[3]), start)
    new = max(1, min(compare.NEW, ours.model.max_length - (1 if answers else min(LENGTH, every[0].shape[1]))))
    gaps = []
    for prompt, mine in zip(prompts, ours.generate(prompts, new, start), strict=True):
        expected, logits = theirs.generate(prompt_arguments(ours.model, prompt), new, start, pad)
        differ = np.flatnonzero(mine != expected)
        if len(differ):
            row = logits[differ[0]]
            one, other = row[[mine[differ[0]], expected[differ[0]]]]
            gaps.append(abs(one - other) / max(1.0, np.abs(row).max()))
    note = f"{len(prompts) - len(gaps)} of {len(prompts)} outputs of {new} tokens are equal"
    return Line("greedy tokens", f"{len(prompts)} prompts", float(np.max(gaps, initial=0.0)), TIE, note)


def _tokens(tokenizer: Tokenizer, folder: Path) -> Line:
    """Compares the tokenizer of the run with the one that the transformers library loads from the folder. Returns an
    entry of the certificate, in which the measured difference is the number of difficult strings for which the token
    ids differ.

    Strings that contain the name of a token which is special for both tokenizers are left out, because only the
    transformers library parses special tokens in a text.
    """
    from jaxformer.interop.parity import compare

    theirs = compare.their_tokenizer(folder)
    special = {str(token) for token in theirs.added_tokens_decoder.values() if token.special}
    special |= set(theirs.all_special_tokens)  # Not all tokenizers mark them.
    special &= {tokenizer.pieces[number] for number in tokenizer.special_ids}
    texts = [text for text in (*HARD_STRINGS, *NAMED_STRINGS) if not any(name in text for name in special)]
    ids = [theirs(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
    differing = [text for text, found in zip(texts, ids, strict=True) if found != tokenizer.encode(text).tolist()]
    note = _quoted(differing) if differing else "all ids are equal"
    return Line("tokens", f"{len(texts)} hard strings", float(len(differing)), 0.0, note)


def _quoted(texts: list[str]) -> str:
    """Formats texts for the note of a comparison: up to ten quoted texts, each shortened to 30 characters, and the
    number of further texts.
    """
    shown = ", ".join(repr(text if len(text) <= 30 else text[:29] + "…") for text in texts[:10])
    return shown + f" and {len(texts) - 10} more" * (len(texts) > 10)


def _refusal(lines: list[Line]) -> str:
    """Returns the error message for `lines`, the comparisons whose difference exceeds the tolerance."""
    differences = [str(line) for line in lines if line.what != "tokens"]
    more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
    differences = ["; ".join(differences[:4]) + more] if differences else []
    differences += [
        f"{line.what} ({line.where}) differ in {line.measured:.0f} under transformers "
        f"{metadata.version('transformers')}: {line.note}; if another version of transformers reads the tokenizer "
        "correctly, skip the comparison with --no-certificate (certificate=False)"
        for line in lines
        if line.what == "tokens"
    ]
    return f"the results differ from those of PyTorch: {'; '.join(differences)}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # jaxformer runs from its source tree.
            from jaxformer import __version__

            found[name] = __version__ if name == "jaxformer" else "?"
    return found
