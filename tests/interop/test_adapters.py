"""PEFT adapters: the base with its LoRA merged, whatever the family, and what cannot be merged refused by name."""

import json
import re

import numpy as np
import pytest
import torch
import transformers
from hf_models import POSITIONS, VOCAB, redrawn
from safetensors.torch import save_file
from small_bert import applied
from small_writer import PIECES

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.models import load
from jaxformer.interop.huggingface.runs import export_run, from_pretrained, import_run
from jaxformer.objectives.classification import Classification

BERT = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
BERT |= {"vocab_size": VOCAB, "max_position_embeddings": POSITIONS}
QUERY, VALUE = (f"bert.encoder.layer.1.attention.self.{part}" for part in ("query", "value"))


def write_adapter(folder, base, matrices, other=(), **settings):
    """An adapter as PEFT writes it.

    Args:
      folder: where to.
      base: the name of its base.
      matrices: (r, inputs, outputs) of each adapted module, by name.
      other: tensors that it replaces, by name.
      settings: fields of its config.
    """
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(3)
    tensors = {f"base_model.model.{name}": tensor for name, tensor in dict(other).items()}
    pairs = {}
    for module, (rank, inputs, outputs) in matrices.items():
        pairs[module] = [torch.randn(shape, generator=generator) for shape in ((rank, inputs), (outputs, rank))]
        for side, tensor in zip("AB", pairs[module], strict=True):
            tensors[f"base_model.model.{module}.lora_{side}.weight"] = tensor
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 2, "lora_alpha": 6, "bias": "none"}
    said |= {"target_modules": ["query"], "inference_mode": True, "loftq_config": {}, "peft_version": "0.18.0"}
    (folder / "adapter_config.json").write_text(json.dumps(said | settings))
    return pairs


@pytest.fixture
def base(tmp_path):
    """A BERT for pretraining, in a folder."""
    model = redrawn(transformers.BertForPreTraining(transformers.BertConfig(**BERT)), seed=1)
    model.save_pretrained(tmp_path / "base")
    return model


def hidden(model):
    tokens = torch.arange(3, 12)[None]
    with torch.no_grad():
        output = model(tokens)
    return tokens.numpy(), output[0].numpy()


@pytest.mark.parametrize(
    "settings, scales",
    [
        ({}, (3, 1.5)),
        ({"use_rslora": True}, (6 / 2**0.5, 3)),
        ({"alpha_pattern": {"value": 8, "1.attention.self.query": 4}, "rank_pattern": {"value": 4}}, (2, 2)),
    ],
    ids=["plain", "rank stabilised", "patterns"],
)
def test_the_two_are_one_model(base, tmp_path, settings, scales):
    pairs = write_adapter(tmp_path / "adapter", "base", {QUERY: (2, 12, 12), VALUE: (4, 12, 12)}, **settings)
    imported = load(open_folder(tmp_path / "adapter"))
    tokens, before = hidden(base)
    for (module, (a, b)), scale in zip(pairs.items(), scales, strict=True):
        base.get_submodule(module).weight.data += scale * b @ a
    _, expected = hidden(base)
    assert np.abs(expected - before).max() > 0.1
    ours = applied(imported.model, imported.params, tokens)
    np.testing.assert_allclose(ours.logits, expected, atol=2e-5)


def test_maps_of_gpt2_have_their_inputs_first(tmp_path):
    config = transformers.GPT2Config(n_embd=12, n_layer=2, n_head=3, vocab_size=VOCAB, n_positions=POSITIONS)
    model = redrawn(transformers.GPT2LMHeadModel(config), seed=1)
    model.save_pretrained(tmp_path / "base")
    names = {"transformer.h.0.attn.c_attn": (2, 12, 36), "transformer.h.1.attn.c_proj": (2, 12, 12)}
    pairs = write_adapter(tmp_path / "adapter", tmp_path / "base", names, task_type="CAUSAL_LM", fan_in_fan_out=True)
    imported = load(open_folder(tmp_path / "adapter"))
    for module, (a, b) in pairs.items():
        model.get_submodule(module).weight.data += 3 * (b @ a).T
    tokens, expected = hidden(model)
    np.testing.assert_allclose(applied(imported.model, imported.params, tokens).logits, expected, atol=2e-5)


@pytest.mark.slow
def test_a_classifier_on_a_pretrained_base(base, tmp_path):
    """The base's own heads are left out; the new one comes with the adapter, and its rows are the labels."""
    (tmp_path / "base" / "vocab.txt").write_text("\n".join(PIECES))
    head = {"classifier.weight": torch.randn(5, 12), "classifier.bias": torch.randn(5)}
    write_adapter(
        tmp_path / "adapter", tmp_path / "base", {QUERY: (2, 12, 12)}, head, task_type="SEQ_CLS",
        modules_to_save=["classifier", "score"],
    )  # fmt: skip
    run = from_pretrained(tmp_path / "adapter")
    assert run.model.labels == tuple(f"LABEL_{number}" for number in range(5)) and run.objective == Classification()
    np.testing.assert_array_equal(run.params["head"]["bias"], head["classifier.bias"].numpy())
    assert "masked_lm" not in run.params["backbone"]
    [told] = import_run(tmp_path / "adapter", tmp_path / "run")
    assert told.startswith("no parity certificate: the folder is a PEFT adapter; export")
    export_run(tmp_path / "run", tmp_path / "merged", certificate=False)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokens, expected = hidden(theirs)
    np.testing.assert_allclose(applied(run.model, run.params, tokens).logits[:, 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' is not supported; expected LORA, or merge it with PEFT"),
        ({"use_dora": True}, "use_dora=True is not supported; merge it"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which changes the base, is not supported; merge"),
        ({"layer_replication": [[0, 2]]}, "layer_replication="),
        ({"base_model_name_or_path": "nowhere"}, "base_model_name_or_path='nowhere': the base model is not found"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path=None: expected the base's folder or name"),
        ({"task_type": "SEQ_2_SEQ_LM", "auto_mapping": {"base_model_class": "BertLMHeadModel"}}, "base_model_class="),
        ({"lora_alpha": "6"}, "lora_alpha='6': expected a number"),
    ],
)
def test_what_cannot_be_merged_is_named(base, tmp_path, settings, words):
    write_adapter(tmp_path / "adapter", tmp_path / "base", {QUERY: (2, 12, 12)}, **settings)
    with pytest.raises(InputError, match=f"adapter_config.json: {re.escape(words)}") as caught:
        open_folder(tmp_path / "adapter")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "matrices, other, words",
    [
        ({"bert.encoder.layer.7.attention.self.query": (2, 12, 12)}, {}, "adapts encoder.layer.7.attention.self.query"),
        ({QUERY: (2, 12, 13)}, {}, "query.weight has shape [13, 12], but [12, 12] in the base"),
        ({QUERY: (2, 12, 12)}, {f"{QUERY}.lora_magnitude_vector": torch.ones(12)}, "lora_magnitude_vector is not supp"),
        ({}, {f"{QUERY}.lora_A.weight": torch.ones(2, 12)}, "expected lora_A [r, inputs] and lora_B [outputs, r]"),
    ],
)
def test_tensors_that_do_not_belong_are_named(base, tmp_path, matrices, other, words):
    write_adapter(tmp_path / "adapter", tmp_path / "base", matrices, other)
    with pytest.raises(InputError, match=re.escape(words)):
        open_folder(tmp_path / "adapter")


def test_an_adapter_without_weights_is_an_error(base, tmp_path):
    write_adapter(tmp_path / "adapter", tmp_path / "base", {QUERY: (2, 12, 12)})
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no weights of an adapter; expected adapter_model\.safetensors or"):
        open_folder(tmp_path / "adapter")


@pytest.mark.parametrize("kind", ["plain", "classifier", "bias", "embedding", "gpt2"])
def test_what_peft_saves(kind, tmp_path):
    """The same logits as PEFT's own model of the two folders."""
    peft = pytest.importorskip("peft", reason="PEFT is not installed; pip install 'jaxformer[peft]'")
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=12, n_layer=2, n_head=3, vocab_size=VOCAB, n_positions=POSITIONS)
        auto, model = transformers.AutoModelForCausalLM, transformers.GPT2LMHeadModel(config)
    elif kind == "classifier":
        auto = transformers.AutoModelForSequenceClassification
        model = transformers.BertForPreTraining(transformers.BertConfig(**BERT))
    else:
        auto, model = transformers.AutoModelForMaskedLM, transformers.BertForMaskedLM(transformers.BertConfig(**BERT))
    redrawn(model, seed=1).save_pretrained(tmp_path / "base")
    fields = {"r": 3, "lora_alpha": 5, "target_modules": ["query", "dense"]}
    fields |= {
        "plain": {"use_rslora": True, "rank_pattern": {"query": 2}, "alpha_pattern": {"layer.1.output.dense": 9}},
        "classifier": {"task_type": "SEQ_CLS"},
        "bias": {"bias": "lora_only"},
        "embedding": {"target_modules": ["query", "position_embeddings"]},
        "gpt2": {"task_type": "CAUSAL_LM", "target_modules": ["c_attn", "c_proj"]},
    }[kind]
    labels = {"num_labels": 3} if kind == "classifier" else {}
    wrapped = peft.get_peft_model(auto.from_pretrained(tmp_path / "base", **labels), peft.LoraConfig(**fields))
    generator = torch.Generator().manual_seed(2)
    for tensor in wrapped.parameters():
        if tensor.requires_grad:
            tensor.data += 0.3 * torch.randn(tensor.shape, generator=generator)
    wrapped.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(
        auto.from_pretrained(tmp_path / "base", **labels), tmp_path / "adapter"
    ).eval()
    imported = load(open_folder(tmp_path / "adapter"))
    tokens, expected = hidden(again)
    ours = applied(imported.model, imported.params, tokens).logits
    ours = ours[:, 0] if kind == "classifier" else ours
    np.testing.assert_allclose(ours, expected, atol=2e-5)
