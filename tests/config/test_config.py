"""Config files, overrides from Python and from the command line, and help."""

import dataclasses

import pytest
from small_config import CONFIG, message, write_config

from jaxformer import config, fields
from jaxformer.config import Checkpoint, Evaluation, Experiment, Log
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import TextFiles, Tfds
from jaxformer.data.tasks.dialogue import Dialogue, DialogueTemplate
from jaxformer.data.tasks.images import LabelledImages
from jaxformer.data.tasks.masked_lm import MaskedSentencePairs
from jaxformer.data.tokenizers import SentencePiece, WordPiece
from jaxformer.errors import InputError
from jaxformer.evaluations import NamedEvaluation
from jaxformer.layers.transformer import Transformer
from jaxformer.models.bert import Bert
from jaxformer.models.gpt import Gpt
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.parallel.sharding import Mesh
from jaxformer.training.optimizers import AdamW, Lion, Schedule

OTHER = NamedEvaluation("other", Tfds())


def evaluated(**fields):
    """An experiment with held-out data and a named evaluation."""
    data = Data(Tfds(), MaskedSentencePairs(), 8, validation=Tfds())
    fields = {"evaluations": (OTHER,), "steps": 1} | fields
    return Experiment(Bert(), MaskedLM(), data, WordPiece(), AdamW(Schedule()), **fields)


@pytest.fixture
def file(tmp_path):
    return write_config(tmp_path)


@pytest.fixture
def experiment(file):
    return config.load(file)


class TestLoad:
    def test_it_is_what_the_file_says(self, experiment):
        assert experiment.model == Bert(Transformer(width=64, depth=2, heads=4), vocab=300)
        assert (experiment.steps, experiment.seed, experiment.mesh) == (100, 0, Mesh())
        assert hash(experiment) == hash(dataclasses.replace(experiment))

    @pytest.mark.parametrize("width", [128, "128"])
    def test_overrides(self, file, width):
        loaded = config.load(file, {"steps": 7, "model.transformer.width": width, "data.train.weights": [1, 3]})
        assert (loaded.steps, loaded.model.transformer.width, loaded.data.train.weights) == (
            7,
            128,
            (1, 3),
        )
        assert loaded.model.transformer.depth == 2

    def test_fields_that_fit_only_together(self, file):
        transformer = config.load(file, {"model.transformer.heads": 5, "model.transformer.width": 65}).model.transformer
        assert (transformer.width, transformer.heads) == (65, 5)

    def test_a_whole_part(self, file):
        assert config.load(file, {"optimizer": Lion()}).optimizer == Lion()

    def test_nothing_given_changes_nothing(self, file, experiment):
        assert config.override(experiment, {}) is experiment
        assert config.load(file, {}) == experiment

    @pytest.mark.parametrize(
        "overrides, expected",
        [
            ({"step": 3}, "step: no such field; perhaps steps"),
            (
                {"model.transformer.widht": 3},
                "model.transformer.widht: no such field; perhaps model.transformer.width",
            ),
            ({"width": 3}, "width: no such field; perhaps model.transformer.width"),
            (
                {"train.sources.0.pathes": "x"},
                "train.sources.0.pathes: no such field; perhaps data.train.sources.0.paths",
            ),
            ({"zzzzzz": 3}, "zzzzzz: no such field"),
            ({"model.name": "x"}, "model.name: no such field; perhaps"),
            ({"steps": 2.5}, "steps=2.5: expected an int"),
            ({"steps": True}, "steps=True: expected an int"),
            ({"steps": None}, "steps=None: expected an int"),
            ({"steps": 0}, "steps=0: expected at least 1"),
            ({"seed": -1}, "seed=-1: expected at least 0"),
            ({"optimizer": Lion}, "expected an Optimizer"),
            ({"objective": WordPiece()}, "expected an Objective"),
            ({"tokenizer": MaskedLM()}, "expected a TokenizerConfig"),
            (
                {"optimizer": "Lio"},
                "optimizer Lio: expected a class, one of Adafactor, AdamW, Lion, Muon, "
                "or one of the fields of AdamW: schedule, ",
            ),
            ({"data": Lion(), "data.batch": 3}, "data="),
            (
                {"optimizer": Lion(), "optimizer.b1": 0.5},
                "optimizer.b1: optimizer is set too; set only one of the two",
            ),
            ({"model.transformer.heads": 5}, "heads=5 does not divide transformer.width=64"),
        ],
    )
    def test_wrong_overrides(self, file, overrides, expected):
        assert expected in message(config.load, file, overrides)

    @pytest.mark.parametrize(
        "line, expected",
        [
            ("nonsense(", "line 1: SyntaxError: '(' was never closed"),
            (
                "\nfrom jaxformer.nowhere import X",
                "line 2: ModuleNotFoundError: No module named 'jaxformer.nowhere'",
            ),
            ("\n\nraise RuntimeError('two\\nlines')", "line 3: RuntimeError: two lines"),
            (
                "from jaxformer.layers.transformer import Transformer\nTransformer(widht=3)",
                "__init__() got an unexpected keyword argument 'widht'; perhaps width",
            ),
            (
                "from jaxformer.layers.transformer import *\nTransformer(width=64, heads=5)",
                "line 2: transformer.heads=5 does not divide",
            ),
            ("experiment = 3", "expected `experiment = Experiment(...)`, found 3"),
            ("experimnt = 3", "expected `experiment = Experiment(...)`, found None"),
        ],
    )
    def test_bad_files(self, tmp_path, line, expected):
        path = tmp_path / "bad.py"
        path.write_text(line)
        assert message(config.load, path).startswith(f"{path}")
        assert expected in message(config.load, path)

    def test_a_wrong_type_in_a_file(self, file):
        file.write_text(CONFIG.replace("steps=100", "steps='ten'"))
        assert "steps='ten': expected an int" in message(config.load, file)

    def test_files_that_cannot_be_read(self, file, tmp_path):
        assert message(config.load, tmp_path / "tyni.py") == f"{tmp_path}/tyni.py: no such config file; perhaps {file}"
        assert message(config.load, tmp_path / "other.py") == f"{tmp_path}/other.py: no such config file"
        assert message(config.load, tmp_path).startswith(f"{tmp_path}: expected a Python file")
        (tmp_path / "latin.py").write_bytes(b"# \xe9")
        assert message(config.load, tmp_path / "latin.py").startswith(f"{tmp_path}/latin.py: expected a Python file")


class TestParse:
    def parse(self, file, *argv):
        return config.parse(file, argv)

    def test_all_forms(self, file):
        parsed = self.parse(
            file,
            *(
                "--steps=7",
                "--model.transformer.width",
                "128",
                "--data.pack",
                "True",
                "--optimizer.clip",
                "None",
            ),
            *(
                "--optimizer.weight-decay",
                "1e-2",
                "--mesh.data",
                "-1",
                "--data.train.sources.0.paths",
                "x",
                "y",
            ),
            *(
                "--optimizer.freeze",
                "--optimizer.schedule.decay",
                "cosine",
                "--init",
                "--log.every",
                "3",
                "--init=--x",
            ),
        )
        assert (parsed.steps, parsed.model.transformer.width, parsed.data.pack) == (7, 128, True)
        assert (parsed.optimizer.clip, parsed.optimizer.weight_decay, parsed.optimizer.freeze) == (
            None,
            0.01,
            (),
        )
        assert parsed.data.train.sources == (TextFiles(("x", "y")), TextFiles(("c.txt",)))
        assert (parsed.optimizer.schedule.decay, parsed.log.every, parsed.init) == (
            "cosine",
            3,
            "--x",
        )

    def test_the_same_as_load(self, file):
        overrides = {"steps": "7", "evaluation.batches": "3", "data.train.weights": ["1", "2.5"]}
        argv = ["--steps", "7", "--evaluation.batches", "3", "--data.train.weights", "1", "2.5"]
        assert config.parse(file, argv) == config.load(file, overrides)

    def test_a_bool_in_python_or_in_json(self, file):
        assert [self.parse(file, "--data.pack", word).data.pack for word in ("True", "true", "False", "false")] == [
            *(True, True),
            *(False, False),
        ]

    def test_a_union_of_text_and_none(self, file):
        assert self.parse(file, "--init", "None").init is None
        assert self.parse(file, "--init", "7").init == "7"

    @pytest.mark.parametrize(
        "argv, expected",
        [
            (
                "--model.transformer.widht 3",
                "--model.transformer.widht: no such field; perhaps --model.transformer.width",
            ),
            ("--steps ten", "--steps ten: expected an int"),
            ("--steps 1 2", "--steps 1 2: expected an int"),
            ("--steps", "--steps with no value: expected an int"),
            ("--steps --seed 1", "--steps with no value: expected an int"),
            ("--data.pack yes", "--data.pack yes: expected True or False"),
            ("--optimizer.clip no", "--optimizer.clip no: expected a float or None"),
            (
                "--optimizer.schedule.decay cos",
                "decay cos: expected one of constant, linear, cosine, inverse_sqrt",
            ),
            ("--model.transformer.norm_position middle", "expected one of before, after, both"),
            ("--data.train.weights 1 x", "--data.train.weights 1 x: expected values, each a float"),
            (
                "--mesh",
                "--mesh with no value: expected one of the fields of Mesh: data, fsdp, tensor, sequence, "
                "expert, pipeline, slices, pipeline_microbatches, pipeline_repeats, rules",
            ),
            ("--data.train.sources.2.paths x", "perhaps --data.train.sources.1.paths"),
            ("7", "7: expected a field, such as --steps 200"),
        ],
    )
    def test_wrong_words(self, file, argv, expected):
        assert message(config.parse, file, argv.split()).endswith(expected)

    @pytest.mark.parametrize("flag", ["--help", "-h"])
    @pytest.mark.filterwarnings("error")
    def test_help_shows_every_field_with_default_and_meaning(self, file, experiment, flag, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as caught:
            self.parse(file, "--steps", "3", flag)
        text, errors = capsys.readouterr()
        assert not errors
        assert caught.value.code == 0
        assert text.index("Learns little from two files.") < text.index("--steps INT")
        leaves = [path for path, _, value in fields.walk(experiment) if not fields.children(value)]
        assert len(leaves) > 50
        for path in leaves:
            assert f"--{path} " in text, path
        assert "--model.parent" not in text
        words = " ".join(text.replace("│", " ").split())
        assert "Number of parameter updates in the whole run. (default: 100)" in words
        assert "Size of the hidden vectors (the residual stream). (default: 64)" in words


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda: Evaluation(every=0), "evaluation.every=0: expected at least 1"),
        (lambda: Evaluation(batches=0), "evaluation.batches=0: expected at least 1"),
        (lambda: Evaluation(batches="all"), "batches='all': expected an int or None"),
        (lambda: Checkpoint(every=0), "checkpoint.every=0: expected at least 1"),
        (lambda: Checkpoint(keep=0), "checkpoint.keep=0: expected at least 1"),
        (lambda: Log(every=0), "log.every=0: expected at least 1"),
    ],
)
def test_bad_fields(make, expected):
    assert expected in message(make)


@pytest.mark.parametrize(
    "best, key, higher_is_better",
    [
        ("loss", "validation/loss", False),
        ("validation/masked_lm_accuracy", "validation/masked_lm_accuracy", True),
        ("other/masked_lm_perplexity", "other/masked_lm_perplexity", False),
    ],
)
def test_the_metric_declares_which_checkpoint_is_best(best, key, higher_is_better):
    metric = evaluated(checkpoint=Checkpoint(best=best)).best_metric
    assert (metric.key, metric.higher_is_better) == (key, higher_is_better)


@pytest.mark.parametrize(
    "make, expected",
    [
        (
            lambda: evaluated(checkpoint=Checkpoint(best="rouge")),
            "checkpoint.best=rouge: no such metric; expected one of loss",
        ),
        (
            lambda: evaluated(checkpoint=Checkpoint(best="more/loss")),
            "checkpoint.best=more/loss: no such evaluation; expected validation/loss, other/loss",
        ),
        (lambda: NamedEvaluation("train", Tfds()), "evaluations.name='train': expected a word"),
        (lambda: NamedEvaluation("a/b", Tfds()), "evaluations.name='a/b': expected a word"),
        (lambda: NamedEvaluation("a", Tfds(), batches=0), "evaluations.batches=0: expected at least 1"),
        (lambda: evaluated(evaluations=(OTHER, OTHER)), "evaluations.name='other': two evaluations have this name"),
        (
            lambda: evaluated(evaluations=(NamedEvaluation("other", Tfds(), LabelledImages(labels=("a", "b"))),)),
            "evaluations.task=LabelledImages: expected the inputs of data.task",
        ),
    ],
)
def test_bad_evaluations(make, expected):
    assert expected in message(make)


def test_all_that_an_experiment_needs():
    experiment = Experiment(
        Bert(),
        MaskedLM(),
        Data(Tfds(), MaskedSentencePairs(), 8),
        WordPiece(),
        AdamW(Schedule()),
        steps=1,
    )
    assert (experiment.evaluation, experiment.checkpoint, experiment.log) == (
        Evaluation(),
        Checkpoint(),
        Log(),
    )
    assert dataclasses.replace(experiment, tokenizer=SentencePiece()) != experiment


def test_a_dialogue_is_asked_in_the_template_that_was_learned():
    names = DialogueTemplate(user="Q:", assistant="A:")
    parts = {"model": Gpt(Transformer(16, 1, 2)), "tokenizer": SentencePiece(300), "optimizer": AdamW(), "steps": 1}
    data = Data(TextFiles(("a.txt",)), Dialogue(64, template=names), batch=1)
    assert Experiment(data=data, objective=CausalLM(template=names), **parts).steps == 1
    for wrong in (None, DialogueTemplate()):
        with pytest.raises(
            InputError, match=r"^data.task.template=DialogueTemplate\(.*'A:'\): expected the objective's"
        ):
            Experiment(data=data, objective=CausalLM(template=wrong), **parts)
