"""Helpers for tests of generated text: a small vocabulary, a GPT and an encoder–decoder on it, runs of them."""

from pathlib import Path

import numpy as np
from small_bert import noisy_params

from jaxformer.config import Experiment
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import TextFiles
from jaxformer.data.tasks.causal_lm import NextToken
from jaxformer.data.tasks.seq2seq import TextToText
from jaxformer.data.tokenizers import Tokenizer, WordPiece
from jaxformer.layers.transformer import Transformer
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.models.gpt import Gpt
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.seq2seq_lm import Seq2SeqLM
from jaxformer.parallel import sharding
from jaxformer.runs.run import Run
from jaxformer.training.optimizers import AdamW, Schedule

WORDS = [f"w{number}" for number in range(30)]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##x", "##y", ".", "<extra_id_1>", "<extra_id_0>"]
PAD, BEGINNING, END = 0, 2, 3
POSITIONS = 32
QUIET = {"dropout": 0.0, "attention_dropout": 0.0, "dtype": "float32"}
STACK = Transformer(16, 2, 2, norm_position="after", **QUIET)
GPT = Gpt(STACK, vocab=len(PIECES), max_length=POSITIONS)
ENCODER_DECODER = EncoderDecoder(STACK, STACK, vocab=len(PIECES), max_length=POSITIONS)
GPT_PARAMS = noisy_params(GPT, np.zeros((1, 4), np.int32))
ENCODER_DECODER_PARAMS = noisy_params(ENCODER_DECODER, *[np.zeros((1, 4), np.int32)] * 2)


def small_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer of `PIECES`; its file is written into the folder."""
    (folder / "vocab.txt").write_text("\n".join(PIECES))
    return WordPiece(path=str(folder)).build(None, str(folder / "kept"))


def small_run(tokenizer: Tokenizer, objective: CausalLM | Seq2SeqLM = CausalLM()) -> Run:
    """A run as if one had been trained: nothing is in its folder."""
    writes = isinstance(objective, CausalLM)
    model, params = (GPT, GPT_PARAMS) if writes else (ENCODER_DECODER, ENCODER_DECODER_PARAMS)
    data = Data(TextFiles(("never read",)), NextToken(16) if writes else TextToText(16, 16), batch=4)
    experiment = Experiment(model, objective, data, WordPiece(), AdamW(Schedule(1e-3)), steps=1)
    return Run(Path("nowhere"), experiment, tokenizer, 1, params, sharding.make_mesh(sharding.Mesh(1)))
