"""ONNX files compute what the model does, in a process that has ONNX Runtime and no jaxformer, jax or PyTorch."""

import dataclasses
import functools
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from onnx_models import BERT, GPT2, MODELS, VOCAB, run_of
from small_bert import applied
from small_vit import VIT
from small_writer import PAD

from jaxformer import cli, run_commands
from jaxformer.decoding.generate import generate
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.interop.export import onnx_build
from jaxformer.interop.export.onnx_export import PACKAGES, export_onnx
from jaxformer.interop.export.onnx_files import call, empty_past, open_session, past_of
from jaxformer.interop.huggingface.text.tokenizer_folders import import_tokenizer
from jaxformer.interop.parity import lines
from jaxformer.models.classifier import Classifier
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.models.gpt import Gpt
from jaxformer.models.masked_autoencoder import MaskedAutoencoder
from jaxformer.models.vit import Vit
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.sentence_embedding import SentenceEmbedding

ALONE = "import sys; sys.modules.update(dict.fromkeys(['jaxformer', 'jax', 'flax', 'torch', 'transformers']))\n"
"""Code that makes importing them an error."""
WRITERS = (Gpt, EncoderDecoder)
HEADS = {"bert": {"logits", "seq_relationship_logits"}, "spans": {"start_logits", "end_logits"}}
HEADS |= {name: {"last_hidden_state"} for name in ("encoder", "dinov2")}
HEADS |= {"masked autoencoder": {"logits", "mask"}, "masked autoencoder's encoder": {"last_hidden_state", "mask"}}
HEADS |= {"vit of sinusoids": {"logits"}}
OTHERS = [name for name, model in MODELS.items() if not isinstance(model, WRITERS)]
RNG = np.random.default_rng(0)
TRANSFORMERS_HAS_NONE = (
    "tags of a pre-norm encoder",
    "classes of a mean",
    "a decoder with learned positions and a gate",
    "an encoder-decoder with rotary positions",
    "vit of sinusoids",
)


def arrays_for(session, rows, length):
    """The inputs of a program, with padding after half of the first row if there are several."""
    given = {}
    for argument in session.get_inputs():
        shape = [{"batch_size": rows, "sequence_length": length}.get(axis, axis) for axis in argument.shape]
        if argument.type == "tensor(float)":
            given[argument.name] = RNG.normal(size=shape).astype(np.float32)
        else:
            given[argument.name] = RNG.integers(1, 2 if "mask" in argument.name else VOCAB, shape)
            given[argument.name] %= 2 if "type" in argument.name else VOCAB
    if rows > 1 and "input_ids" in given:
        half = -(-length // 2)
        given["input_ids"][0, half:] = PAD
        given["attention_mask"][0, half:] = 0
    return given


def assert_same(found, run, given):
    """Our own code computes the same outputs, where there are tokens."""
    model, mask = run.model, given.get("attention_mask")
    if isinstance(model, Vit | MaskedAutoencoder):
        noise = [given["noise"]] if "noise" in given else []
        output = applied(model, run.params, np.moveaxis(given["pixel_values"], 1, -1), *noise)
    elif isinstance(model, EncoderDecoder):
        read, tokens = given["input_ids"], given["decoder_input_ids"]
        segments = {"input_segments": mask, "segments": np.ones_like(tokens)}
        output, mask = applied(model, run.params, read, tokens, **segments), None
    else:
        types = {"token_types": given["token_type_ids"]} if "token_type_ids" in given else {}
        output = applied(model, run.params, given["input_ids"], mask, **types)
    of_texts = isinstance(model, Classifier) and model.pooling != "none"
    expected = {
        "last_hidden_state": lambda: output.hidden,
        "logits": lambda: (
            output.pixels
            if isinstance(model, MaskedAutoencoder)
            else output.logits[:, 0]
            if of_texts
            else output.logits
        ),
        "mask": lambda: output.masked,
        "seq_relationship_logits": lambda: output.next_sentence_logits[:, 0],
        "start_logits": lambda: output.logits[..., 0],
        "end_logits": lambda: output.logits[..., 1],
    }
    for name, array in found.items():
        if name.startswith("present"):
            continue
        wanted = np.asarray(expected[name]())
        assert array.shape == wanted.shape and array.dtype == np.float32
        of_tokens = mask is not None and not of_texts and name[:3] != "seq"
        real = mask > 0 if of_tokens else slice(None)
        np.testing.assert_allclose(array[real], wanted[real], atol=1e-4, err_msg=name)


def told_of(run, folder):
    told = export_onnx(run, folder)
    assert re.fullmatch(r"outputs differ by \d\.\de-0[678] at most, relative to the largest", told)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function that returns the run of a model by its name and the folder with its programs, exported once."""

    @functools.cache
    def export(name):
        home = tmp_path_factory.mktemp("exported")
        run = run_of(MODELS[name], home)
        told_of(run, home / "out")
        return run, home / "out"

    return export


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_a_program_takes_any_rows_of_any_length(name, exported):
    run, folder = exported(name)
    session = open_session(folder / "onnx" / "model.onnx")
    names = {output.name for output in session.get_outputs()}
    assert names == HEADS.get(name, {"logits"})
    for rows, length in ((1, 1), (3, 7)):
        given = arrays_for(session, rows, length)
        assert_same(call(session, given), run, given)
    config = json.loads((folder / "config.json").read_text())
    assert config["transformers.js_config"] == {"use_external_data_format": {"model.onnx": True}}
    assert config["architectures"][0] and config["model_type"]
    page = (folder / "README.md").read_text()
    assert ("no family of transformers represents" in page) == (name in TRANSFORMERS_HAS_NONE)


def greedy(folder, model, prompt, new, start, merged):
    """Generates tokens after a prompt, or in answer to it, by only the programs with a cache."""
    sessions = {path.stem: open_session(path) for path in (folder / "onnx").glob("*.onnx")}
    found, fixed, names = [], {}, ("model", "model")
    tokens = prompt[None].astype(np.int64)
    if isinstance(model, EncoderDecoder):
        mask = np.ones_like(tokens)
        states = call(sessions["encoder_model"], {"input_ids": tokens, "attention_mask": mask})["last_hidden_state"]
        fixed = {"encoder_hidden_states": states, "encoder_attention_mask": mask}
        tokens = np.array([[start]])
        names = ("decoder_model_merged",) * 2 if merged else ("decoder_model", "decoder_with_past_model")
    past, seen = empty_past(sessions[names[-1]], 1), 0
    for number in range(new):
        seen += tokens.shape[1]
        branch = {"use_cache_branch": np.array([number > 0])}
        places = np.arange(seen - tokens.shape[1], seen)[None]
        given = {"input_ids": tokens, "attention_mask": np.ones((1, seen), np.int64), "position_ids": places}
        outputs = call(sessions[names[min(number, 1)]], given | fixed | branch | past)
        past = past_of(outputs, past)
        tokens = outputs["logits"][:, -1].argmax(-1)[None]
        found.append(int(tokens[0, 0]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name not in OTHERS])
def test_programs_with_a_cache_write_what_our_own_decoding_writes(name, exported):
    run, folder = exported(name)
    answers = isinstance(run.model, EncoderDecoder)
    files = {path.name for path in (folder / "onnx").iterdir()}
    if answers:
        parts = ("decoder_model", "decoder_with_past_model", "decoder_model_merged", "encoder_model")
        data = {"decoder_model_merged.onnx_data", "encoder_model.onnx_data"}
        assert files == {*(f"{part}.onnx" for part in parts), *data}
    else:
        assert files == {"model.onnx", "model.onnx_data"}
    prompts = [RNG.integers(5, VOCAB, length) for length in (1, 7)]
    expected = generate(run.model, run.params, prompts, Decoding(max_new_tokens=20), start=2 if answers else None)
    for prompt, tokens in zip(prompts, expected, strict=True):
        for merged in (False, True)[: 1 + answers]:
            assert greedy(folder, run.model, prompt, 20, 2, merged) == tokens.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "marian", "an encoder-decoder with rotary positions"])
def test_programs_and_files_have_the_same_ids(name, tmp_path):
    changes = {"vocab": VOCAB + 20} | ({} if name == "gpt2" else {"zero_start": True, "head_bias": False})
    run = run_of(dataclasses.replace(MODELS[name], **changes), tmp_path)
    told_of(run, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    tokenizer = import_tokenizer(tmp_path / "out")
    assert config["vocab_size"] == tokenizer.vocab_size == VOCAB
    program = "model" if name == "gpt2" else "decoder_model"
    assert open_session(tmp_path / "out" / "onnx" / f"{program}.onnx").get_outputs()[0].shape[-1] == VOCAB
    end, start = config["eos_token_id"], config.get("decoder_start_token_id")
    prompt = tokenizer.encode("w1 w2 w3")
    ids = greedy(tmp_path / "out", run.model, prompt, 20, start, False)
    ids = ids[: ids.index(end)] if end in ids else ids
    special = {"end": run.tokenizer.eos_id, "start": None if name == "gpt2" else run.tokenizer.pad_id, "pieces": VOCAB}
    prompts = [run.tokenizer.encode("w1 w2 w3")]
    expected = generate(run.model, run.params, prompts, Decoding(max_new_tokens=20), **special)[0]
    assert tokenizer.decode(ids) == run.tokenizer.decode(expected)


@pytest.mark.slow
def test_prompts_of_different_lengths_are_padded_on_their_left(exported):
    _, folder = exported("gpt2")
    session = open_session(folder / "onnx" / "model.onnx")
    tokens = RNG.integers(5, VOCAB, (2, 6))
    mask = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    places = np.maximum(mask.cumsum(1) - 1, 0)
    given = {"input_ids": tokens, "attention_mask": mask, "position_ids": places}
    both = call(session, given | empty_past(session, 2))["logits"]
    alone = {name: array[:1, 2:] for name, array in given.items()}
    np.testing.assert_allclose(both[0, 2:], call(session, alone | empty_past(session, 1))["logits"][0], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "first", "last", "max", "pooler"])
def test_a_sentence_encoders_program_gives_its_vectors(pooling, tmp_path):
    run = run_of(dataclasses.replace(BERT, prediction_heads=("pooler",)), tmp_path)
    experiment = dataclasses.replace(run.experiment)
    object.__setattr__(experiment, "objective", SentenceEmbedding(pooling, normalized=pooling != "first"))
    run = dataclasses.replace(run, experiment=experiment)
    export_onnx(run, tmp_path / "out")
    session = open_session(tmp_path / "out" / "onnx" / "model.onnx")
    ids, mask = np.full((2, 6), PAD), np.zeros((2, 6), np.int64)
    texts = ["w3 w4 w5", "w7"]
    for row, tokens in enumerate(run.predictor.encode([text]) for text in texts):
        ids[row, : tokens["tokens"].shape[1]], mask[row, : tokens["tokens"].shape[1]] = tokens["tokens"][0], 1
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    found = call(session, given)
    assert found.keys() == {"last_hidden_state", "pooler_output", "sentence_embedding"}
    expected = run.predictor.embed(texts)
    np.testing.assert_allclose(found["sentence_embedding"], expected, atol=1e-5)


@pytest.mark.slow
def test_a_prefix_language_models_program_reads_prompts_both_ways(tmp_path):
    run = run_of(GPT2, tmp_path)
    experiment = dataclasses.replace(run.experiment)
    object.__setattr__(experiment, "objective", CausalLM(prompt="prefix"))
    run = dataclasses.replace(run, experiment=experiment)
    export_onnx(run, tmp_path / "out")
    session = open_session(tmp_path / "out" / "onnx" / "model.onnx")
    given = arrays_for(session, 1, 6) | {"prefix_mask": np.array([[1, 1, 1, 0, 0, 0]])}
    expected = applied(run.model, run.params, given["input_ids"], prefix=given["prefix_mask"] > 0).logits
    np.testing.assert_allclose(call(session, given)["logits"], expected, atol=1e-5)


def run_readme(folder):
    """The output of the example in a README, run in a process without jaxformer, jax and PyTorch."""
    page = (folder / "README.md").read_text()
    example = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]
    script = f"{ALONE}{example}np.savez('found.npz', **outputs)\nnp.savez('given.npz', **inputs)\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, given = (dict(np.load(folder / name)) for name in ("found.npz", "given.npz"))
    assert all(f"'{name}': {array.shape}" in done.stdout for name, array in found.items())
    return found, given


@pytest.mark.slow
def test_its_readme_runs_without_jaxformer(tmp_path, monkeypatch, capfd):
    run = run_of(BERT, tmp_path)
    monkeypatch.setattr(run_commands, "opened", lambda *given, **named: run)
    command = ["export", "nowhere", str(tmp_path / "out"), "--format", "onnx"]
    assert cli.main(command) == 0
    said = capfd.readouterr()
    assert "its README.md shows how to run it with ONNX Runtime; outputs differ by" in said.out
    assert len(said.out.splitlines()) == 2 and not said.err
    tokenizer = {"vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"README.md", "config.json", "onnx", *tokenizer}
    program = tmp_path / "out" / "onnx" / "model.onnx"
    assert {path.name for path in program.parent.iterdir()} == {"model.onnx", "model.onnx_data"}
    # Not a word of the machine that wrote it.
    assert b"/site-packages/" not in (content := program.read_bytes())
    assert str(Path(cli.__file__).parents[1]).encode() not in content
    page = (tmp_path / "out" / "README.md").read_text()
    assert "each of up to 32 tokens" in page
    assert f"| `logits` | float32 | batch_size, sequence_length, {VOCAB} |" in page
    assert "| `token_type_ids` | int64 | batch_size, sequence_length | 0 in sentence A, 1 in sentence B |" in page
    found, given = run_readme(tmp_path / "out")
    assert found["logits"].shape == (2, 8, VOCAB)
    assert_same(found, run, given)
    assert cli.main(command) == 2
    assert "already exists" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "vit", "masked autoencoder", "llama"])
def test_the_readmes_of_other_kinds_run_without_jaxformer(name, exported):
    run, folder = exported(name)
    page = (folder / "README.md").read_text()
    expected = {
        "vit": "| `pixel_values` | float32 | batch_size, 1, 12, 12 |",
        "masked autoencoder": "| `noise` | float32 | batch_size, 9 |",
        "t5": "| `past_key_values.{layer}.encoder.key` | float32 | batch_size, 2, encoder_sequence_length, 8 |",
        "llama": "| `past_key_values.{layer}.key` | float32 | batch_size, 1, past_sequence_length, 8 |",
    }
    assert expected[name] in page
    if "pixel_values" in expected[name] or "noise" in expected[name]:
        assert "any number of images (batch_size)." in page
        assert (folder / "preprocessor_config.json").exists()
    found, given = run_readme(folder)
    assert_same(found, run, given)


def test_a_program_with_other_outputs_leaves_no_files(tmp_path, monkeypatch):
    run = run_of(VIT, tmp_path)
    monkeypatch.setattr(lines, "LOGITS", 0.0)
    start = "the results differ from those of ONNX Runtime: "
    line = start + r"logits \(within range, 3 × 1 × 12 × 12\) differ by \d.*, above 0e\+00"
    with pytest.raises(InputError, match=line):
        export_onnx(run, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_layers_are_in_the_order_of_their_numbers():
    def function(params, x):
        return {f"present.{layer}.{part}": x + params["one"] for layer in range(12) for part in ("value", "key")}

    model = onnx_build.build(function, {"one": np.ones(1, np.float32)}, {"x": onnx_build.Argument(("n",), "float32")})
    names = [value.name for value in model.graph.outputs]
    assert names == [f"present.{layer}.{part}" for layer in range(12) for part in ("key", "value")]


def test_an_operation_without_translation_is_an_error_in_a_line():
    with pytest.raises(InputError, match=r"^the JAX operation igamma cannot be converted to ONNX$"):
        onnx_build.build(
            lambda params, x: {"y": jax.scipy.special.gammainc(x, x)}, {}, {"x": onnx_build.Argument(("n",), "float32")}
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_refused(dtype):
    with pytest.raises(InputError, match=f"--dtype {dtype}: expected float32 for --format onnx"):
        export_onnx("nowhere", "out", dtype)


@pytest.mark.parametrize("name", PACKAGES)
def test_what_is_not_installed_is_named(name, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == name else find(asked))
    with pytest.raises(InputError, match=rf"{name} is not installed; pip install 'jaxformer\[onnx\]'"):
        export_onnx("nowhere", "out")
