"""Errors in a folder are reported in one line, and nothing is written."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from small_bert import noisy_params
from small_writer import PIECES, small_tokenizer

from jaxformer import cli
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.folders import new_folder
from jaxformer.interop.huggingface.models import export_hf, import_hf
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.bert import Bert
from jaxformer.models.gpt import Gpt

STACK = Transformer(8, 2, 2, norm=LayerNorm(1e-12), norm_position="after")
BERT = Bert(STACK, vocab=11, max_length=6)
GPT = Gpt(Transformer(8, 1, 2), vocab=11, max_length=6)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder of a small BERT."""
    folder = tmp_path_factory.mktemp("hf") / "bert"
    export_hf(BERT, noisy_params(BERT, np.zeros((1, 2), np.int32)), None, folder)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "hf")


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rewrite(folder, change):
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def test_the_folder_itself_is_right(folder):
    assert import_hf(folder)[0].vocab == 11


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"architectures": ["FooModel"]},
            r"architectures=\['FooModel'\] is not supported; .*BertForPreTraining, .*T5For",
        ),
        ({"architectures": None, "model_type": "foo"}, "model_type='foo' is not supported"),
        ({"is_decoder": True}, "is_decoder=True is not supported; expected none"),
        ({"hidden_act": "mish"}, "hidden_act='mish' is not supported; expected one of gelu"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' is not supported"),
        ({"unheard_of": 3}, "unsupported fields for this model family: unheard_of=3"),
        ({"num_attention_heads": 3}, "transformer.heads=3 does not divide transformer.width=8"),
        ({"hidden_size": "8"}, "hidden_size='8' is not supported; expected a whole number above 0"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False is not supported; expected True"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads=.* is not supported"),
    ],
)
def test_configs_that_cannot_be_honoured(folder, fields, line):
    change(folder, **fields)
    with pytest.raises(InputError, match=line) as raised:
        import_hf(folder)
    assert "config.json" in str(raised.value) and "\n" not in str(raised.value)


LLAMA = {
    "model_type": "llama",
    "vocab_size": 5,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 3,
}


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_scaling.rope_type='yarn' is not supported"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_parameters.rope_type='dynamic'"),
        ({"rope_scaling": {"type": "linear"}}, "expected these fields for linear: factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "more": 1}}, "expected these fields for linear: factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported; expected 1.0"),
        (
            {"model_type": "mistral", "sliding_window": 8, "max_position_embeddings": 9},
            "sliding_window=8 is not supported; expected null, or at least max_position_embeddings=9",
        ),
        ({"model_type": "qwen3", "use_sliding_window": True}, "use_sliding_window=True is not supported"),
        ({"model_type": "qwen3", "layer_types": ["sliding_attention"]}, "layer_types=.* only full_attention"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"model_type": "t5", "feed_forward_proj": "gated-mish"}, "feed_forward_proj='gated-mish'"),
        ({"model_type": "marian", "share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings=False"),
        ({"model_type": "bart", "normalize_before": True}, "normalize_before=True"),
    ],
)
def test_configs_of_other_families(folder, fields, line):
    (folder / "config.json").write_text(json.dumps(LLAMA | fields))
    with pytest.raises(InputError, match=line):
        import_hf(folder)


def test_rates_that_only_affect_training_are_reported(tmp_path):
    export_hf(GPT, noisy_params(GPT, np.zeros((1, 2), np.int32)), None, tmp_path / "hf")
    change(tmp_path / "hf", embd_pdrop=0.3)
    with pytest.warns(UserWarning, match="embd_pdrop=0.3 only affects training, which uses resid_pdrop=0.1 instead"):
        import_hf(tmp_path / "hf")


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (lambda t: t.pop("cls.seq_relationship.bias"), "tensors missing: cls.seq_relationship.bias"),
        (lambda t: t.update(foo=np.zeros(1)), "tensors not known: foo"),
        (
            lambda t: t.update({"cls.predictions.bias": np.zeros(3, np.float32)}),
            r"tensors of another shape: cls.predictions.bias \[3\], expected \[11\]",
        ),
        (lambda t: [t.pop(name) for name in list(t) if ".layer.1." in name], "missing: .* and 8 more"),
        (
            lambda t: t.update({"cls.predictions.decoder.weight": np.zeros((11, 8), np.float32)}),
            "cls.predictions.decoder.weight differs from bert.embeddings.word_embeddings.weight",
        ),
        (
            lambda t: t.update({"bert.embeddings.LayerNorm.gamma": t["bert.embeddings.LayerNorm.weight"]}),
            "bert.embeddings.LayerNorm.* occurs twice",
        ),
        (
            lambda t: t.update({"cls.predictions.bias": t["cls.predictions.bias"].astype(np.float64)}),
            "cls.predictions.bias is float64; expected one of float32, bfloat16, float16",
        ),
    ],
)
def test_tensors_that_do_not_fit(folder, changed, line):
    rewrite(folder, changed)
    with pytest.raises(InputError, match=line):
        import_hf(folder)


@pytest.mark.slow
def test_buffers_copies_and_old_names_are_known(folder):
    expected = np.asarray(import_hf(folder)[1]["masked_lm"]["norm"]["scale"])

    def age(tensors):
        table = tensors.pop("bert.embeddings.word_embeddings.weight")
        tensors["cls.predictions.decoder.weight"] = table  # The only copy.
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].copy()
        tensors["bert.embeddings.position_ids"] = np.arange(6)[None]
        name = "cls.predictions.transform.LayerNorm"
        tensors[f"{name}.gamma"] = tensors.pop(f"{name}.weight")
        tensors[f"{name}.beta"] = tensors.pop(f"{name}.bias")

    rewrite(folder, age)
    np.testing.assert_array_equal(import_hf(folder)[1]["masked_lm"]["norm"]["scale"], expected)


def test_no_folder_no_config_no_weights(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        open_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no config.json"):
        open_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no weights; expected model.safetensors, pytorch_model.bin, flax_model"):
        open_folder(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(InputError, match=r"config.json: expected JSON"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("index", "line"),
    [
        ({"x": "../hf/model.safetensors"}, "names '../hf/model.safetensors', which is outside of the folder; refused"),
        ({"x": "/etc/passwd"}, "names '/etc/passwd', which is outside"),
        ({"x": ".."}, "names '..', which is outside"),
        ({"x": "gone.safetensors"}, "names gone.safetensors, which does not exist"),
        ({"x": "part.safetensors"}, "x is missing in part.safetensors"),
        ([], "expected a weight_map"),
    ],
)
def test_indices_that_lie(folder, index, line):
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(InputError, match=line):
        open_folder(folder)


def test_an_out_that_exists_and_a_kill_halfway(written, tmp_path):
    params = import_hf(written)[1]
    with pytest.raises(InputError, match="already exists; expected the name of a new folder"):
        export_hf(BERT, params, None, tmp_path)

    def stop(folder):
        assert (folder / "model.safetensors").exists() and not (tmp_path / "out").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_hf(BERT, params, None, tmp_path / "out", finish=stop)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), new_folder(tmp_path / "file" / "out"):
        pass


def test_a_process_killed_halfway_leaves_nothing_under_the_name(tmp_path):
    script = (
        "import os, signal, sys; from jaxformer.interop.huggingface.folders import new_folder\n"
        "with new_folder(sys.argv[1]) as folder:\n"
        "    (folder / 'config.json').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "out"], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("out.tmp-") and (left / "config.json").exists()
    with new_folder(tmp_path / "out"):
        pass


def test_a_vocabulary_larger_than_the_models(tmp_path):
    (tmp_path / "kept").mkdir()
    tokenizer = small_tokenizer(tmp_path / "kept")
    with pytest.raises(
        InputError, match=f"the tokenizer has {tokenizer.vocab_size} pieces, the model has a vocabulary of 11"
    ):
        export_hf(BERT, {}, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Evil:
    """An object that would make a folder if it were unpickled."""

    def __reduce__(self):
        return os.mkdir, ("evil",)


def lying_header(folder):
    text = json.dumps({"x": {"dtype": "F32", "shape": [999], "data_offsets": [0, 3996]}}).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)


def outside(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"x": "../../weights.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def malicious(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Evil()}, protocol=2))


BAD = {
    "has no config.json": lambda folder: (folder / "config.json").unlink(),
    "['Gpt9Model'] is not supported; expected one of ": lambda folder: change(folder, architectures=["Gpt9Model"]),
    "truncated": lambda folder: os.truncate(folder / "model.safetensors", 5000),
    "x ends at byte": lying_header,
    "is outside of the folder; refused": outside,
    "its pickle contains posix.mkdir; refused": malicious,
    "pieces, the model has a vocabulary of 11": lambda folder: (folder / "vocab.txt").write_text("\n".join(PIECES)),
}


@pytest.mark.parametrize("line", BAD)
def test_an_import_of_a_bad_folder_is_one_line_and_writes_nothing(line, folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    BAD[line](folder)
    assert cli.main(["import", str(folder), "run"]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("jaxformer: ") and line in told
    assert not list((tmp_path / "here").iterdir())


def test_the_command_line_says_it_in_one_line(written, tmp_path, capsys):
    assert cli.main(["import", str(tmp_path / "nowhere"), str(tmp_path / "run")]) == 2
    assert cli.main(["import", str(written), str(tmp_path)]) == 2
    assert cli.main(["export", str(tmp_path / "norun"), str(tmp_path / "out")]) == 2
    assert cli.main(["export", str(tmp_path), str(written)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and all(line.startswith("jaxformer: ") for line in lines)
    assert "no such folder" in lines[0] and "already exists" in lines[1]
    assert "not a run's folder" in lines[2] and "already exists" in lines[3]
    assert not list(tmp_path.iterdir())
