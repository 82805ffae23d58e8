"""A run leaves for transformers and comes back: the same numbers, the same writing, from the command line."""

import contextlib
import dataclasses
import io
import json
import re
import shutil

import flax.serialization
import flax.traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from hf_models import VOCAB, redrawn
from small_bert import applied, assert_trees_identical, noisy_params
from small_writer import ENCODER_DECODER, GPT, PIECES, small_run, small_tokenizer

import jaxformer as jf
from jaxformer import cli, config
from jaxformer.config import Checkpoint
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.runs import LEFT_OUT, export_run, import_run
from jaxformer.interop.parity import certificate, lines
from jaxformer.layers.norms import LayerNorm
from jaxformer.models.bart import Bart
from jaxformer.models.bert import Bert
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.objectives.sentence_embedding import SentenceEmbedding
from jaxformer.objectives.seq2seq_lm import Seq2SeqLM
from jaxformer.runs import writing
from jaxformer.runs.files import seal_tokenizer
from jaxformer.runs.folder import CHECKPOINTS
from jaxformer.training import state
from jaxformer.training.checkpoints import Checkpoints
from jaxformer.training.warm_start import start_from

del VOCAB, redrawn  # Importing their module keeps transformers quiet.


def kept(run, folder):
    """The run, written as one that was trained."""
    run.tokenizer.save(str(folder / "tokenizer"))
    seal_tokenizer(folder / "tokenizer")
    with Checkpoints(folder / CHECKPOINTS, Checkpoint()) as checkpoints:
        checkpoints.save(7, {"params": run.params}, None)
        checkpoints.wait()
    writing.write_experiment(folder, run.experiment)
    return folder


def writing_run(folder, tokenizer, answers, bart=False):
    """A run of a GPT-2, of a Marian or of a BART, such as their families have."""
    settings = {"start": "end", "beginning": True} if bart else {}
    objective = CausalLM(decoding=Decoding(9))
    if answers:
        objective = Seq2SeqLM(decoding=Decoding(max_new_tokens=9, num_beams=3), **settings)
    run = small_run(tokenizer, objective)
    stack = dataclasses.replace(GPT.transformer, norm_position="after" if answers else "before", norm=LayerNorm(1e-5))
    fields = {"encoder": stack, "decoder": stack} if answers else {"transformer": stack}
    model = dataclasses.replace(ENCODER_DECODER if answers else GPT, **fields)
    if bart:
        model = Bart(stack, stack, vocab=len(PIECES), max_length=32)
    params = noisy_params(model, *[np.zeros((1, 4), np.int32)] * (2 if answers else 1))
    experiment = dataclasses.replace(run.experiment, model=model)
    return kept(dataclasses.replace(run, experiment=experiment, params=params), folder)


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocab").mkdir()
    return small_tokenizer(tmp_path / "vocab")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "marian", "bart"])
def test_a_run_that_writes_goes_and_comes_back(family, tmp_path, tokenizer):
    (tmp_path / "run").mkdir()
    answers = family != "gpt2"
    before = jf.open_run(writing_run(tmp_path / "run", tokenizer, answers, family == "bart"))
    out = tmp_path / "new" / "out"
    assert cli.main(["export", str(before.folder), str(out), "--no-certificate"]) == 0
    assert cli.main(["import", str(out), str(tmp_path / "back"), "--no-certificate"]) == 0
    after = jf.open_run(tmp_path / "back")
    assert_trees_identical(after.params, before.params)
    assert after.objective == before.objective
    text = "w1 w2 w3x ."
    assert str(after.predict(text)) == str(before.predict(text))
    with pytest.raises(InputError, match="no held-out data"):
        after.evaluate()
    # What transformers writes of the same text, by its own beam search, is what we do.
    auto = transformers.AutoModelForSeq2SeqLM if answers else transformers.AutoModelForCausalLM
    theirs = auto.from_pretrained(out).eval()
    assert theirs.generation_config.num_beams == before.objective.decoding.num_beams
    prompt = before.predictor.prompts([text])[0]
    tokens = torch.tensor(np.asarray(prompt)[None], dtype=torch.long)
    written = theirs.generate(tokens, attention_mask=torch.ones_like(tokens))[0].numpy()
    ours = before.predictor.write([prompt])[0]
    np.testing.assert_array_equal(written[1 if answers else len(prompt) :][: len(ours)], ours)
    card = (out / "README.md").read_text()
    assert "no parity certificate: it was left out" in card and "7 of 1 steps" in card
    assert f'from_pretrained("{out.name}")' in card


def bert_run(folder, tokenizer, model, objective):
    base = small_run(tokenizer)
    task = dataclasses.replace(base.experiment.data, task=jf_task(model))
    experiment = dataclasses.replace(base.experiment, model=model, objective=objective, data=task)
    return kept(
        dataclasses.replace(base, experiment=experiment, params=noisy_params(model, np.zeros((1, 4), np.int32))), folder
    )


def jf_task(model):
    from jaxformer.data.tasks.masked_lm import MaskedSentencePairs

    return MaskedSentencePairs(16, 2, next_sentence="next_sentence" in model.prediction_heads)


STACK = dataclasses.replace(GPT.transformer, norm_position="after", norm=LayerNorm(1e-12))


@pytest.mark.slow
@pytest.mark.parametrize("heads", [("masked_lm", "pooler", "next_sentence"), ("masked_lm",), ()])
def test_a_bert_goes_and_comes_back(heads, tmp_path, tokenizer):
    (tmp_path / "run").mkdir()
    model = Bert(STACK, vocab=len(PIECES), max_length=32, prediction_heads=heads)
    objective = MaskedLM(next_sentence=float(len(heads) == 3)) if heads else SentenceEmbedding("first", True, 9)
    before = jf.open_run(bert_run(tmp_path / "run", tokenizer, model, objective))
    export_run(before, tmp_path / "out", certificate=False)
    assert import_run(tmp_path / "out", tmp_path / "back", certificate=False) == [LEFT_OUT]
    after = jf.open_run(tmp_path / "back")
    assert_trees_identical(after.params, before.params)
    assert after.objective == before.objective
    texts = ["w1 [MASK] w3", "w4 w5 [MASK] ."]
    assert list(map(str, after.predict(texts))) == list(map(str, before.predict(texts)))


@pytest.mark.slow
def test_a_config_initialises_from_an_imported_run(tmp_path, tokenizer):
    (tmp_path / "run").mkdir()
    model = Bert(STACK, vocab=len(PIECES), max_length=32)
    export_run(bert_run(tmp_path / "run", tokenizer, model, MaskedLM()), tmp_path / "out", certificate=False)
    import_run(tmp_path / "out", tmp_path / "back", certificate=False)
    run = jf.open_run(tmp_path / "back")
    drawn = state.init_state(run.experiment, state.abstract_state(run.experiment, run.mesh)).params
    assert_trees_identical(start_from(str(run.folder), run.model, drawn, run.mesh).params, run.params)
    assert config.from_json(config.to_json(run.experiment)) == run.experiment


@pytest.mark.slow
def test_special_tokens_labels_and_generation_travel(tmp_path, tokenizer):
    (tmp_path / "run").mkdir()
    export_run(writing_run(tmp_path / "run", tokenizer, False), tmp_path / "out", certificate=False)
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": {"0": "yes"}, "eos_token_id": 7}))
    path = tmp_path / "out" / "generation_config.json"
    said = {"do_sample": True, "temperature": 0.5, "top_k": 4, "no_repeat_ngram_size": 3, "output_scores": True}
    path.write_text(json.dumps(said))
    import_run(tmp_path / "out", tmp_path / "back", certificate=False)
    assert jf.open_run(tmp_path / "back").objective.decoding == Decoding(
        temperature=0.5, top_k=4, no_repeat_ngram_size=3, eos_token_ids=(7,)
    )
    export_run(tmp_path / "back", tmp_path / "again", certificate=False)
    export_run(jf.from_pretrained(tmp_path / "out"), tmp_path / "straight", certificate=False)
    for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["id2label"] == {"0": "yes"} and again["eos_token_id"] == 7
    generation = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert generation.items() >= said.items() and generation["eos_token_id"] == 7
    changed = jf.open_run(tmp_path / "back").with_decoding(no_repeat_ngram_size=0, temperature=0.0)
    export_run(changed, tmp_path / "changed", certificate=False)
    generation = json.loads((tmp_path / "changed" / "generation_config.json").read_text())
    assert not generation.keys() & {"no_repeat_ngram_size", "temperature", "top_k"} and generation["output_scores"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A BERT's run, its Hugging Face folder with a certificate, and what the command printed."""
    home = tmp_path_factory.mktemp("exported")
    (home / "run").mkdir()
    model = Bert(STACK, vocab=len(PIECES), max_length=32)
    bert_run(home / "run", small_tokenizer(home), model, MaskedLM())
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert cli.main(["export", str(home / "run"), str(home / "out")]) == 0
    return home / "run", home / "out", printed.getvalue()


@pytest.mark.slow
def test_the_command_line_proves_what_it_exports(exported):
    _, out, printed = exported
    content = json.loads((out / "parity.json").read_text())
    assert content["passed"] and (out / "parity.html").is_file()
    told = re.search(r"logits differ by \d.*; (\d+) of \1 comparisons with transformers .* passed", printed)
    assert told and told[0] in (out / "README.md").read_text()


@pytest.mark.slow
def test_an_export_that_is_something_else_leaves_nothing(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lines, "LOGITS", 1e-12)
    monkeypatch.setattr(certificate, "HARD_STRINGS", ("w1 w2",))
    assert cli.main(["export", str(exported[0]), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("jaxformer: the results differ from those of PyTorch: logits (short, 3 × 16)")
        and len(error.splitlines()) == 1
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_import_is_proved_too_and_rounded_if_asked(exported, tmp_path, capsys):
    _, out, _ = exported
    assert cli.main(["import", str(out), str(tmp_path / "run"), "--dtype", "bfloat16"]) == 0
    assert "comparisons with transformers" in capsys.readouterr().err
    content = json.loads((tmp_path / "run" / "parity.json").read_text())
    assert content["passed"] and content["dtype"] == "bfloat16"
    run, whole = jf.open_run(tmp_path / "run"), jf.from_pretrained(out)
    for actual, expected in zip(jax.tree.leaves(run.params), jax.tree.leaves(whole.params), strict=True):
        assert actual.dtype == np.float32
        np.testing.assert_array_equal(actual, expected.astype("bfloat16").astype(np.float32))
    assert str(whole.predict("w1 [MASK] w3")) == str(jf.open_run(exported[0]).predict("w1 [MASK] w3"))


def test_what_transformers_no_longer_reads_is_imported_without_a_certificate(exported, tmp_path):
    folder = shutil.copytree(exported[1], tmp_path / "old")
    tree = jax.tree.map(np.asarray, transformers_tree(folder))
    (folder / "model.safetensors").unlink()
    (folder / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    (told,) = import_run(folder, tmp_path / "run")
    assert told.startswith("no parity certificate: transformers ") and "cannot load BertForPreTraining" in told
    assert_trees_identical(jf.open_run(tmp_path / "run").params, jf.open_run(exported[0]).params)


def transformers_tree(folder):
    """The tensors as the Flax models of transformers kept them."""
    names = {"LayerNorm.weight": "LayerNorm.scale", "embeddings.weight": "embeddings.embedding"}
    flat = {}
    for name, array in safetensors.numpy.load_file(folder / "model.safetensors").items():
        for theirs, flax_name in names.items():
            name = name.replace(theirs, flax_name)
        if name.endswith(".weight"):
            name, array = name.removesuffix("weight") + "kernel", array.T
        flat[name] = array
    return flax.traverse_util.unflatten_dict(flat, sep=".")


class TestSentenceEmbedding:
    MODEL = Bert(STACK, vocab=len(PIECES), max_length=32, prediction_heads=("pooler",))
    PARAMS = noisy_params(MODEL, np.zeros((1, 4), np.int32))
    TEXTS = ("w1 w2 w3", "w4", "w5 w6 w7x w8 w9")

    def vector(self, tokenizer, text, pooling):
        tokens = np.array([[tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id]])
        output = applied(self.MODEL, self.PARAMS, tokens)
        return {"mean": output.hidden[0].mean(0), "first": output.hidden[0, 0], "pooler": output.pooled[0, 0]}[pooling]

    @pytest.mark.slow
    @pytest.mark.parametrize("pooling", ["mean", "first", "pooler"])
    def test_padding_and_the_other_texts_change_no_vector(self, tokenizer, pooling):
        objective = SentenceEmbedding(pooling, normalized=False)
        vectors = objective.predictor(self.MODEL, self.PARAMS, tokenizer).embed(self.TEXTS)
        for text, vector in zip(self.TEXTS, vectors, strict=True):
            np.testing.assert_allclose(vector, self.vector(tokenizer, text, pooling), atol=1e-5)

    @pytest.mark.slow
    def test_cosines(self, tokenizer):
        first, second, _ = SentenceEmbedding().predictor(self.MODEL, self.PARAMS, tokenizer).predict(self.TEXTS)
        one, other = (self.vector(tokenizer, text, "mean") for text in self.TEXTS[:2])
        cosine = float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
        assert first.cosines[0] == ("w4", pytest.approx(cosine, abs=1e-5))
        assert second.cosines[0][0] == "w1 w2 w3" and len(str(second).splitlines()) == 3
        assert np.linalg.norm(first.vector) == pytest.approx(1, abs=1e-5)

    def test_a_text_that_is_too_long_loses_its_end(self, tokenizer):
        long, short = "w1 w2 w3 w4", "w1 w2"
        objective = SentenceEmbedding(longest=4)
        vectors = objective.predictor(self.MODEL, self.PARAMS, tokenizer).embed([long, short])
        np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)


@pytest.mark.slow
def test_masked_lm_needs_its_heads():
    model = Bert(STACK, vocab=9, prediction_heads=("pooler",))
    with pytest.raises(
        InputError, match=r"model.prediction_heads=\('pooler',\): expected masked_lm for objective=MaskedLM"
    ):
        MaskedLM(next_sentence=0.0).check(model, ["tokens"])
    with pytest.raises(InputError, match="next_sentence reads the pooler"):
        Bert(STACK, prediction_heads=("next_sentence",))
    assert jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2), np.int32))["params"].keys() >= {"pooler"}
