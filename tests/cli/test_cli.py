"""The commands as users type them: their output, and their errors for bad input."""

import argparse
import gzip
import re
import shutil
import subprocess
import sys

import pytest
import tiny

from jaxformer import cli, predict_command

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    """The folder of a trained run, and what was printed on the way."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return folder, tiny.finish(tiny.start(tiny_config, "--workdir", folder))


@pytest.fixture
def refused(capsys, tmp_path):
    """Calls the command line, asserts that it refuses its input and leaves no files; returns its one line."""

    def call(*arguments):
        capsys.readouterr()
        before = sorted(tmp_path.rglob("*"))
        assert cli.main(list(map(str, arguments))) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1), f"expected one line on standard error alone:\n{out}{err}"
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return call


def write(path, content):
    """Writes text, or bytes; returns the path."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


BAD_FIELDS = {
    "a misspelt field": (["--model.transformer.widht", "64"], "--model.transformer.widht", "--model.transformer.width"),
    "a misspelt part": (["--modle.vocab", "64"], "--modle.vocab", "--model.vocab"),
    "a word for a number": (["--steps", "ten"], "--steps", "ten", "int"),
    "a fraction for an integer": (["--data.batch", "2.5"], "--data.batch", "2.5", "int"),
    "a missing value": (["--steps"], "--steps", "int"),
    "no such choice": (["--model.transformer.remat", "some"], "remat", "some", "dots", "full"),
    "steps below 1": (["--steps", "0"], "steps=0", "at least 1"),
    "heads that do not divide the width": (["--model.transformer.heads", "3"], "heads=3", "width=16", "2"),
    "a batch that does not divide by the mesh": (["--data.batch", "12"], "data.batch=12", "8 shares", "16 would"),
    "a batch that does not divide by the micro-batches": (
        ["--optimizer.accumulate", "3"],
        "data.batch=8",
        "3 micro-batches",
        "24 would",
    ),
    "a mesh larger than the devices": (["--mesh.data", "4", "--mesh.tensor", "4"], "4×1×4", "8 device"),
    "a mesh of no size": (["--mesh.fsdp", "0"], "mesh.fsdp=0", "at least 1"),
    "a vocabulary smaller than the tokenizer's": (["--model.vocab", "50"], "model.vocab=50", "at least"),
    "too few positions": (["--model.max_length", "31"], "model.max_length=31", "length=32"),
    "predictions that no row holds": (["--data.task.predictions", "40"], "predictions", "40", "length"),
    "several examples a row without packing": (["--data.task.examples_per_row", "2"], "examples_per_row", "data.pack"),
    "a metric of no evaluation": (
        ["--checkpoint.best", "other/loss"],
        "other/loss",
        "validation/loss",
    ),
    "a metric that the evaluation does not give": (["--checkpoint.best", "rouge"], "checkpoint.best=rouge", "masked"),
    "a missing training file": (["--data.train.paths", "no/such.txt"], "no/such.txt", "no such file"),
    "a glob without a match": (["--data.train.paths", "no/such*.txt"], "no/such*.txt", "no file matches"),
    "a missing held-out file": (["--data.validation.paths", "no/such.txt"], "no/such.txt", "no such file"),
    "a missing tokenizer": (["--tokenizer.path", "no/such.txt"], "no/such.txt", "no such file"),
    "no such run to begin from": (["--init", "no/such/run"], "no/such/run", "no such folder"),
    "a stray word": (["stray"], "stray", "expected a field"),
}


@pytest.mark.parametrize("flags, named", [(case[0], case[1:]) for case in BAD_FIELDS.values()], ids=BAD_FIELDS)
def test_train_refuses_a_bad_field(flags, named, tiny_config, refused, tmp_path):
    line = refused("train", tiny_config, *flags, "--workdir", tmp_path / "deep" / "run")
    assert all(fragment.lower() in line.lower() for fragment in named), line


BAD_TEXTS = {
    "empty": (b"", "empty"),
    "blank": (b"\n \n\n", "empty"),
    "one document": (b"One. Two.\nThree. Four.\n", "1 document", "2 or more"),
    "documents of one sentence": (b"One sentence.\n\nAnother sentence.\n", "two sentences"),
    "not UTF-8": (b"Gut. Nicht gut.\n\nSch\xf6n. Oder nicht.\n", "not UTF-8", "byte 20"),
}


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("content, named", [(case[0], case[1:]) for case in BAD_TEXTS.values()], ids=BAD_TEXTS)
def test_train_refuses_a_bad_text(split, content, named, tiny_config, refused, tmp_path):
    text = write(tmp_path / "text.txt", content)
    line = refused("train", tiny_config, f"--data.{split}.paths", text, "--workdir", tmp_path / "run")
    assert str(text) in line and all(fragment in line for fragment in named), line


def test_train_refuses_a_gzip_that_is_cut_off(tiny_config, refused, tmp_path):
    text = write(tmp_path / "text.txt.gz", gzip.compress((tiny_config.parent / "train.txt").read_bytes())[:-100])
    line = refused("train", tiny_config, "--data.train.paths", text, "--workdir", tmp_path / "run")
    assert str(text) in line and "cut off" in line


@pytest.mark.parametrize("missing", SPECIALS[1:])
def test_train_refuses_a_tokenizer_without_a_special_token(missing, tiny_config, refused, tmp_path):
    pieces = [piece for piece in [*SPECIALS, *tiny.WORDS, "."] if piece != missing]
    vocabulary = write(tmp_path / "vocab.txt", "\n".join(pieces))
    line = refused("train", tiny_config, "--tokenizer.path", vocabulary, "--workdir", tmp_path / "run")
    assert missing in line and "tokenizer" in line


@pytest.mark.parametrize(
    "source, named",
    [
        ("import no_such_module\n", ["line 1", "no_such_module"]),
        ("steps = 3\nexperiment = Experiment(\n", ["line 2"]),
        ("steps = 3\n", ["expected `experiment = Experiment(...)`"]),
        ("\xff", ["Python file"]),
    ],
)
def test_train_refuses_a_file_that_is_not_a_config(source, named, refused, tmp_path):
    file = write(tmp_path / "config.py", source.encode("latin-1"))
    line = refused("train", file, "--workdir", tmp_path / "run")
    assert str(file) in line and all(fragment in line for fragment in named), line


def test_train_refuses_a_config_that_is_missing_and_names_the_nearest(tiny_config, refused, tmp_path):
    line = refused("train", tiny_config.with_name("tinny.py"), "--workdir", tmp_path / "run")
    assert "no such config file" in line and f"perhaps {tiny_config}" in line
    assert "config file" in refused("train")
    assert "--workdir" in refused("train", tiny_config, "--workdir")
    assert "--workdir" in refused("train", tiny_config, "--workdir", "--steps", "5")


def test_train_refuses_a_folder_that_cannot_be_written(tiny_config, refused, tmp_path):
    file = write(tmp_path / "file", "mine")
    for folder in (file, file / "run", "/proc/run"):
        line = refused("train", tiny_config, "--workdir", folder)
        assert str(folder) in line and "cannot be written" in line


def test_train_refuses_a_folder_with_something_else_in_it(tiny_config, refused, tmp_path):
    mine = write(tmp_path / "thesis.tex", "mine")
    line = refused("train", tiny_config, "--workdir", tmp_path)
    assert str(tmp_path) in line and "thesis.tex" in line
    assert mine.read_text() == "mine"


@pytest.mark.slow
def test_train_refuses_another_experiments_run(run, tiny_config, refused):
    folder, _ = run
    line = refused("train", tiny_config, "--model.transformer.depth", "3", "--workdir", folder)
    assert str(folder) in line and "model.transformer.depth: 2 in the run, 3 now" in line
    assert tiny.metrics(folder)[-1]["step"] == 24


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_run_is_asked_for(command, refused, tmp_path):
    text = ["A [MASK]."] if command == "predict" else []
    assert "RUN" in refused(command)
    line = refused(command, tmp_path / "none", *text)
    assert str(tmp_path / "none") in line and "not a run" in line
    line = refused(command, tmp_path, *text)
    assert str(tmp_path) in line and "not a run" in line


@pytest.mark.parametrize("command", ["evaluate", "predict"])
@pytest.mark.parametrize("keep", ["nothing", "an empty folder"])
def test_a_run_without_a_checkpoint_cannot_be_used(command, keep, run, refused, tmp_path):
    shutil.copytree(run[0], tmp_path / "run", ignore=lambda *_: ["checkpoints"])
    if keep == "an empty folder":
        (tmp_path / "run" / "checkpoints").mkdir()
    line = refused(command, tmp_path / "run", *(["A [MASK]."] if command == "predict" else []))
    assert str(tmp_path / "run") in line and "no checkpoint" in line


@pytest.mark.parametrize("damage", ["{", "{}", '{"class": "os.path"}', "[1]"])
def test_a_damaged_experiment_is_named(damage, run, refused, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    write(tmp_path / "run" / "experiment.json", damage)
    assert "experiment.json" in refused("evaluate", tmp_path / "run")


def test_predict_refuses_what_it_cannot_fill(run, refused):
    folder, _ = run
    assert "no [MASK]" in refused("predict", folder, "The dog.")
    assert "no [MASK]" in refused("predict", folder, "The [MASK].", "")
    line = refused("predict", folder, "[MASK] " + "dog " * 40)
    assert "positions for 32" in line and len(line) < 200
    assert "no text" in refused("predict", folder)


def test_predict_refuses_settings_of_writing_for_a_model_that_does_not_write(run, refused):
    assert "temperature: MaskedLM does not generate text" in refused(
        "predict", run[0], "A [MASK].", "--temperature", "1"
    )


@pytest.mark.parametrize("content, named", [(None, "no such file"), (b"\n\n", "empty"), (b"a\n\xff\n", "byte 2")])
def test_predict_refuses_a_bad_file_of_texts(content, named, run, refused, tmp_path):
    file = tmp_path / "texts.txt"
    if content is not None:
        write(file, content)
    line = refused("predict", run[0], "--input", file)
    assert str(file) in line and named in line.lower()


def test_an_unknown_command_is_named_with_those_that_exist(refused):
    line = refused("pretrain")
    assert "pretrain" in line and "train, plan, evaluate, predict" in line


@pytest.mark.slow
def test_training_shows_where_it_runs_how_it_goes_and_what_it_has_learned(run):
    folder, text = run
    text = re.sub(r"^.* …\n?", "", text, flags=re.MULTILINE)  # Phases that took long.
    assert re.match(
        r"1 × cpu · mesh data 1 × fsdp 1 × tensor 1 · [\d,]+ parameters · 256 tokens a step · 24 steps", text
    )
    assert "first step after" in text and "step 24/24  loss" in text
    assert "masked lm unigram accuracy" in text
    assert re.search(r"\[\S+(, was \S+)?\]", text), "some filled blanks"
    *_, before, command = text.rstrip().splitlines()
    assert before == f"The run is in {folder}. Try it:"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tiny.ROOT)
    assert (done.returncode, done.stderr) == (0, "") and "[MASK]" in done.stdout.splitlines()[0]
    names = {".lock", "experiment.json", "data.json", "tokenizer", "checkpoints", "metrics.jsonl", "tensorboard"}
    names |= {"sessions.jsonl"}
    assert {path.name for path in folder.iterdir()} == names


def test_predict_fills_the_blanks_of_each_text(run, capsys, tmp_path):
    texts = write(tmp_path / "texts.txt", "The [MASK] ran.\n\nA [MASK] saw [MASK] boy.\n")
    assert cli.main(["predict", str(run[0]), "The dog [MASK].", "--input", str(texts)]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [
        "The dog [MASK].",
        "The [MASK] ran.",
        "",
        "A [MASK] saw [MASK] boy.",
    ]
    rates = [float(rate) for rate in re.findall(r"(\d+\.\d)%", out)]
    assert len(rates) == 4 * 5 and all(sum(rates[i : i + 5]) <= 100.3 for i in range(0, 20, 5))
    assert all(rates[i : i + 5] == sorted(rates[i : i + 5], reverse=True) for i in range(0, 20, 5))
    assert "blank 2" in out


@pytest.mark.parametrize(
    "content, lines",
    [
        (b"\xef\xbb\xbfone\r\n\r\ntwo", ["one", "", "two"]),
        ("a\u2028b\n\x85c\x0c d\n \t\n\n".encode(), ["a\u2028b", "\x85c\x0c d", "", ""]),
        (b"a\rb\x1cc\n", ["a\rb\x1cc"]),
    ],
)
def test_lines_of_a_file_end_at_newlines_alone(content, lines, tmp_path):
    (tmp_path / "texts.txt").write_bytes(content)
    assert predict_command._read_lines(str(tmp_path / "texts.txt")) == lines


def test_an_empty_line_has_an_empty_answer_without_the_model():
    class Run:
        def predict(self, texts, num_samples):
            assert all(map(str.strip, texts))
            return [f"{text}!" if num_samples == 1 else [f"{text}{n}" for n in range(num_samples)] for text in texts]

    one = argparse.Namespace(texts=["zero"], num_samples=1, among=None, rank_by=None)
    assert predict_command._predict_each(Run(), one, ["one", "", "two", ""]) == ["zero!", "one!", None, "two!", None]
    two = argparse.Namespace(texts=[], num_samples=2, among=None, rank_by=None)
    assert predict_command._predict_each(Run(), two, ["", "a"]) == [None, None, "a0", "a1"]


@pytest.mark.slow
def test_predict_reads_standard_input(run):
    command = [sys.executable, "-c", "from jaxformer.cli import command; command()", "predict", str(run[0])]
    done = subprocess.run(
        [*command, "--input", "-"], input="A [MASK].\n", capture_output=True, text=True, cwd=tiny.ROOT
    )
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("A [MASK].\n")


@pytest.mark.slow
def test_options_may_be_before_between_and_after_the_texts(run, capsys):
    folder, options = str(run[0]), ["--step", "20"]
    for words in (
        [folder, *options, "A [MASK].", "The [MASK]."],
        [*options, folder, "A [MASK].", "The [MASK]."],
        [folder, "A [MASK].", *options, "The [MASK]."],
        [folder, "A [MASK].", "The [MASK].", *options],
    ):
        assert cli.main(["predict", *words]) == 0
        out = capsys.readouterr().out
        assert [line for line in out.splitlines() if not line.startswith(" ")] == ["A [MASK].", "The [MASK]."]


def test_a_text_that_looks_like_an_option_follows_two_dashes(run, capsys):
    assert cli.main(["predict", str(run[0]), "--", "-- [MASK].", "--step [MASK]."]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if not line.startswith(" ")] == ["-- [MASK].", "--step [MASK]."]


@pytest.mark.slow
def test_step_chooses_a_checkpoint(run, capsys, refused, tmp_path):
    assert cli.main(["evaluate", "--step", "20", str(run[0])]) == 0
    assert "step 20" in capsys.readouterr().out
    assert cli.main(["export", str(run[0]), str(tmp_path / "out"), "--step", "16", "--no-certificate"]) == 0
    assert "step 16" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "out")
    for command in (["evaluate"], ["predict", "A [MASK]."], ["export", tmp_path / "out"]):
        line = refused(command[0], run[0], *command[1:], "--step", "21")
        assert f"{run[0]}: no checkpoint of step 21; there are 16, 20, 24" in line
    assert "--step: invalid int value: 'last'" in refused("evaluate", run[0], "--step", "last")


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_in_a_line_and_another_one_used(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints" / "24" / "params").rglob("d/*"):
        file.unlink()
    command = [sys.executable, "-c", "from jaxformer.cli import command; command()", "predict", "run", "A [MASK]."]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("A [MASK].\n")
    assert re.fullmatch(r"warning: \S*run/checkpoints/24: damaged: .*; using step 20\n", done.stderr)


@pytest.mark.slow
def test_an_export_that_meets_a_damaged_array_takes_another_checkpoint(run, tmp_path, capsys):
    shutil.copytree(run[0], tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints" / "24" / "params").rglob("ocdbt.process_0/d/*"):
        file.write_bytes(file.read_bytes()[:100])  # What is there is found, and where it should be is nothing.
    out = str(tmp_path / "out")
    assert cli.main(["export", str(tmp_path / "run"), out, "--no-certificate", "--step", "24"]) == 2
    assert re.fullmatch(r"jaxformer: \S*run/checkpoints/24: damaged: .*\n", capsys.readouterr().err)
    assert cli.main(["export", str(tmp_path / "run"), out, "--no-certificate"]) == 0
    shown = capsys.readouterr()
    assert re.fullmatch(r"warning: \S*run/checkpoints/24: damaged: .*; using step 20\n", shown.err)
    assert "step 20" in shown.out and (tmp_path / "out" / "model.safetensors").exists()


def test_fork_and_allow_are_flags_of_train(run, tiny_config, refused, tmp_path):
    line = refused("train", tiny_config, "--fork", run[0], "--workdir", tmp_path / "fork")
    assert f"steps=24: fork={run[0]} is at step 24 already" in line
    line = refused("train", tiny_config, "--allow", "not a package", "--workdir", tmp_path / "fork")
    assert "--allow not a package: expected the name of a package" in line
    assert "--allow: expected a package" in refused("train", tiny_config, "--workdir", tmp_path / "run", "--allow")


def test_evaluate_prints_what_training_measured_at_its_end(run, capsys):
    assert cli.main(["evaluate", str(run[0])]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert str(run[0]) in first and "step 24" in first
    shown = dict(line.split() for line in lines)
    for name, value in tiny.metrics(run[0], "validation")[-1].items():
        if name not in ("step", "split"):
            assert float(shown[name]) == pytest.approx(value, abs=2e-4)


def test_help_lists_the_arguments_of_each_command(tiny_config, capsys):
    def shown(*arguments):
        try:
            assert cli.main(list(map(str, arguments))) == 0
        except SystemExit as end:
            assert end.code == 0
        return capsys.readouterr().out

    assert all(command in shown("--help") for command in ("train", "evaluate", "predict"))
    assert all(word in shown("evaluate", "--help") for word in ("RUN", "held-out"))
    assert all(word in shown("predict", "--help") for word in ("RUN", "TEXT", "--input", "[MASK]", "--step", "--allow"))
    assert all(word in shown("train", "--help") for word in ("CONFIG", "--workdir", "--field", "--fork"))
    fields = shown("train", tiny_config, "--help")
    for word in ("two thin layers", "--model.transformer.width", "--data.batch", "--optimizer.schedule.peak", "--seed"):
        assert word in fields
    assert "Size of the hidden vectors" in fields and "--workdir" in fields
    told = " ".join(fields.replace("│", " ").split())
    assert "--fork" in told and "changes its learning rate" in told


def test_without_a_command_the_next_steps_are_shown(capsys):
    assert cli.main([]) == 0
    assert "jaxformer --help" in capsys.readouterr().out
