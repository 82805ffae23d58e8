"""Chooses which prediction of a model is explained: a label, a filled blank, the next token, or a written answer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.explanations.attributions import Target
from jaxformer.explanations.inside import Inside, look_inside
from jaxformer.runs.run import Run

OUTSIDE = "O"
"""Label of words outside of any entity, which is not explained unless the user names it."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction that is explained."""

    target: Target
    """Its logits."""
    name: str
    """Description, such as `label positive`."""
    probability: float
    """Probability of the label or token according to a softmax over the logits. For several tokens, their geometric
    mean.
    """


def choose(
    run: Run, inputs: Mapping[str, np.ndarray], inside: Inside, answer: Any, label: str | None
) -> tuple[Prediction | None, Mapping[str, np.ndarray], Inside]:
    """Chooses the prediction to explain.

    Args:
      run: the run.
      inputs: arguments of its model for one request.
      inside: what happens inside the model for them.
      answer: answer of the run to the request, which an encoder–decoder is explained for.
      label: label or token to explain. If None, the most likely one.

    Returns:
      The prediction, or None if the logits of the model are of another kind; and the inputs and the record of the model
      that belong to it, which for an encoder–decoder include the tokens of the answer.

    Raises:
      InputError: If the model cannot predict the label.
    """
    model, logits = run.model, getattr(inside.output, "logits", None)
    labels = tuple(getattr(model, "labels", ()))
    if logits is None:
        return None, inputs, inside
    if labels and logits.shape[-1] in (len(labels), len(labels) + 1):
        return _of_labels(np.asarray(logits)[0], labels, label), inputs, inside
    tokens = inputs.get("tokens")
    if run.tokenizer is None or tokens is None or logits.ndim != 3:
        return None, inputs, inside
    if model.is_encoder_decoder:
        return _of_answer(run, inputs, inside, answer, label)
    mask = run.tokenizer.special_id("mask")
    blanks = np.flatnonzero(tokens[0] == mask) if mask is not None else []
    if not model.is_generative and not len(blanks):
        return None, inputs, inside
    position = int(blanks[0]) if len(blanks) else tokens.shape[1] - 1
    return _of_token(run, np.asarray(logits[0, position]), position, label), inputs, inside


def _of_labels(logits: np.ndarray, labels: tuple[str, ...], label: str | None) -> Prediction | None:
    """Chooses a label. `logits` are [labels], or [positions, labels] for tokens, or queries of a detector; an extra
    label at the end means no object.
    """
    if logits.ndim > 2:
        return None
    if label is not None and label not in labels:
        raise InputError(f"--label {label}: the model has no such label; expected one of {', '.join(labels)}")
    shares = _softmax(logits)[..., : len(labels)]
    allowed = [label] if label else [name for name in labels if name != OUTSIDE]
    chosen = [labels.index(name) for name in allowed]
    flat = shares.reshape(-1, len(labels))[:, chosen]
    position, place = np.unravel_index(int(flat.argmax()), flat.shape)
    index = chosen[int(place)]
    positions = (int(position),) if logits.ndim == 2 else ()
    where = f" at position {position}" if logits.ndim == 2 and len(logits) > 1 else ""
    return Prediction(Target((index,), positions), f"label {labels[index]}{where}", float(flat.max()))


def _of_token(run: Run, logits: np.ndarray, position: int, label: str | None) -> Prediction:
    tokenizer = run.require_tokenizer()
    shares, index = _softmax(logits), int(logits.argmax())
    if label is not None:
        ids = tokenizer.encode(label)
        if len(ids) != 1:
            pieces = " ".join(tokenizer.piece(int(one)) for one in ids) or "none"
            raise InputError(f"--label {label!r}: expected a text of one token; its tokens are {pieces}")
        index = int(ids[0])
    name = f"token {piece(tokenizer, index)} at position {position}"
    return Prediction(Target((index,), (position,)), name, float(shares[index]))


def _of_answer(
    run: Run, inputs: Mapping[str, np.ndarray], inside: Inside, answer: Any, label: str | None
) -> tuple[Prediction | None, Mapping[str, np.ndarray], Inside]:
    """Explains all tokens of a text that an encoder–decoder has written: `label`, or else its answer."""
    tokenizer = run.require_tokenizer().target
    text = label if label is not None else getattr(answer, "answer", None) or getattr(answer, "text", "")
    written = np.asarray(tokenizer.encode(text), np.int32)
    start = np.asarray(inputs["tokens"])
    room = run.model.token_inputs()["tokens"].max_length - start.shape[1]
    written = written[: max(1, room)]
    if not len(written):
        return None, inputs, inside
    tokens = np.concatenate([start, written[None, :-1]], axis=1)
    changed = dict(inputs) | {"tokens": tokens}
    changed |= {"segments": np.ones_like(tokens)} if "segments" in inputs else {}
    inside = look_inside(run.model, run.params, changed)
    positions = tuple(range(start.shape[1] - 1, tokens.shape[1]))
    target = Target(tuple(map(int, written)), positions)
    shares = _softmax(np.asarray(inside.output.logits[0]))[np.array(positions), written]  # type: ignore[attr-defined]
    mean = float(np.exp(np.log(np.maximum(shares, 1e-30)).mean()))
    return Prediction(target, f"the answer {text!r}", mean), changed, inside


def piece(tokenizer: Tokenizer, token: int) -> str:
    """Returns a readable form of a token. A model may have more tokens than its tokenizer, such as codes of images."""
    return tokenizer.piece(token) if token < tokenizer.vocab_size else f"code {token}"


def _softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)
