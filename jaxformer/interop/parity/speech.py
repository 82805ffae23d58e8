"""Compares the speech that a run generates from texts with that of the transformers library, which loads the exported
or imported folder.
"""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers

from jaxformer.config import override
from jaxformer.data.tasks.spoken_text import letters
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.families import bridge_of
from jaxformer.interop.parity.compare import their_tokenizer
from jaxformer.interop.parity.lines import Line
from jaxformer.interop.parity.sides import TEXTS, Sides, line

LONGEST = 4.0
"""Maximum number of frames per token. A model with random weights may not end its speech."""
ANSWERS = (*TEXTS, "the dog ran", "a light shone")


def compare_speech(sides: Sides) -> Iterator[Line]:
    """Compares the log-mel spectrograms that the run and the transformers library generate from texts, without the
    dropout that usually makes each speech different. Texts with characters outside of the vocabulary are left out.
    Yields one entry of the parity certificate.
    """
    model, tokenizer = sides.run.model, their_tokenizer(sides.folder)
    texts = [text for text in sides.short(ANSWERS) if _is_spelled(text, sides)]
    if not texts:
        return
    network = sides.network(transformers.AutoModelForTextToSpectrogram)
    bridge_of(model).prepare_network(network)
    vector = np.random.default_rng(0).normal(size=(1, model.fixed_sizes()["i"])).astype(np.float32)
    experiment = override(sides.run.experiment, {"model.prenet_dropout": 0.0})
    run = dataclasses.replace(sides.run, experiment=experiment)
    with tempfile.TemporaryDirectory() as home:
        path = str(Path(home, "speaker.npy"))
        np.save(path, vector)
        run = run.with_speaking(speaker=path, longest=LONGEST, threshold=0.5, iterations=0)
        ours = [answer.log_mel for answer in dataclasses.replace(sides, run=run).predict(texts)]
    theirs = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            theirs.append(network.generate_speech(ids, torch.from_numpy(vector), threshold=0.5, maxlenratio=LONGEST))
    frames = [[frame for one in side for frame in np.asarray(one)] for side in (ours, theirs)]
    yield line("speech", f"{len(texts)} texts", frames[0], frames[1])


def _is_spelled(text: str, sides: Sides) -> bool:
    """Returns whether the vocabulary has all characters of a text."""
    try:
        letters(text, sides.run.require_tokenizer())
    except InputError:
        return False
    return True
