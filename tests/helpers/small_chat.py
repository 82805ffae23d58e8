"""A small chat model as a Hugging Face folder: LLaMA's form, a byte-level BPE, a chat template."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from chat_templates import write_chat_tokenizer
from small_bert import noisy_params

from jaxformer.interop.huggingface.models import export_hf
from jaxformer.layers.attention import Attention
from jaxformer.layers.mlp import GatedMlp
from jaxformer.layers.norms import RMSNorm
from jaxformer.layers.positions import Rotary
from jaxformer.layers.transformer import Transformer
from jaxformer.models.gpt import Gpt

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def small_llama(vocab: int, max_length: int = 64) -> Gpt:
    stack = Transformer(
        width=16,
        depth=1,
        heads=2,
        attention=Attention(bias=False),
        mlp=GatedMlp(24),
        norm=RMSNorm(),
        position_embedding=Rotary(),
        dropout=0.0,
        attention_dropout=0.0,
        dtype="float32",
    )
    return Gpt(stack, vocab=vocab, max_length=max_length)


def write_chat_model(folder: Path, template: str | None, seed: int = 0) -> tuple[Gpt, Any]:
    """Writes a folder with a model of random parameters, whose tokenizer has a chat template. Returns the model and its
    parameters.
    """
    vocab = write_chat_tokenizer(folder.with_name(f"{folder.name}-tokenizer"), template)
    model = small_llama(vocab)
    params = noisy_params(model, np.zeros((1, 4), np.int32), seed=seed)
    export_hf(model, params, None, folder)
    for file in folder.with_name(f"{folder.name}-tokenizer").iterdir():
        file.rename(folder / file.name)
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | SPECIAL))
    return model, params
