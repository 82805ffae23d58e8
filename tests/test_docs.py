"""What the README and the guides say, done: with fewer steps, in a folder of its own."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FEW = "--steps 8 --log.every 4 --optimizer.schedule.warmup 4"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def python(name):
    """The block of Python that has this name in it."""
    (found,) = [block for block in blocks("python") if name in block]
    return found


def run(command, folder, **variables):
    """A line of the README as it stands, but with this environment's programs, in `folder`."""
    programs = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "XLA_FLAGS": ""} | variables
    return subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder like the repository's, where a run has been trained by the README's first command."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("train.py", "configs", "jaxformer", "setup.py", "pyproject.toml", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    install, *commands = [part.strip() for part in blocks("bash")[0].split("&&")][1:]
    assert install == ".venv/bin/pip install -q ."
    for command in commands:
        few = FEW if "train.py" in command else ""
        done = run(f"{command.replace('.venv/bin/', '')} {few}", folder)
        assert done.returncode == 0, done.stderr
    assert re.search(r"^ +\d+\.\d%  \S", done.stdout, re.MULTILINE), done.stdout
    return folder


@pytest.mark.slow
def test_the_commands_that_it_lists(folder):
    (folder / "FILE").write_text("In the [MASK]\nGod [MASK] the light\n")
    lines = [line.split("#")[0].strip() for line in blocks("bash")[2].splitlines()]
    assert len(lines) == 7
    for line in lines:
        command = line.replace("CONFIG.py", "configs/bert_quickstart.py")
        command = command.replace("[--field value ...]", FEW if "RUN" in line else "")
        for steps, few in (("--steps 9000", 10), ("--steps 12000", 12)):
            command = command.replace(steps, FEW.replace("--steps 8", f"--steps {few}"))
        done = run(command.replace("RUN", "runs/bert").replace("NEW", "runs/new"), folder)
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout


@pytest.mark.slow
def test_the_weights_go_and_come_back(folder):
    lines = [line.split("  #")[0].strip() for line in blocks("bash")[3].splitlines()]
    assert [line.split()[1] for line in lines] == ["export", "import", "predict", "export", "export"]
    said = []
    for line in lines:
        done = run(line, folder)
        assert done.returncode == 0, (line, done.stderr)
        said.append(done.stdout)
    assert "comparisons with transformers" in said[0]
    assert re.search(r"^ +\d+\.\d%  \S", said[2], re.MULTILINE), said[2]
    done = run(f"{sys.executable} -c {shlex.quote(python('from_pretrained'))}", folder, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert (folder / "hf" / "again" / "model.safetensors").exists() and "was left out" in done.stdout


@pytest.mark.slow
def test_what_it_says_of_writing(folder):
    (folder / "FILE").write_text("Jesus wept.\nRejoice always.\n")
    few = f"{FEW} --evaluation.batches 1 --objective.decoding.max_new 8"
    lines = [line.split("  #")[0].strip() for line in blocks("bash")[4].splitlines()]
    assert [line.split()[1] for line in lines] == ["train.py", "predict", "predict", "train.py", "predict", "evaluate"]
    for line in lines:
        extra = few + " --objective.scored 2" * ("translation" in line) if "train.py" in line else ""
        done = run(f"{line} {extra}", folder)
        assert done.returncode == 0, (line, done.stderr)
        if "days" in line:
            assert done.stdout.startswith("And it happened in those days")
    assert {"bleu", "chrf"} < {shown.split()[0] for shown in done.stdout.splitlines()}
    assert len((folder / "german.txt").read_text().splitlines()) == 2
    done = run(f"{sys.executable} -c {shlex.quote(python('few_shot'))}", folder, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] in ("0.0", "0.5", "1.0")


@pytest.mark.slow
def test_the_python_that_it_shows(folder):
    use, sources = python("jf.fit"), python("JsonLines")
    shorter = use.replace('{"steps": 200}', '{"steps": 8}').replace('workdir="runs/bert"', 'workdir="runs/python"')
    assert shorter.count("runs/python") == 1
    script = shorter.replace('open_run("runs/bert")', 'open_run("runs/python")') + "\nprint(output.logits.shape)"
    done = run(f"{sys.executable} -c {shlex.quote(script)}", folder, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert "4096)" in done.stdout.splitlines()[-1]
    done = run(f"{sys.executable} -c {shlex.quote(sources)}", folder, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_errors_that_it_quotes(folder):
    quoted = re.search(r"^```\n(jaxformer: .*?)^```", README, re.MULTILINE | re.DOTALL)[1].splitlines()
    for flag, line in zip(("widht 256", "heads 5"), quoted, strict=True):
        done = run(f"python train.py configs/bert_quickstart.py --model.transformer.{flag}", folder)
        assert (done.returncode, done.stderr.strip()) == (2, line)


def test_ci_runs_the_test_command():
    assert len(re.findall(r"^python3 -m venv .*pytest -n 2 --dist loadfile$", README, re.MULTILINE)) == 1
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_house_is_as_architecture_says():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    house = page.split("```")[1]
    listed = set(re.findall(r"^  (\w+\.py) ", house, re.MULTILINE)) | {"fields.py", "__init__.py", "__main__.py"}
    assert listed == {path.name for path in (ROOT / "jaxformer").glob("*.py")}


@pytest.mark.slow
def test_a_text_is_classified_by_weights_that_come_as_a_package(folder):
    (block,) = [block for block in blocks("bash") if "configs/sentiment.py" in block]
    train, predict = [line.split("  #")[0].strip() for line in block.splitlines()]
    done = run(f"{train} {FEW} --data.batch 8 --evaluation.batches 2", folder)
    assert done.returncode == 0 and "new: head" in done.stdout, done.stderr
    done = run(predict, folder)
    assert done.returncode == 0 and re.search(r"^ +\d+\.\d%  (positive|negative)$", done.stdout, re.MULTILINE), (
        done.stdout
    )


@pytest.mark.slow
def test_what_it_says_of_images(folder):
    Image.new("L", (20, 20), 200).save(folder / "DIGIT.png")
    (block,) = [block for block in blocks("bash") if "configs/vit_digits.py" in block]
    lines = [line.split("  #")[0].strip() for line in block.splitlines()]
    assert [line.split()[1] for line in lines] == ["train.py", "predict", "train.py", "train.py"]
    for line in lines:
        small = "--steps 2 --log.every 2 --optimizer.schedule.warmup 1 --data.batch 8 --evaluation.batches 1"
        done = run(f"{line} {small}" if "train.py" in line else line, folder)
        assert done.returncode == 0, (line, done.stderr)
        if "predict" in line:
            assert re.search(r"^ +\d+\.\d%  \d$", done.stdout, re.MULTILINE), done.stdout
    assert "new: head" in done.stdout
    done = run(f"{sys.executable} -c {shlex.quote(python('LabelledImages'))}", folder, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
