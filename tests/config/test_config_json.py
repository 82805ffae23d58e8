"""Experiments as JSON, and how two of them differ."""

import dataclasses
import json
import math
import subprocess
import sys
import textwrap

import flax.linen as nn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_config import CONFIG, message, write_config

from jaxformer import config, fields
from jaxformer.data.sources.sources import Mixture, TextFiles, Tfds
from jaxformer.differences import differences
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.training.optimizers import Lion


@pytest.fixture
def file(tmp_path):
    return write_config(tmp_path)


@pytest.fixture
def experiment(file):
    return config.load(file)


@dataclasses.dataclass(frozen=True)
class Leaf:
    number: int | float | bool | str | None = None
    items: tuple[float, ...] = ()


class Tree(nn.Module):
    left: Leaf = Leaf()
    pair: tuple[Leaf, Leaf] = (Leaf(), Leaf())


@dataclasses.dataclass(frozen=True)
class Whatever(MaskedLM):
    """An objective that may hold anything."""

    value: object = None


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
leaves = st.builds(Leaf, plain, st.lists(st.floats(allow_nan=False)).map(tuple))
trees = st.builds(Tree, leaves, st.tuples(leaves, leaves))


def same(a, b):
    """Equal, and of the same types all the way down: 1, 1.0 and True are not the same."""
    assert type(a) is type(b)
    if not fields.is_config(a) and not isinstance(a, tuple):
        assert a == b
        assert not isinstance(a, float) or math.copysign(1, a) == math.copysign(1, b)
        return
    mine, theirs = (list(x) if isinstance(x, tuple) else [value for _, _, value in fields.children(x)] for x in (a, b))
    assert len(mine) == len(theirs)
    for x, y in zip(mine, theirs, strict=True):
        same(x, y)


class TestJson:
    def test_a_whole_experiment(self, file):
        experiment = config.load(file, {"data.validation": Tfds("bible/web"), "optimizer.clip": 1})
        again = config.from_json(config.to_json(experiment))
        assert again == experiment
        same(again, experiment)
        assert config.to_json(again) == config.to_json(experiment)

    @given(tree=trees)
    @settings(max_examples=100)
    def test_every_value_comes_back(self, tree):
        again = fields.decode(json.loads(json.dumps(fields.encode(tree))), known=fields.classes_in(tree))
        assert again == tree
        same(again, tree)

    def test_it_reads_well(self, experiment):
        text = config.to_json(experiment)
        assert text.startswith('{\n  "class": "jaxformer.config.Experiment",\n  "model": {\n    "cl')
        assert '\n    "class": "jaxformer.models.bert.Bert",\n' in text
        assert '"width": 64,\n' in text
        assert text.endswith("}\n")

    @pytest.mark.slow
    def test_in_another_process(self, experiment, tmp_path):
        path = tmp_path / "experiment.json"
        path.write_text(config.to_json(experiment))
        code = (
            "import sys; from jaxformer.config import from_json, to_json; "
            "print(to_json(from_json(open(sys.argv[1]).read())), end='')"
        )
        command = [sys.executable, "-c", code, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == path.read_text()

    def test_missing_fields_take_their_default(self, experiment):
        values = json.loads(config.to_json(experiment))
        del values["seed"], values["optimizer"]["clip"], values["model"]["transformer"]["mlp"]
        assert config.from_json(json.dumps(values)) == experiment

    @pytest.mark.parametrize(
        "change, expected",
        [
            (
                lambda v: v["model"]["transformer"].update(widht=3),
                "model.transformer.widht: jaxformer.layers.transformer.Tran",
            ),
            (lambda v: v.update(steps="ten"), "steps='ten': expected an int"),
            (
                lambda v: v.pop("steps"),
                "Experiment.__init__() missing 1 required positional argument: 'steps'",
            ),
            (
                lambda v: v["model"].pop("class"),
                "model.class=None: expected the name of a dataclass",
            ),
            (
                lambda v: v["model"].update({"class": "jaxformer.models.bert.Bart"}),
                "model.class='jaxformer.models.bert.Bart'",
            ),
            (lambda v: v["model"].update({"class": "nowhere.Bert"}), "model.class='nowhere.Bert'"),
            (lambda v: v["model"].update({"class": "os.system"}), "model.class='os.system'"),
            (lambda v: v["model"]["transformer"].update(heads=5), "heads=5 does not divide"),
        ],
    )
    def test_bad_json(self, experiment, change, expected):
        values = json.loads(config.to_json(experiment))
        change(values)
        assert expected in message(config.from_json, json.dumps(values))

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"class": "jaxformer.config.Log"}'])
    def test_other_text(self, text):
        assert message(config.from_json, text).startswith("experiment: ")

    def test_a_class_of_the_config_file_itself(self, file):
        own = textwrap.dedent("""
            import dataclasses

            @dataclasses.dataclass(frozen=True)
            class Mine(MaskedLM):
                temperature: "float" = 1.0

            experiment = dataclasses.replace(experiment, objective=Mine())
            """)
        file.write_text(CONFIG + own)
        experiment = config.load(file, {"objective.temperature": "2"})
        assert experiment.objective.temperature == 2.0
        expected = (
            "class Mine: cannot be imported by name; move it to a module of its own, in a package that is installed"
        )
        assert message(config.to_json, experiment).startswith(expected)

    def test_a_value_without_a_form(self, experiment):
        odd = config.override(experiment, {"objective": Whatever(value=[1])})
        assert message(config.to_json, odd).startswith("objective.value=[1]: a list cannot be kept in JSON; expected")


class TestDifferences:
    def test_none(self, experiment):
        assert differences(experiment, dataclasses.replace(experiment)) == []

    def test_fields(self, experiment):
        now = config.override(experiment, {"model.transformer.width": 256, "data.train.sources.1.documents": "line"})
        assert list(map(str, differences(experiment, now))) == [
            "model.transformer.width: 64 in the run, 256 now",
            "data.train.sources.1.documents: 'blank_line' in the run, 'line' now",
        ]
        assert list(map(str, differences(experiment.model, now.model, "model"))) == [
            "model.transformer.width: 64 in the run, 256 now"
        ]

    def test_another_class_is_one_difference(self, experiment):
        now = config.override(experiment, {"optimizer": Lion(), "data.validation": Tfds()})
        assert list(map(str, differences(experiment, now))) == [
            "data.validation: None in the run, Tfds now",
            "optimizer: AdamW in the run, Lion now",
        ]

    def test_another_number_of_parts(self, experiment):
        now = config.override(experiment, {"data.train": Mixture((TextFiles(("a",)),), (1.0,))})
        assert differences(experiment, now)[0].path == "data.train.sources"
