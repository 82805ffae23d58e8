"""An ONNX file computes what the model does, in a process that has ONNX Runtime and no jaxformer, jax or PyTorch."""

import dataclasses
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from small_bert import noisy_params
from small_vit import AUTOENCODER, VIT, apply, noisy
from small_writer import PAD, PIECES, QUIET, small_run, small_tokenizer

from jaxformer import cli
from jaxformer.errors import InputError
from jaxformer.interop import certificate, onnx_program
from jaxformer.interop.folders import write_json
from jaxformer.interop.hf_runs import ORIGIN
from jaxformer.interop.image_runs import image_experiment
from jaxformer.interop.onnx import PACKAGES, PROGRAM, arguments, export_onnx
from jaxformer.layers.attention import Attention
from jaxformer.layers.mlp import GatedMlp, Mlp
from jaxformer.layers.norms import LayerNorm, RMSNorm
from jaxformer.layers.positions import Rotary
from jaxformer.layers.residual import Residual
from jaxformer.layers.transformer import Transformer
from jaxformer.models.bart import Bart
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.models.gpt import Gpt
from jaxformer.models.masked_autoencoder import MaskedAutoencoder
from jaxformer.models.t5 import T5, t5_stack
from jaxformer.models.vit import Vit

ALONE = "import sys; sys.modules.update(dict.fromkeys(['jaxformer', 'jax', 'flax', 'torch', 'transformers']))\n"
"""What makes importing them an error."""
VOCAB, POSITIONS = len(PIECES), 32
TOKENS = np.zeros((1, 4), np.int32)
AFTER = Transformer(16, 2, 2, norm=LayerNorm(1e-12), norm_position="after", **QUIET)
MARIAN = dataclasses.replace(AFTER, mlp=Mlp(activation="relu"), norm=LayerNorm(1e-5))
LLAMA = dataclasses.replace(
    Transformer(16, 2, 2, norm=RMSNorm(1e-6), mlp=GatedMlp(24), positions=Rotary(), **QUIET),
    attention=Attention(kv_heads=1, bias=False),
)
GPT2 = Gpt(
    Transformer(16, 2, 2, mlp=Mlp(activation="gelu_tanh"), norm=LayerNorm(1e-5), **QUIET), VOCAB, positions=POSITIONS
)
T5_SIZES = {"width": 16, "depth": 2, "heads": 2, "mlp": 24, "head_dim": 8}
BERT = Bert(AFTER, VOCAB, POSITIONS)
ENCODER = dataclasses.replace(BERT, heads=())
POOLER = dataclasses.replace(BERT, heads=("pooler",))
MODELS = {
    "bert": BERT,
    "encoder": ENCODER,
    "gpt2": GPT2,
    "llama": Gpt(LLAMA, VOCAB, POSITIONS, tied=False),
    "t5": T5(t5_stack(**T5_SIZES), t5_stack(**T5_SIZES, bidirectional=False), VOCAB, POSITIONS),
    "marian": EncoderDecoder(MARIAN, MARIAN, vocab=VOCAB, positions=POSITIONS, head_bias=True),
    "bart": Bart(MARIAN, MARIAN, VOCAB, POSITIONS),
    "classes": Classifier(POOLER, ("yes", "no", "perhaps")),
    "tags": Classifier(ENCODER, ("yes", "no", "perhaps"), "tokens"),
    "spans": Classifier(ENCODER, ("start", "end"), "tokens"),
    "gpt2's classes": Classifier(GPT2, ("yes", "no", "perhaps"), "last", bias=False),
    "vit": VIT,
    "dinov2": Vit(dataclasses.replace(VIT.transformer, residual=Residual(0.5)), image=12, patch=4, channels=1),
}
HEADS = {"bert": {"prediction_logits", "seq_relationship_logits"}, "spans": {"start_logits", "end_logits"}}
HEADS |= {name: {"last_hidden_state"} for name in ("encoder", "dinov2")}
RNG = np.random.default_rng(0)


def run_of(model, folder):
    """A run as if one had been trained, which remembers a class of transformers where several would do."""
    run = small_run(small_tokenizer(folder))
    if isinstance(model, Vit | MaskedAutoencoder):
        experiment, params, tokenizer = image_experiment(folder, model), noisy(model), None
    else:
        tokens = [TOKENS] * (2 if isinstance(model, EncoderDecoder) else 1)
        experiment, tokenizer = dataclasses.replace(run.experiment, model=model), run.tokenizer
        params = noisy_params(model, *tokens)
    if getattr(model, "labels", None) == ("start", "end"):
        write_json(folder / ORIGIN, {"architecture": "BertForQuestionAnswering"})
    return dataclasses.replace(run, folder=folder, experiment=experiment, params=params, tokenizer=tokenizer)


def arrays_for(model, rows, **lengths):
    """What its program takes, with padding behind half of the first row where there are several."""
    given = {}
    for name, argument in arguments(model).items():
        if argument.part == "images":
            given[name] = RNG.normal(size=(rows, *argument.axes[1:])).astype(np.float32)
            continue
        shape = (rows, lengths[argument.axes[1]])
        given[name] = RNG.integers(1, 2 if "mask" in name else VOCAB, shape)
        given[name] = given[name] % 2 if "type" in name else given[name]
    if rows > 1 and "input_ids" in given:
        half = -(-given["input_ids"].shape[1] // 2)
        given["input_ids"][0, half:] = PAD
        given["attention_mask"][0, half:] = 0
    return given


def assert_same(found, run, given):
    """What our own code makes of the same is the same, where there are tokens."""
    model, mask = run.model, given.get("attention_mask")
    if isinstance(model, Vit):
        output = apply(model, run.params, np.moveaxis(given["pixel_values"], 1, -1))
    elif isinstance(model, EncoderDecoder):
        read, tokens = given["input_ids"], given["decoder_input_ids"]
        segments = {"input_segments": mask, "segments": np.ones_like(tokens)}
        output, mask = apply(model, run.params, read, tokens, **segments), None
    else:
        types = {"token_types": given["token_type_ids"]} if "token_type_ids" in given else {}
        output = apply(model, run.params, given["input_ids"], mask, **types)
    expected = {
        "last_hidden_state": lambda: output.hidden,
        "logits": lambda: output.logits[:, 0] if getattr(model, "reads", "tokens") != "tokens" else output.logits,
        "prediction_logits": lambda: output.logits,
        "seq_relationship_logits": lambda: output.next_sentence_logits[:, 0],
        "start_logits": lambda: output.logits[..., 0],
        "end_logits": lambda: output.logits[..., 1],
    }
    for name, array in found.items():
        wanted = np.asarray(expected[name]())
        assert array.shape == wanted.shape and array.dtype == np.float32
        of_tokens = mask is not None and getattr(model, "reads", "tokens") == "tokens" and name[:3] != "seq"
        real = mask > 0 if of_tokens else slice(None)
        np.testing.assert_allclose(array[real], wanted[real], atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_program_takes_any_rows_of_any_length(name, tmp_path):
    run = run_of(MODELS[name], tmp_path)
    told = export_onnx(run, tmp_path / "out")
    assert re.fullmatch(r"outputs differ by \d\.\de-0[678] at most, relative to the largest", told)
    session = onnxruntime.InferenceSession(tmp_path / "out" / PROGRAM)
    names = [output.name for output in session.get_outputs()]
    assert set(names) == HEADS.get(name, {"logits"})
    for rows, lengths in ((1, (1, 1)), (3, (7, 5)), (2, (5, POSITIONS))):
        given = arrays_for(run.model, rows, **dict(zip(("input_length", "length"), lengths, strict=True)))
        assert_same(dict(zip(names, session.run(names, given), strict=True)), run, given)


def run_readme(folder):
    """What the example in a README gives, run in a process without jaxformer, jax and PyTorch."""
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
    monkeypatch.setattr(cli, "_open", lambda folder, in_memory: run)
    command = ["export", "nowhere", str(tmp_path / "out"), "--format", "onnx"]
    assert cli.main(command) == 0
    said = capfd.readouterr()
    assert "README.md there says how ONNX Runtime runs it; outputs differ by" in said.out
    assert len(said.out.splitlines()) == 2 and not said.err
    tokenizer = {"vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"README.md", "config.json", PROGRAM, f"{PROGRAM}.data", *tokenizer}
    # Not a word of the machine that wrote it.
    assert b"/site-packages/" not in (content := (tmp_path / "out" / PROGRAM).read_bytes())
    assert str(Path(cli.__file__).parents[1]).encode() not in content
    page = (tmp_path / "out" / "README.md").read_text()
    assert "each of up to 32 tokens" in page and f"| `prediction_logits` | float32 | batch, length, {VOCAB} |" in page
    assert "| `token_type_ids` | int64 | batch, length | 0 in sentence A, 1 in sentence B |" in page
    found, given = run_readme(tmp_path / "out")
    assert found["prediction_logits"].shape == (2, 8, VOCAB)
    assert_same(found, run, given)
    assert cli.main(command) == 2
    assert "is there already" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "vit"])
def test_the_readmes_of_other_kinds_run_without_jaxformer(name, tmp_path):
    run = run_of(MODELS[name], tmp_path)
    export_onnx(run, tmp_path / "out")
    page = (tmp_path / "out" / "README.md").read_text()
    if name == "vit":
        assert "| `pixel_values` | float32 | batch, 1, 12, 12 |" in page and "any number of images (batch)." in page
        assert (tmp_path / "out" / "preprocessor_config.json").exists()
    else:
        assert "| `attention_mask` | int64 | batch, input_length |" in page
    found, given = run_readme(tmp_path / "out")
    assert_same(found, run, given)


def test_what_computes_something_else_leaves_nothing_behind(tmp_path, monkeypatch):
    run = run_of(VIT, tmp_path)
    monkeypatch.setattr(certificate, "LOGITS", 0.0)
    line = r"not what ONNX Runtime computes: logits \(within range, 3 × 12 × 12 × 1\) differ by \d.*, above 0e\+00"
    with pytest.raises(InputError, match=line):
        export_onnx(run, tmp_path / "new" / "out")
    assert not list((tmp_path / "new").iterdir())


def test_what_pytorch_cannot_export_is_told_in_a_line(tmp_path, monkeypatch):
    run = run_of(VIT, tmp_path)

    def fail(*arguments, **named):
        raise RuntimeError("no such operation\nand a page of more")

    monkeypatch.setattr(onnx_program.torch.onnx, "export", fail)
    with pytest.raises(InputError, match=r"^torch \S+ cannot export ViTForImageClassification: no such operation$"):
        export_onnx(run, tmp_path / "new" / "out")
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("model", [AUTOENCODER, dataclasses.replace(AUTOENCODER, decoder=None)])
def test_a_model_that_hides_patches_at_random_is_refused(model, tmp_path):
    with pytest.raises(InputError, match="model=MaskedAutoencoder: expected a model of text, or Vit, for --format on"):
        export_onnx(run_of(model, tmp_path), tmp_path / "out")


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
