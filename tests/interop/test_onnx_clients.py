"""optimum and transformers.js load what `--format onnx` writes, and compute what the model does.

optimum needs an older transformers than the other tests: `pip install '.[optimum,test]'` in an environment of its own.
transformers.js needs Node.js and `npm install @huggingface/transformers`, with NODE_PATH at its node_modules.
"""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from onnx_models import MODELS, run_of
from small_bert import applied
from small_writer import BEGINNING, END

from jaxformer.decoding.generate import generate
from jaxformer.decoding.settings import Decoding
from jaxformer.interop.export.onnx_export import export_onnx
from jaxformer.models.encoder_decoder import EncoderDecoder

SCRIPT = Path(__file__).parents[1] / "helpers" / "transformers_js.cjs"
TEXT = "w1 w2 w3 w4"
MASK = 4
NEW = 12
START = 0
"""The padding, after which answers begin."""
NO_JS = "transformers.js is not installed: npm install @huggingface/transformers, and NODE_PATH"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs and their exports, by name, each made when it is asked for."""
    made = {}

    def make(name):
        if name not in made:
            home = tmp_path_factory.mktemp("run")
            run = run_of(MODELS[name], home)
            export_onnx(run, home / "out")
            made[name] = run, home / "out"
        return made[name]

    return make


def ids(run, text=TEXT):
    return np.array([BEGINNING, *run.tokenizer.encode(text), END])


def written(run):
    """The text that our own decoding generates."""
    answers = isinstance(run.model, EncoderDecoder)
    prompt = ids(run) if answers else run.tokenizer.encode(TEXT)
    start = START if answers else None
    return generate(run.model, run.params, [prompt], Decoding(max_new_tokens=NEW, temperature=0.0), END, start=start)[0]


def outputs(run):
    return applied(run.model, run.params, ids(run)[None])


def softmax(logits):
    exponents = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return exponents / exponents.sum()


@pytest.fixture(scope="module")
def javascript():
    """A function that runs a pipeline of transformers.js."""
    node = shutil.which("node")
    find = [node, "-e", "require.resolve('@huggingface/transformers')"]
    if node is None or subprocess.run(find, capture_output=True, check=False).returncode:
        pytest.skip(NO_JS)

    def run(task, folder, *texts, **options):
        asked = {"task": task, "folder": str(folder), "options": options}
        asked["input"] = texts[0] if len(texts) == 1 else list(texts)
        done = subprocess.run([node, SCRIPT], input=json.dumps([asked]), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)[0]

    return run


@pytest.mark.slow
def test_javascript_fills_masks(runs, javascript):
    run, folder = runs("bert")
    (best, *_) = javascript("fill-mask", folder, "w1 [MASK] w3", top_k=3)
    tokens = ids(run, "w1 w2 w3")
    tokens[2] = MASK
    shares = softmax(applied(run.model, run.params, tokens[None]).logits[0, 2])
    assert best["token"] == shares.argmax()
    np.testing.assert_allclose(best["score"], shares.max(), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classes", "classes of a mean"])
def test_javascript_classifies_texts_of_forms_that_transformers_lacks_too(name, runs, javascript):
    run, folder = runs(name)
    found = javascript("text-classification", folder, TEXT, top_k=3)
    shares = dict(zip(run.model.labels, softmax(outputs(run).logits[0, 0]), strict=True))
    assert {line["label"]: pytest.approx(line["score"], rel=1e-4) for line in found} == shares


@pytest.mark.slow
def test_javascript_tags_tokens_of_a_form_that_transformers_lacks(runs, javascript):
    run, folder = runs("tags of a pre-norm encoder")
    found = javascript("token-classification", folder, TEXT)
    best = np.asarray(outputs(run).logits[0, 1:-1]).argmax(-1)
    assert [line["entity"] for line in found] == [run.model.labels[number] for number in best]


@pytest.mark.slow
def test_javascript_gives_vectors(runs, javascript):
    run, folder = runs("encoder")
    found = javascript("feature-extraction", folder, TEXT, pooling="mean")
    np.testing.assert_allclose(found["data"], outputs(run).hidden[0].mean(0), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_javascript_continues_texts_with_a_cache(name, runs, javascript):
    run, folder = runs(name)
    (found,) = javascript("text-generation", folder, TEXT, max_new_tokens=NEW, do_sample=False, return_full_text=False)
    assert found["generated_text"].split() == run.tokenizer.decode([t for t in written(run) if t != END]).split()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_javascript_answers_texts_with_a_cache(name, runs, javascript):
    run, folder = runs(name)
    start = {"decoder_start_token_id": START}
    (found,) = javascript(
        "text2text-generation", folder, TEXT, max_new_tokens=NEW, do_sample=False, num_beams=1, **start
    )
    found = found["generated_text"].split()
    expected = run.tokenizer.decode([t for t in written(run) if t != END]).split()
    assert found == expected


def optimum():
    return pytest.importorskip("optimum.onnxruntime", reason="pip install '.[optimum]' in an environment of its own")


def tensor(array):
    import torch

    return torch.from_numpy(np.asarray(array))


@pytest.mark.slow
def test_optimum_predicts_tokens(runs):
    kind = optimum().ORTModelForMaskedLM
    run, folder = runs("bert")
    tokens = ids(run)[None]
    given = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "token_type_ids": np.zeros_like(tokens)}
    found = kind.from_pretrained(folder)(**{name: tensor(array) for name, array in given.items()}).logits
    np.testing.assert_allclose(found, outputs(run).logits, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_optimum_continues_texts_with_a_cache(name, runs):
    kind = optimum().ORTModelForCausalLM
    run, folder = runs(name)
    prompt = tensor(run.tokenizer.encode(TEXT))[None].long()
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": END}
    model = kind.from_pretrained(folder)
    assert model.use_cache
    found = model.generate(prompt, attention_mask=prompt.new_ones(prompt.shape), **settings)
    assert found[0, prompt.shape[1] :].tolist() == written(run).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("name", ["t5", "marian", "bart"])
def test_optimum_answers_texts_with_a_cache(name, merged, runs):
    kind = optimum().ORTModelForSeq2SeqLM
    run, folder = runs(name)
    read = tensor(ids(run))[None].long()
    settings = {"max_new_tokens": NEW, "do_sample": False, "num_beams": 1, "eos_token_id": END, "pad_token_id": 0}
    model = kind.from_pretrained(folder, use_merged=merged)
    found = model.generate(read, attention_mask=read.new_ones(read.shape), decoder_start_token_id=START, **settings)
    assert found[0, 1:].tolist() == written(run).tolist()


@pytest.mark.slow
def test_optimum_classifies_images(runs):
    kind = optimum().ORTModelForImageClassification
    run, folder = runs("vit")
    images = np.random.default_rng(0).normal(size=(2, 1, 12, 12)).astype(np.float32)
    found = kind.from_pretrained(folder)(pixel_values=tensor(images)).logits
    np.testing.assert_allclose(found, applied(run.model, run.params, np.moveaxis(images, 1, -1)).logits, atol=1e-4)
