"""Runs what the README and the guides show: with fewer steps, in a folder of its own."""

import ast
import gzip
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import one_process
import pytest
import small_whisper
import tiny
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FEW = "--steps 8 --log.every 4 --optimizer.schedule.warmup 4 --evaluation.batches 1"


MAILS = "python train.py mails.py"
QUICKSTART, PYTEST = ".venv/bin/python train.py", "-m pytest"
BASH = (QUICKSTART, PYTEST, "'.[cuda]'", "jaxformer evaluate RUN", "configs/sentiment.py", MAILS)
BASH += ("jaxformer export", "configs/gpt_quickstart.py", "configs/vit_digits.py", "'.[audio]'", "'.[report]'")
PYTHON = ("jf.fit", "JsonLines", "# mails.py", "from_pretrained", "few_shot", "LabelledImages", "LabelledClips")
PYTHON += ("SoundManifest", "jf.explain")
"""A part of each block of the README that no other has; the tests below run all of them."""


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def block(language, name):
    """The block that has this in it."""
    (found,) = [one for one in blocks(language) if name in one]
    return found


def lines(name):
    """The commands of the block that has this in it, without their comments."""
    return [line.split("  #")[0].strip() for line in block("bash", name).splitlines()]


def python(name):
    """The block of Python that has this name in it."""
    return block("python", name)


def run_python(script, folder):
    """The standard output of a script in this environment."""
    done = run(f"{sys.executable} -c {shlex.quote(script)}", folder, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(command, folder, **variables):
    """Runs a line of a shell with this environment's programs, in `folder`."""
    programs = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", **tiny.flags()} | variables
    return subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.fixture(scope="module")
def program():
    """The process that runs commands of the README."""
    with one_process.Commands(**tiny.flags()) as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder like the repository's, where a run has been trained by the README's first command."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("train.py", "configs", "jaxformer", "setup.py", "pyproject.toml", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    install, *commands = [part.strip() for part in block("bash", QUICKSTART).split("&&")][1:]
    assert install == ".venv/bin/pip install -q ."
    for command in commands:
        few = FEW if "train.py" in command else ""
        done = run(f"{command.replace('.venv/bin/', '')} {few}", folder)
        assert done.returncode == 0, done.stderr
    assert re.search(r"^ +\d+\.\d%  \S", done.stdout, re.MULTILINE), done.stdout
    return folder


@pytest.mark.slow
def test_the_commands_that_it_lists(program, folder):
    (folder / "FILE").write_text("In the [MASK]\nGod [MASK] the light\n")
    commands = lines("jaxformer evaluate RUN")
    assert len(commands) == 9
    for line in commands:
        command = line.replace("CONFIG.py", "configs/bert_quickstart.py")
        command = command.replace("[--field value ...]", FEW if "RUN" in line else "")
        for steps, few in (("--steps 9000", 10), ("--steps 12000", 12)):
            command = command.replace(steps, FEW.replace("--steps 8", f"--steps {few}"))
        command = command.replace("RUN", "runs/bert").replace("NEW", "runs/new")
        done = program.run(command.replace("NAME.py", "mine.py"), folder)
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout


@pytest.mark.slow
def test_what_it_says_of_looking_at_runs(folder):
    pytest.importorskip("plotly", reason="needs plotly: pip install 'jaxformer[report]'")
    install, *commands = lines("'.[report]'")
    assert install == "pip install '.[report]'" and len(commands) == 4
    for line in commands:
        done = run(f"{line} {FEW}" if "train.py" in line else line, folder)
        assert done.returncode == 0, (line, done.stderr)
    assert "integrated gradients" in (folder / "page.html").read_text(encoding="utf-8")
    assert (folder / "runs" / "bert" / "report.html").stat().st_size < 5_000_000
    assert "token " in run_python(python("jf.explain"), folder)


@pytest.mark.slow
def test_the_weights_go_and_come_back(program, folder):
    commands = lines("jaxformer export")
    assert [line.split()[1] for line in commands] == ["export", "import", "predict", "export", "export"]
    said = []
    for line in commands:
        done = program.run(line, folder)
        assert done.returncode == 0, (line, done.stderr)
        said.append(done.stdout)
    assert "comparisons with transformers" in said[0]
    assert re.search(r"^ +\d+\.\d%  \S", said[2], re.MULTILINE), said[2]
    printed = run_python(python("from_pretrained"), folder)
    assert (folder / "hf" / "again" / "model.safetensors").exists() and "was left out" in printed


@pytest.mark.slow
def test_what_it_says_of_writing(program, folder):
    (folder / "FILE").write_text("Jesus wept.\nRejoice always.\n")
    few = f"{FEW} --objective.decoding.max_new_tokens 8"
    commands = lines("configs/gpt_quickstart.py")
    kinds = ["train.py", "predict", "predict", "predict", "train.py", "predict", "evaluate"]
    assert [line.split()[1] for line in commands] == kinds
    for line in commands:
        extra = few + " --objective.scored 2" * ("translation" in line) if "train.py" in line else ""
        done = program.run(f"{line} {extra}", folder)
        assert done.returncode == 0, (line, done.stderr)
        if "days" in line:
            assert done.stdout.startswith("And it happened in those days")
        if "--num_samples 3" in line:
            assert done.stdout.count("And he said") >= 3
    assert {"bleu", "chrf"} < {shown.split()[0] for shown in done.stdout.splitlines()}
    assert len((folder / "german.txt").read_text().splitlines()) == 2
    assert run_python(python("few_shot"), folder).splitlines()[-1] in ("0.0", "0.5", "1.0")


@pytest.mark.slow
def test_the_python_that_it_shows(folder):
    few = 'steps=8, **{"evaluation.batches": 1}'
    shorter = python("jf.fit").replace("steps=200", few).replace("runs/bert", "runs/python")
    assert shorter.count("runs/python") == 2 and few in shorter
    check = "\nprint(vectors.shape, inputs['tokens'].shape[0], output.pooled.shape, output.logits.shape)"
    printed = run_python(shorter + check, folder).splitlines()
    assert re.search(r"<Run runs/python: Bert, [\d,]+ parameters, step 8 of 8>", "\n".join(printed))
    assert re.fullmatch(r"\(2, 128\) 1 \(1, 1, 128\) \(1, \d+, 4096\)", printed[-1])


def test_the_sources_that_it_shows_read_files(tmp_path):
    (tmp_path / "corpus").mkdir()
    with gzip.open(tmp_path / "corpus" / "a.txt.gz", "wt") as file:
        file.write("One.\n\nTwo.\n")
    (tmp_path / "corpus" / "a.jsonl").write_text('{"text": "Three."}\n')
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("Four.\n\nFive.\n")
    imports, *expressions = [ast.unparse(one) for one in ast.parse(python("JsonLines")).body]
    opened = [f"print(len({one}.open()))" for one in expressions if not one.startswith("jf.data.Tfds(")]
    made = [one for one in expressions if one.startswith("jf.data.Tfds(")]
    assert (len(opened), len(made)) == (3, 1)
    assert run_python("\n".join([imports, *made, *opened]), tmp_path).split() == ["2", "1", "4"]


@pytest.mark.slow
def test_the_errors_that_it_quotes(program, folder):
    quoted = re.search(r"^```\n(jaxformer: .*?)^```", README, re.MULTILINE | re.DOTALL)[1].splitlines()
    flags = ("model.transformer.widht 256", "learning_rate 1", "model.transformer.heads 5")
    for flag, line in zip(flags, quoted, strict=True):
        done = program.run(f"python train.py configs/bert_quickstart.py --{flag}", folder)
        assert (done.returncode, done.stderr.strip()) == (2, line)


def test_every_block_of_the_readme_is_run():
    """A new block needs a test here, and a name in `BASH` or `PYTHON`."""
    assert [sum(name in one for name in BASH) for one in blocks("bash")] == [1] * len(BASH)
    assert [sum(name in one for name in PYTHON) for one in blocks("python")] == [1] * len(PYTHON)
    assert README.count("```") == 2 * (len(BASH) + len(PYTHON) + 1), "one more block quotes errors"


def test_the_extras_that_it_installs_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = project["optional-dependencies"]
    extras = set(re.findall(r"\.\[(\w+)\]", README))
    assert extras >= {"cuda", "tpu", "torch", "onnx", "test"} and extras <= found.keys()
    pinned = {name for name, needs in found.items() if any("==" in need for need in needs)}
    assert pinned == {"test"} and not any("==" in need for need in project["dependencies"])


def test_names_with_dots_exist():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`(jaxformer\.[\w.]+)[`(]", text) + re.findall(r"\b(jf\.[a-z]\w*\.[A-Z]\w*)", text):
            module, _, attribute = re.sub(r"^jf\b", "jaxformer", name).rpartition(".")
            assert name == "jaxformer.interop.lm_eval_adapter.RunLM" or hasattr(
                importlib.import_module(module), attribute
            )


def test_the_recipes_list_each_config_once():
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    measured, others = text.split("## No result yet")
    names = re.findall(r"`(\w+)` \(a small|`(\w+)` \((?:parts|MiniLM)|^\| `(\w+)`", text, re.MULTILINE)
    configs = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "configs").glob("*.py")}
    assert sorted(map("".join, names)) == sorted(configs)
    for name, source in configs.items():
        unmeasured = "Not run" in source or "Measured" not in source
        assert f"`{name}`" in (others if unmeasured else measured), name


def test_ci_runs_the_test_command():
    assert len(re.findall(r"^python3 -m venv .*pytest -n 2 --dist loadfile$", README, re.MULTILINE)) == 1
    assert "README.md" in (ROOT / ".ci" / "run").read_text()
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    assert re.findall(r"run: (\S+.*)", workflow) == [".ci/run fast python${{ matrix.python }}", ".ci/run"]
    lane = 'python -m pytest -n 2 --dist loadfile -m "not slow"'
    assert lane in (ROOT / "CONTRIBUTING.md").read_text() and f"{PYTEST} -n 2 --dist loadfile" in README


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_house_is_as_architecture_says():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    house = page.split("```")[1]
    listed = set(re.findall(r"^  (\w+\.py) ", house, re.MULTILINE)) | {"__init__.py", "__main__.py"}
    assert listed == {path.name for path in (ROOT / "jaxformer").glob("*.py")}
    folders = set(re.findall(r"^ +(\w+)/ ", house.split("jaxformer/\n")[1], re.MULTILINE))
    parts = [
        *(ROOT / "jaxformer").glob("*"),
        *(ROOT / "jaxformer" / "data").glob("*"),
        *(ROOT / "jaxformer" / "interop").glob("*"),
    ]
    assert folders | {"interop"} == {path.name for path in parts if (path / "__init__.py").exists()}


@pytest.mark.slow
def test_a_text_is_classified_by_weights_that_come_as_a_package(program, folder):
    train, predict = lines("configs/sentiment.py")
    done = program.run(f"{train} {FEW} --data.batch 8", folder)
    assert done.returncode == 0 and "new: head" in done.stdout, done.stderr
    done = program.run(predict, folder)
    assert done.returncode == 0 and re.search(r"^ +\d+\.\d%  (positive|negative)$", done.stdout, re.MULTILINE), (
        done.stdout
    )


@pytest.mark.slow
def test_the_config_for_a_table_of_ones_own(program, folder):
    (folder / "mails.py").write_text(python("# mails.py"))
    rows = [("win a free cruise", "spam"), ("see you on monday", "ham")] * 4
    for name in ("mails.csv", "held_out.csv"):
        (folder / name).write_text("\n".join(["body,kind", *map(",".join, rows)]) + "\n")
    *training, predict = lines(MAILS)
    few = "--steps 2 --optimizer.schedule.warmup 1 --log.every 1 --data.batch 2 --data.task.length 32"
    assert len(training) == 3
    for line, trains in zip(training, ("", "770 train", "train"), strict=True):
        done = program.run(f"{line} {few}", folder)
        assert done.returncode == 0 and trains in done.stdout and "new: head" in done.stdout, (line, done.stderr)
    answer = json.loads(program.run(predict, folder).stdout)
    assert answer["text"] == "Win a free cruise now"
    assert {label["label"] for label in answer["labels"]} == {"ham", "spam"}
    done = program.run("jaxformer export runs/mails hf/mails --no-certificate", folder)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "hf/mails/config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]


@pytest.mark.slow
def test_what_it_says_of_images(program, folder):
    Image.new("L", (20, 20), 200).save(folder / "DIGIT.png")
    commands = lines("configs/vit_digits.py")
    assert [line.split()[1] for line in commands] == ["train.py", "predict", "train.py", "train.py"]
    for line in commands:
        small = "--steps 2 --log.every 2 --optimizer.schedule.warmup 1 --data.batch 8 --evaluation.batches 1"
        done = program.run(f"{line} {small}" if "train.py" in line else line, folder)
        assert done.returncode == 0, (line, done.stderr)
        if "predict" in line:
            assert re.search(r"^ +\d+\.\d%  \d$", done.stdout, re.MULTILINE), done.stdout
    assert "new: head" in done.stdout


def test_the_task_of_images_makes_batches(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(2):
            Image.new("RGB", (40, 30), (90 * number, 200, 10)).save(tmp_path / label / f"{number}.png")
    *lines, task = [ast.unparse(one) for one in ast.parse(python("LabelledImages")).body]
    lay_out = f"""
from jaxformer.data.pipeline.loader import Data, train_batches
from jaxformer.data.sources.pictures import ImageFolders
with train_batches(Data(ImageFolders("."), {task}, batch=2), None, 0, range(2)) as batches:
    print(next(batches)[0]["images"].shape)
"""
    assert run_python("\n".join(lines) + lay_out, tmp_path) == "(2, 224, 224, 3)\n"


def test_the_task_of_clips_makes_views_of_a_video(tmp_path):
    *lines, task = [ast.unparse(one) for one in ast.parse(python("LabelledClips")).body]
    lay_out = f"""
import numpy as np
clips = np.zeros((20, 30, 40, 3), np.uint8)
print({task}.prepare_requests([clips])[0].views.shape)
"""
    assert run_python("\n".join(lines) + lay_out, tmp_path) == "(15, 16, 224, 224, 3)\n"


@pytest.mark.slow
def test_what_is_said_becomes_text_and_subtitles(program, tmp_path):
    pytest.importorskip("soundfile")
    small_whisper.saved(tmp_path / "openai" / "whisper-small", multilingual=True)
    for name in ("speech.wav", "talk.flac"):
        small_whisper.wav(tmp_path / name, 3)
    install, *commands = lines("'.[audio]'")
    assert install == "pip install '.[audio]'" and len(commands) == 4
    for line in commands:
        done = program.run(line, tmp_path)
        assert done.returncode == 0, (line, done.stderr)
    assert "-->" in (tmp_path / "talk.srt").read_text() and json.loads(done.stdout)
    (tmp_path / "calls").mkdir()
    (tmp_path / "calls" / "train.jsonl").write_text('{"audio": "../speech.wav", "text": "Hello."}\n')
    script = python("SoundManifest") + "\nprint(source.open()[0]['text'])"
    assert run_python(script, tmp_path) == "Hello.\n"
