"""Zero-shot classification and retrieval with image and text vectors (Radford et al. 2021, §3.1)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.data.fields.image import Prepared
from jaxformer.data.tasks import layouts
from jaxformer.errors import InputError
from jaxformer.models.clip import Clip
from jaxformer.predictors.base import Answer, Embeds, Predictor, RanksCandidates
from jaxformer.predictors.vectors import Embedded, with_cosines

ROWS, MAX_EXAMPLES = 32, 8
"""Number of texts or images per batch (`ROWS`), and maximum number of held-out images for which `demonstrate` finds a
text (`MAX_EXAMPLES`).
"""
TOP = 5
"""Maximum number of candidates that are printed per request."""
Request = Prepared | str


@dataclasses.dataclass(frozen=True)
class Ranked(Answer):
    """An image or text and its ranked candidates."""

    pair_names: ClassVar = {"ranking": ("candidate", "probability")}

    request: str
    """Text of the request, or path of its image file."""
    ranking: tuple[tuple[str, float], ...]
    """Candidates with their probabilities, most likely first."""

    def __str__(self) -> str:
        return "\n".join([self.request, *(f"  {share:6.1%}  {name}" for name, share in self.ranking[:TOP])])


@dataclasses.dataclass(frozen=True, eq=False)
class ImageTextRanking(Predictor[Clip], RanksCandidates, Embeds):
    """Predictor that embeds images and texts as vectors, and ranks candidates by the similarity of their vectors."""

    independent: bool = False
    """Whether the probability of each candidate is computed independently of the others (sigmoid). If False, the
    probabilities of all candidates sum to 1 (softmax).
    """

    def encode(self, requests: Sequence[Request]) -> dict[str, np.ndarray]:
        """Converts images and texts, in any order, to the arguments of the model: `images` for all images, and `tokens`
        and `segments` for all texts.
        """
        images, texts = _divided(requests)
        arrays = {"images": np.stack([images[place].pixels for place in images])} if images else {}
        return arrays | (self._tokens(list(texts.values())) if texts else {})

    def embed(self, requests: Sequence[Request]) -> np.ndarray:
        images, texts = _divided(requests)
        vectors: list[np.ndarray] = [np.empty(0)] * len(requests)
        for places in (list(images), list(texts)):
            for start in range(0, len(places), ROWS):
                part = places[start : start + ROWS]
                arrays = self.encode([requests[place] for place in part])
                found = _vectors(self.model, self.params, _filled(arrays))[: len(part)]
                for place, vector in zip(part, np.asarray(found), strict=True):
                    vectors[place] = vector
        return np.stack(vectors)

    def predict(self, requests: Sequence[Request]) -> list[Embedded]:
        """Computes the vector of each image or text, and its cosine similarities to the other requests.

        Long texts are truncated.
        """
        return with_cosines([_name(one) for one in requests], self.embed(requests))

    def rank(self, requests: Sequence[Request], candidates: Sequence[Request]) -> list[Ranked]:
        """Ranks the candidates for each request: texts for an image, or images for a text. Raises InputError if a
        candidate is of the same kind as a request, or there are no candidates.
        """
        for request in requests:
            if alike := [one for one in candidates if isinstance(one, str) == isinstance(request, str)]:
                kinds = ("texts", "images") if not isinstance(request, str) else ("images", "texts")
                kind = "a text" if isinstance(request, str) else "an image"
                raise InputError(f"{_name(alike[0])!r}: expected {kinds[0]} as candidates for {kind}, not {kinds[1]}")
        if not candidates:
            raise InputError("no candidates: expected at least one to rank")
        scale, bias = (None if part is None else float(part) for part in self.model.score_map(self.params))
        scores = scale * (self.embed(requests) @ self.embed(candidates).T) + (bias or 0.0)
        shares = np.asarray(jax.nn.sigmoid(scores) if self.independent else jax.nn.softmax(scores))
        names = [_name(one) for one in candidates]
        order = np.argsort(-scores, axis=1, kind="stable")
        return [
            Ranked(_name(one), tuple((names[place], float(row[place])) for place in places))
            for one, row, places in zip(requests, shares, order, strict=True)
        ]

    def demonstrate(self, batch: Mapping[str, np.ndarray]) -> list[str]:
        """For each of the first images in a held-out batch, finds the most similar text of the batch. Returns one line
        per image: the text found, followed by the image's own text if it is a different one.
        """
        rows = np.flatnonzero(batch["weights"][:, 0])
        arrays = {name: np.asarray(batch[name])[rows] for name in ("images", "tokens", "segments")}
        special = self.tokenizer.is_special
        kept = [row[(mask > 0) & ~special[row]] for row, mask in zip(arrays["tokens"], arrays["segments"], strict=True)]
        texts = [self.tokenizer.decode(row) for row in kept]
        images = _vectors(self.model, self.params, {"images": arrays["images"][:MAX_EXAMPLES]})
        others = _vectors(self.model, self.params, {name: arrays[name] for name in ("tokens", "segments")})
        lines = []
        for place, best in enumerate(np.asarray(images @ others.T).argmax(1)):
            wrong = "" if texts[best] == texts[place] else f", was {texts[place]}"
            lines.append(f"held-out image {rows[place]}: {texts[best]}{wrong}")
        return lines

    def _tokens(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Encodes texts as padded rows. Returns `tokens` and `segments` (1 for tokens, 0 for padding), int32 [texts,
        length].

        `length` is that of the longest text, or the model's maximum length if the model attends to padding.
        """
        longest = self.model.text.max_length
        rows = [
            layouts.lay_out(self.tokenizer, "encoder", longest, tokens).tokens
            for tokens in self.tokenizer.encode_batch(texts)
        ]
        length = max(map(len, rows)) if self.model.text.pad_id is None else longest
        tokens = np.zeros((len(rows), length), np.int32)
        segments = np.zeros_like(tokens)
        for number, row in enumerate(rows):
            tokens[number, : len(row)], segments[number, : len(row)] = row, 1
        return {"tokens": tokens, "segments": segments}


def _divided(requests: Sequence[Request]) -> tuple[dict[int, Prepared], dict[int, str]]:
    """Separates requests into images and texts. Returns a dict of the images and a dict of the texts. The keys are the
    indices of the requests.
    """
    texts = {place: one for place, one in enumerate(requests) if isinstance(one, str)}
    return {place: one for place, one in enumerate(requests) if not isinstance(one, str)}, texts


def _name(request: Request) -> str:
    return request if isinstance(request, str) else request.path


def _filled(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Pads the arrays of a batch with zeros to `ROWS` rows, so that XLA does not compile again for each batch size."""
    filled = {}
    for name, array in arrays.items():
        more = [(0, ROWS - len(array))] + [(0, 0)] * (array.ndim - 1)
        filled[name] = np.pad(array, more)
    return filled


@functools.partial(jax.jit, static_argnums=0)
def _vectors(model: Clip, params, arrays: Mapping[str, jax.Array]) -> jax.Array:
    output = model.apply({"params": params}, **arrays)
    return jnp.asarray(output.features)
