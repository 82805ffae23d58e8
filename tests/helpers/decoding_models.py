"""Small models of transformers with sharp outputs, the same models here, and what both generate after prompts."""

import functools

import numpy as np
import torch
import transformers
from hf_weights import as_ours, redraw

from jaxformer.decoding.generate import generate
from jaxformer.decoding.settings import Decoding

VOCAB, LONGEST, NEW = 53, 48, 18
START = VOCAB - 1
WINDOW = 5
EAGER = {"attn_implementation": "eager"}

torch.set_num_threads(1)  # With small matrices, threads only wait for each other: thirty times as long.


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=LONGEST, n_embd=16, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0, **EAGER
    )
    return transformers.GPT2LMHeadModel(config), as_ours


def llama():
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "head_dim": 6}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": LONGEST}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=VOCAB, **sizes, **heads, **EAGER)), as_ours


def gemma3():
    """Two local blocks and a global one between them, with a window shorter than most prompts."""
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "head_dim": 6}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": LONGEST}
    kinds = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    rope = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}
    config = transformers.Gemma3TextConfig(
        vocab_size=VOCAB, query_pre_attn_scalar=9, rope_parameters=rope, **sizes, **heads, **kinds, **EAGER
    )
    return transformers.Gemma3ForCausalLM(config), as_ours


def t5():
    sizes = {"d_model": 16, "d_kv": 5, "d_ff": 32, "num_layers": 2, "num_heads": 3, "decoder_start_token_id": START}
    config = transformers.T5Config(
        vocab_size=VOCAB, relative_attention_num_buckets=8, relative_attention_max_distance=12, **sizes
    )
    config._attn_implementation = "eager"
    return transformers.T5ForConditionalGeneration(config), as_ours


def marian():
    sizes = {"d_model": 16, "max_position_embeddings": LONGEST, "activation_function": "relu", "scale_embedding": True}
    for side, layers in (("encoder", 2), ("decoder", 1)):
        sizes |= {f"{side}_layers": layers, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 24}
    tokens = {"pad_token_id": START, "decoder_start_token_id": START, "eos_token_id": 0, "forced_eos_token_id": None}
    return transformers.MarianMTModel(transformers.MarianConfig(vocab_size=VOCAB, **sizes, **tokens, **EAGER)), as_ours


def bart():
    sizes = {"d_model": 16, "max_position_embeddings": LONGEST}
    for side, layers in (("encoder", 1), ("decoder", 2)):
        sizes |= {f"{side}_layers": layers, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 24}
    tokens = {"pad_token_id": START, "decoder_start_token_id": START, "eos_token_id": 0, "bos_token_id": 1}
    config = transformers.BartConfig(vocab_size=VOCAB, **sizes, **tokens, forced_eos_token_id=None, **EAGER)
    return transformers.BartForConditionalGeneration(config), as_ours


MODELS = {"gpt2": gpt2, "llama": llama, "t5": t5, "marian": marian, "bart": bart, "gemma3": gemma3}


@functools.cache
def both(name):
    """Their model, ours, its parameters; sharp enough that no two tokens are nearly as likely."""
    theirs, convert = MODELS[name]()
    theirs = redraw(theirs, seed=list(MODELS).index(name), size=0.5)
    theirs.generation_config = transformers.GenerationConfig()
    return theirs, *convert(theirs)


@functools.cache
def prompts(lengths=(7, 3, 12, 1, 7)):
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB - 1, length) for length in lengths]


def special(name, end=None):
    return {"end": end, "start": START if name in ("t5", "marian", "bart") else None}


def run(name, decoding, end=None, some=None):
    _, model, params = both(name)
    return generate(model, params, prompts() if some is None else some, decoding, **special(name, end))


def run_theirs(name, end=None, new=NEW, **settings):
    model = both(name)[0]
    fields = {"max_new_tokens": new, "eos_token_id": end, "pad_token_id": START, "decoder_start_token_id": START}
    config = transformers.GenerationConfig(**(fields | {"do_sample": False} | settings))
    outputs = []
    for prompt in prompts():
        tokens = torch.tensor(prompt)[None]
        output = model.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=config)[0].numpy()
        output = output[1:] if model.config.is_encoder_decoder else output[len(prompt) :]
        outputs.append(output)
    return outputs


@functools.cache
def common_token(name):
    """A token that ends some outputs early and not others."""
    outputs = run(name, Decoding(max_new_tokens=NEW))
    shares = [np.mean([token in output[2:-2] for output in outputs]) for token in range(VOCAB)]
    token = int(np.argmin(np.abs(np.array(shares) - 0.5)))
    assert 0 < shares[token] < 1
    return token


def assert_same(ours, theirs):
    assert [output.tolist() for output in ours] == [output.tolist() for output in theirs]
