"""ModernBERT from and to transformers' folders: the same numbers, tensors and raw texts, and configs of every age."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from hf_models import redrawn, saved
from safetensors.numpy import load_file
from small_bert import noisy_params
from small_modern_bert import modern_bert, modern_classifier
from test_hf_tokenizers import TEXTS

from jaxformer.config import Experiment
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import TextFiles
from jaxformer.data.tasks.classification import Classify
from jaxformer.data.tasks.masked_lm import MaskedSentencePairs
from jaxformer.data.tasks.tagging import TagTokens
from jaxformer.data.tokenizers import ByteLevelBpe, WordPiece
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.families import family_of_model
from jaxformer.interop.huggingface.families.family import differences
from jaxformer.interop.huggingface.models import ExportPlan, export_hf, import_hf, load
from jaxformer.interop.huggingface.runs import export_run, from_pretrained
from jaxformer.interop.parity.certificate import certify
from jaxformer.objectives.classification import Classification
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.objectives.tagging import Tagging
from jaxformer.parallel.sharding import Mesh, make_mesh
from jaxformer.runs.run import Run
from jaxformer.training.optimizers import AdamW, Schedule

VOCAB, LENGTH = 41, 30
SIZES = {"vocab_size": VOCAB, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 4}
SIZES |= {"num_attention_heads": 3, "max_position_embeddings": 64, "local_attention": 8}
SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
NAMES = ("sad", "so-so", "glad")
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
BIASES = {"attention_bias": True, "mlp_bias": True, "classifier_bias": True}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e3}
ROPE = {"full_attention": LINEAR, "sliding_attention": {"rope_type": "default", "rope_theta": 300.0}}
KINDS = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
CASES = {
    "encoder": ("Model", {}),
    "masked tokens": ("ForMaskedLM", {}),
    "first token's class": ("ForSequenceClassification", LABELS),
    "mean's class": ("ForSequenceClassification", LABELS | {"classifier_pooling": "mean"}),
    "tokens' classes": ("ForTokenClassification", LABELS),
    "spans": ("ForQuestionAnswering", {}),
    "biases": ("ForMaskedLM", BIASES | {"hidden_activation": "relu", "classifier_activation": "relu"}),
    "two activations": ("ForTokenClassification", LABELS | BIASES | {"classifier_activation": "silu"}),
    "one block": ("ForMaskedLM", {"num_hidden_layers": 1}),
    "all global": ("ForMaskedLM", {"global_attn_every_n_layers": 1}),
    "another order": ("Model", {"layer_types": KINDS, "rope_parameters": ROPE}),
}
TOKENIZERS = {"word_piece": WordPiece(300), "byte_level": ByteLevelBpe(300)}
"""The certificate's texts are longer than the window of 4 tokens to each side."""
RUNS = {
    "masked tokens": (modern_bert, MaskedLM(next_sentence=0.0), MaskedSentencePairs(64, next_sentence=False)),
    "texts' classes": (
        lambda **sizes: modern_classifier(NAMES, **sizes),
        Classification(),
        Classify(labels=NAMES, length=64),
    ),
    "means' classes": (
        lambda **sizes: modern_classifier(NAMES, "mean", **sizes),
        Classification(),
        Classify(labels=NAMES, pair="other", length=64),
    ),
    "words' tags": (lambda **sizes: modern_classifier(NAMES, "none", **sizes), Tagging(), TagTokens(NAMES, 64)),
}


def outputs(network, tokens, mask, positions=None):
    """The output of transformers, [b, n] of each text or [b, t, n] of each token."""
    given = {"input_ids": tokens, "attention_mask": mask}
    given |= {} if positions is None else {"position_ids": positions}
    with torch.no_grad():
        output = network(**{name: torch.from_numpy(np.asarray(array, np.int64)) for name, array in given.items()})
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], -1).numpy()
    return (output.last_hidden_state if "last_hidden_state" in output else output.logits).numpy()


def ours(imported, *inputs):
    output = jax.jit(imported.model.apply)({"params": imported.params}, *inputs)
    logits = output.hidden if output.logits is None else output.logits
    return np.asarray(logits[:, 0] if getattr(imported.model, "pooling", "none") != "none" else logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_numbers_are_transformers_and_tensors_survive_the_round_trip(name, tmp_path):
    kind, fields = CASES[name]
    theirs = redrawn(getattr(transformers, f"ModernBert{kind}")(transformers.ModernBertConfig(**SIZES | fields)), 1)
    imported = load(open_folder(saved(theirs, tmp_path / "theirs")))
    lengths = np.array([LENGTH, 13])  # Both are longer than a window.
    mask = np.arange(LENGTH) < lengths[:, None]
    tokens = np.where(mask, np.random.default_rng(0).integers(3, VOCAB, mask.shape), 0)
    expected, actual = outputs(theirs, tokens, mask), ours(imported, tokens, mask.astype(np.int32))
    of_texts = expected.ndim == 2
    np.testing.assert_allclose(
        actual if of_texts else actual[mask], expected if of_texts else expected[mask], atol=1e-4
    )
    if not of_texts:
        packed = np.concatenate([tokens[:1, :17], tokens[1:, :13]], axis=1)
        segments, positions = np.repeat([[1, 2]], [17, 13], axis=1), np.r_[:17, :13][None]
        alone = [
            outputs(theirs, tokens[row : row + 1, :size], mask[row : row + 1, :size])
            for row, size in ((0, 17), (1, 13))
        ]
        np.testing.assert_allclose(
            ours(imported, packed, segments, positions), np.concatenate(alone, axis=1), atol=1e-4
        )
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    for number, origin in enumerate((imported.origin, None)):
        out = tmp_path / f"ours{number}"
        export_hf(imported.model, imported.params, None, out, ExportPlan(origin=origin))
        after = load_file(out / "model.safetensors")
        assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)
        again = type(theirs).from_pretrained(out).eval()
        np.testing.assert_allclose(outputs(again, tokens, mask), expected, atol=1e-5)
    model, params = import_hf(tmp_path / "ours1")
    assert not differences(model, imported.model)
    jax.tree.map(np.testing.assert_array_equal, params, imported.params)


def run_of(name, tokenizer, folder) -> Run:
    make, objective, task = RUNS[name]
    tokenizer = TOKENIZERS[tokenizer].build(lambda: TEXTS, str(folder / "tokenizer"))
    model = make(vocab=tokenizer.vocab_size)
    data = Data(TextFiles(()), task, batch=8)
    experiment = Experiment(model, objective, data, WordPiece(300), AdamW(Schedule(1e-5)), steps=1)
    params = noisy_params(model, np.zeros((1, 4), np.int32))
    return Run(Path("run"), experiment, tokenizer, 0, params, make_mesh(Mesh(1), jax.devices()[:1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, tokenizer", [(name, "byte_level" if name == "masked tokens" else "word_piece") for name in RUNS]
)
def test_a_run_leaves_with_a_certificate_that_has_raw_texts(name, tokenizer, tmp_path):
    run, out = run_of(name, tokenizer, tmp_path), tmp_path / "out"
    export_run(run, out, certificate=False)
    certificate = certify(run.model, run.params, run.tokenizer, out, run=run)
    measured = {line.what for line in certificate.lines}
    assert {"logits", "loss", "gradients", "tokens"} < measured and certificate.passed
    lines = [line for line in certificate.lines if line.what == "logits"]
    assert {line.where.split(",")[0] for line in lines} == {"short", "long", "padded", "out of distribution"}
    assert any(line.where.startswith(("1", "2", "3")) for line in certificate.lines if line.what not in ("tokens",))
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]
    assert {"cls_token", "sep_token", "mask_token"} <= settings.keys() and "bos_token" not in settings
    text = "the [MASK] ran" if name == "masked tokens" else "the dog\tran" if "means" in name else "the dog ran"
    text = text.replace("[MASK]", run.tokenizer.pieces[run.tokenizer.special_id("mask")])
    assert str(from_pretrained(out).predict(text)) == str(run.predict(text))


OLDER = {"global_attn_every_n_layers": 3, "global_rope_theta": 5e4, "local_rope_theta": 500.0}


def test_the_names_of_older_configs_say_the_same(tmp_path):
    """The hub's files have no layer types, and one base for each kind of block."""
    newer = {"layer_types": [KINDS[1], KINDS[0], KINDS[0], KINDS[1]], "rope_parameters": {}}
    for kind, base in (("full_attention", 5e4), ("sliding_attention", 500.0)):
        newer["rope_parameters"][kind] = {"rope_type": "default", "rope_theta": base}
    theirs = redrawn(transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**SIZES | newer)), 1)
    folder = saved(theirs, tmp_path / "theirs")
    config = json.loads((folder / "config.json").read_text())
    model, _ = import_hf(folder)
    config = {name: value for name, value in config.items() if name not in newer} | OLDER
    config |= {"layer_norm_eps": 1e-5, "position_embedding_type": "absolute", "reference_compile": None}
    (folder / "config.json").write_text(json.dumps(config))
    older, params = import_hf(folder)
    assert not differences(model, older)
    assert older.transformer.position_embedding.base == 5e4
    assert [kind.attention.window for kind in map(older.transformer.variant, range(4))] == [None, 5, 5, None]
    export_hf(older, params, None, tmp_path / "ours")
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert {name: written[name] for name in OLDER} == OLDER and written["layer_types"] == newer["layer_types"]


@pytest.mark.parametrize(
    "change, line",
    [
        ({"norm_bias": True}, r"norm_bias=True is not supported; expected False"),
        ({"decoder_bias": False}, r"decoder_bias=False is not supported"),
        ({"classifier_activation": "relu"}, r"classifier_activation='relu' .* expected that of hidden_activation"),
        ({"layer_types": ["full_attention"]}, r"layer_types=.* for each of 4 layers"),
        ({"layer_types": ["chunked_attention"] * 4}, r"layer_types=.* full_attention or sliding_attention"),
        ({"tie_word_embeddings": False}, r"tie_word_embeddings=False is not supported"),
    ],
)
def test_what_cannot_be_honoured_is_refused(change, line, tmp_path):
    theirs = transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**SIZES))
    folder = saved(theirs, tmp_path / "theirs")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=line):
        import_hf(folder)


def test_a_classifier_without_its_layer_is_refused():
    model = modern_classifier(NAMES).clone(transform=None)
    with pytest.raises(InputError, match="transform=None: expected a layer before the classes, as in ModernBert"):
        family_of_model(model, "ModernBertForSequenceClassification")
