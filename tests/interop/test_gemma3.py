"""Gemma 3: what its configs say in each version's words, its tokenizer and chat template, and adapting it."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hf_models import VOCAB, redrawn
from small_bert import applied, noisy_params, paths
from small_writer import PIECES, WORDS, small_tokenizer
from test_hf_tokenizers import TEXTS

import jaxformer as jf
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families import gemma3
from jaxformer.interop.huggingface.families.family import differences
from jaxformer.interop.huggingface.models import export_hf, import_hf, load
from jaxformer.interop.huggingface.runs import export_run, import_run
from jaxformer.interop.huggingface.text.tokenizer_folders import import_tokenizer
from jaxformer.interop.parity.hard_strings import HARD_STRINGS
from jaxformer.layers.attention import Attention
from jaxformer.layers.lora import Lora
from jaxformer.layers.mlp import GatedMlp
from jaxformer.layers.norms import HeadRMSNorm, RMSNorm
from jaxformer.layers.positions import Rotary
from jaxformer.layers.transformer import Transformer, Variant
from jaxformer.models.gpt import Gpt

GLOBAL, LOCAL = "full_attention", "sliding_attention"
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "query_pre_attn_scalar": 7,
    "max_position_embeddings": 64,
}
TODAY = {
    "layer_types": [LOCAL, LOCAL, GLOBAL, LOCAL, LOCAL],
    "rope_parameters": {
        GLOBAL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        LOCAL: {"rope_type": "default", "rope_theta": 50.0},
    },
}
OLDER = {"sliding_window_pattern": 3, "rope_theta": 1e6, "rope_local_base_freq": 50.0}
OLDER |= {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "_sliding_window_pattern": 3}
HUB = {"attn_logit_softcapping": None, "final_logit_softcapping": None, "cache_implementation": "hybrid"}
"""Further fields of the configs on the hub."""


def small_gemma(vocab, depth=3, max_length=64, **fields):
    heads = {"kv_heads": 1, "bias": False, "head_norm": HeadRMSNorm(zero_centered=True)} | fields
    stack = Transformer(
        16,
        depth,
        2,
        attention=Attention(**heads),
        mlp=GatedMlp(24, "gelu_tanh"),
        norm=RMSNorm(zero_centered=True),
        norm_position="both",
        position_embedding=Rotary(1e6),
        dropout=0.0,
        attention_dropout=0.0,
        period=(Variant(Attention(**heads, window=4), position_embedding=Rotary()), Variant()),
    )
    return Gpt(stack, vocab, max_length, scale_embeddings=True)


@pytest.mark.slow
@pytest.mark.parametrize("words", [TODAY, OLDER, OLDER | HUB], ids=["today", "older", "hub"])
def test_rotations_and_windows_are_read_in_any_versions_words(words, tmp_path):
    config = transformers.Gemma3TextConfig(**SIZES, **TODAY, sliding_window=4)
    theirs = redrawn(transformers.Gemma3ForCausalLM(config), seed=2)
    theirs.save_pretrained(tmp_path)
    said = SIZES | words | {"sliding_window": 4, "model_type": "gemma3_text"}
    (tmp_path / "config.json").write_text(json.dumps(said | {"architectures": ["Gemma3ForCausalLM"]}))
    imported = load(open_folder(tmp_path))
    assert not imported.notes
    period = imported.model.transformer.period
    assert [variant.attention and variant.attention.window for variant in period] == [4, 4, None]
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 30))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    logits = applied(imported.model, imported.params, tokens).logits
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)


def test_fields_that_a_config_lacks_are_those_of_transformers():
    theirs = transformers.Gemma3TextConfig()
    described = gemma3.describe(gemma3.build(ConfigReader({}, "here"), ()))
    words = ("architectures", "rope_theta", "rope_scaling", "rope_local_base_freq")
    assert {name: getattr(theirs, name) for name in described if name not in words} == {
        name: value for name, value in described.items() if name not in words
    }
    assert theirs.rope_parameters[GLOBAL]["rope_theta"] == described["rope_theta"]
    assert theirs.rope_parameters[LOCAL]["rope_theta"] == described["rope_local_base_freq"]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not supported; expected None"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0 is not supported; expected None"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported; expected False"),
        (
            {"layer_types": [LOCAL]},
            r"layer_types=\['sliding_attention'\] .* 5 kinds, full_attention or sliding_attention",
        ),
        ({"layer_types": ["chunked_attention"] * 5}, "layer_types=.* 5 kinds, full_attention or sliding_attention"),
        ({"rope_parameters": {"rope_theta": 1e6}}, "rope_parameters=.* an object with full_attention and sliding_att"),
        ({"rope_parameters": {LOCAL: {"rope_type": "yarn"}}}, "rope_parameters.sliding_attention.rope_type='yarn'"),
        ({"altup_num_inputs": 4}, "unsupported fields for this model family: altup_num_inputs=4"),
    ],
)
def test_configs_that_cannot_be_honoured(fields, line):
    settings = ConfigReader(SIZES | fields, "here")
    with pytest.raises(InputError, match=line):
        gemma3.build(settings, ())
        settings.finish()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda model: dataclasses.replace(model, scale_embeddings=False), "scale_embeddings: False here, True in gem"),
        (
            lambda model: model.replace_stacks(period=(Variant(Attention(window=4)), *model.transformer.period)),
            r"model.transformer.period.* in gemma3_text|model.transformer.attention",
        ),
        (lambda model: model.replace_stacks(norm_position="before"), "model.transformer.norm_position"),
    ],
)
def test_models_that_gemma_is_not_are_refused(change, line, tmp_path):
    model = change(small_gemma(VOCAB, head_dim=8))
    with pytest.raises(InputError, match=line):
        export_hf(model, {}, None, tmp_path / "out")


def test_heads_divide_the_width_as_transformers_requires():
    with pytest.raises(InputError, match=r"model.transformer.heads=2: expected a number that divides"):
        gemma3.describe(small_gemma(VOCAB, head_dim=8).replace_stacks(width=15))


@pytest.mark.parametrize("kind", ["local", "global"])
def test_blocks_of_one_kind_survive_the_round_trip(kind, tmp_path):
    model = small_gemma(VOCAB)
    local = model.transformer.period[0]
    fields = {"attention": local.attention, "position_embedding": local.position_embedding} if kind == "local" else {}
    model = model.replace_stacks(period=(), **fields)
    export_hf(model, noisy_params(model, np.zeros((1, 2), np.int32)), None, tmp_path / "out")
    again, _ = import_hf(tmp_path / "out")
    assert not differences(model, again)
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.layer_types == (
        [LOCAL if kind == "local" else GLOBAL] * 3
    )


SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}"
)


def write_tokenizer(folder):
    """A tokenizer.json in the form of Gemma's, with its chat template."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(fuse_unk=True, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
    steps = [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    tokenizer.decoder = tokenizers.decoders.Sequence(steps)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    tokenizer.train_from_iterator([text["text"] for text in TEXTS], trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        "<bos> $A", "<bos> $A <bos>:1 $B:1", [("<bos>", 2)]
    )
    config = json.loads(tokenizer.to_str())
    config["added_tokens"] = config["added_tokens"][: len(SPECIAL)]
    (folder / "tokenizer.json").write_text(json.dumps(config))
    names = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    settings = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "chat_template": CHAT} | names
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer.get_vocab_size()


@pytest.mark.slow
def test_tokenizer_and_chat_template_survive_the_round_trip_of_a_run(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    model = small_gemma(write_tokenizer(tmp_path / "tokenizer"))
    params = noisy_params(model, np.zeros((1, 2), np.int32))
    export_hf(model, params, None, tmp_path / "hf")
    for file in (tmp_path / "tokenizer").iterdir():
        file.rename(tmp_path / "hf" / file.name)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config |= {"bos_token_id": 2, "eos_token_id": [1, 6], "pad_token_id": 0}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf"), import_tokenizer(tmp_path / "hf")
    assert type(theirs).__name__ == "GemmaTokenizer"
    for text in HARD_STRINGS:
        assert ours.encode(text).tolist() == theirs(text, add_special_tokens=False).input_ids, text
    assert ours.template("decoder").lay_out(ours.encode("the light")).tokens.tolist() == theirs("the light").input_ids
    import_run(tmp_path / "hf", tmp_path / "run", certificate=False)
    export_run(tmp_path / "run", tmp_path / "again", certificate=False)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    messages = [{"role": "user", "content": "the light was"}]
    expected = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert again.apply_chat_template(messages, tokenize=True, return_dict=False) == expected
    assert expected[:2] == [2, 5] and again("the light").input_ids == theirs("the light").input_ids
    assert json.loads((tmp_path / "again" / "config.json").read_text())["eos_token_id"] == [1, 6]


def test_without_a_tokenizer_json_its_class_says_what_begins_a_text(tmp_path):
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    ours, theirs = import_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert ours.template("decoder").lay_out(ours.encode("the")).tokens.tolist() == theirs("the").input_ids


@pytest.mark.slow
def test_lora_adapts_an_imported_gemma(tmp_path):
    """It learns the order of words, changes the adapted kernels alone, and leaves for transformers merged."""
    tokenizer = small_tokenizer(tmp_path)
    model = small_gemma(len(PIECES), depth=2)
    params = noisy_params(model, np.zeros((1, 2), np.int32))
    export_hf(model, params, tokenizer, tmp_path / "hf")
    lines = [json.dumps({"text": " ".join(WORDS[start : start + 12])}) for start in range(12)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    experiment = jf.Experiment(
        model=small_gemma(len(PIECES), depth=2),
        objective=jf.objectives.CausalLM(),
        data=jf.data.Data(
            jf.data.JsonLines((str(tmp_path / "texts.jsonl"),)), jf.data.NextToken(16), batch=8, pack=False
        ),
        tokenizer=jf.tokenizers.WordPiece(path=str(tmp_path / "vocab.txt")),
        optimizer=jf.optimizers.AdamW(jf.optimizers.Schedule(3e-2)),
        init=str(tmp_path / "hf"),
        lora=Lora(rank=2, target_modules=("attention/(query|value)/kernel$", "mlp/down/kernel$")),
        log=jf.Log(every=1),
        steps=25,
    )
    run = jf.fit(experiment, tmp_path / "run", quiet=True)
    losses = [line["loss"] for line in run.history if line["split"] == "train"]
    assert np.mean(losses[-5:]) < np.mean(losses[:2]) - 0.3
    before, after = paths(params), paths(run.params)
    adapted = {path for path in before if not np.allclose(before[path], after[path], atol=1e-6)}
    blocks = "transformer/blocks"
    expected = {f"{blocks}/attention/query/kernel", f"{blocks}/attention/value/kernel", f"{blocks}/mlp/down/kernel"}
    assert adapted == expected
    export_run(run, tmp_path / "out", certificate=False)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = np.array([tokenizer.encode(" ".join(WORDS[3:14]))])
    with torch.no_grad():
        logits = theirs(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(applied(run.model, run.params, tokens).logits, logits, atol=1e-4, rtol=1e-4)
