"""The tour and the page about data of one's own run from top to bottom, with small models and few steps. Translations
have the commands and the links of their originals.
"""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import one_process
import pytest
import small_whisper
import tiny
import tiny_images

import jaxformer as jf

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FEW = "--log.every 2 --evaluation.batches 1 --model.transformer.depth 1"
WRITER = f"{FEW} --optimizer.schedule.warmup 1 --model.transformer.width 32 --objective.decoding.max_new_tokens 8"
STEPS = {"--steps 300": "--steps 4", "--steps 400": "--steps 6", "--steps 100": "--steps 2"}
SMALL = {
    "texts": f"{WRITER} --steps 2 --data.batch 4 --data.task.length 32",
    "tables": f"{FEW} --steps 2 --optimizer.schedule.warmup 1 --model.backbone.transformer.width 32 --data.batch 4",
    "pictures": f"{FEW} --steps 2 --optimizer.schedule.warmup 1 --model.transformer.width 48 --data.batch 4",
    "sounds": f"{FEW} --steps 2 --optimizer.schedule.warmup 1 --data.task.audio.seconds 1 --data.batch 2",
}
SMALL["sounds"] += " --objective.scored 2"
SMALL["tables"] = SMALL["tables"].replace("--model.transformer", "--model.backbone.transformer")
TRANSLATIONS = {"README.md": "docs/zh/README.md", "docs/tour.md": "docs/zh/tour.md"}


def blocks(path):
    """The language and the text of each block of code of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(block):
    """The commands of a block for a shell, without those that install."""
    found = [re.sub(r"\s+#.*", "", line).strip() for line in block.splitlines()]
    return [line for line in found if not re.match(r"python3 -m venv|pip install", line)]


@pytest.fixture(scope="module")
def program():
    with one_process.Commands(**tiny.flags()) as started:
        yield started


def run(program, command, folder):
    done = program.run(command, folder)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


@pytest.mark.slow
def test_the_tour_runs_from_top_to_bottom(program, tmp_path):
    pytest.importorskip("plotly", reason="needs plotly: pip install 'jaxformer[report]'")
    said = {}
    for language, block in blocks(DOCS / "tour.md"):
        if language == "python":
            environment = os.environ | tiny.flags() | {"PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-c", block]
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert re.search(r"^log-probability -\d+\.\d, \d+ lines of metrics\n\(1, \d+, 4096\)$", done.stdout, re.M)
            continue
        for line in commands(block):
            command = line + (f" {WRITER}" if " train " in line else " --no-certificate" if " export " in line else "")
            for steps, few in STEPS.items():
                command = command.replace(steps, few)
            said[line] = run(program, command, tmp_path)
    assert "jaxformer new NAME" in said["jaxformer"] and (tmp_path / "tour.py").exists()
    for page in ("runs/tour/report.html", "both.html", "why.html"):
        assert (tmp_path / page).exists(), page
    (listed,) = [text for line, text in said.items() if " runs runs " in line]
    assert "Lion" in listed and "optimizer.schedule.peak" in listed
    assert (tmp_path / "hf" / "tour" / "model.safetensors").exists()


def write_files(folder):
    """Writes small files in the forms that the page shows."""
    for name, seed in (("corpus/1.txt", 0), ("corpus/2.txt", 1), ("held_out/1.txt", 2)):
        (folder / name).parent.mkdir(exist_ok=True)
        tiny.write_texts(folder / name, 20, seed)
    rows = ['"The printer is out of paper",office', '"I cannot sign in",accounts'] * 6
    for name in ("tickets.csv", "held_out.csv"):
        (folder / name).write_text("\n".join(["text,team", *rows]) + "\n")
    for split in ("train", "held_out"):
        for number, label in enumerate(("cat", "dog")):
            tiny_images.write(folder / "photos" / split / label, 10, 100 * number, seed=number)
    picture = folder / "photos" / "held_out" / "cat" / "9.png"
    picture.rename(picture.with_suffix(".jpg"))  # Pillow recognises a picture by its content.
    (folder / "calls").mkdir()
    for split in ("train", "held_out"):
        lines = []
        for number in range(4):
            small_whisper.wav(folder / "calls" / f"{number}.wav", 0.9, number)
            lines.append(json.dumps({"audio": f"{number}.wav", "text": "hello"}))
        (folder / "calls" / f"{split}.jsonl").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the configs of the page, and files in the forms that it shows."""
    folder = tmp_path_factory.mktemp("data")
    write_files(folder)
    for language, block in blocks(DOCS / "own_data.md"):
        if language == "python":
            (folder / re.match(r"# (\w+\.py)\n", block)[1]).write_text(block)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_data_of_ones_own(name, program, folder):
    if name == "sounds":
        pytest.importorskip("soundfile")
    (block,) = [text for language, text in blocks(DOCS / "own_data.md") if language == "bash" and f"{name}.py" in text]
    train, predict = commands(block)
    assert "The run is in" in run(program, f"{train} {SMALL[name]}", folder)
    answer = run(program, predict, folder)
    if name == "tables":
        assert {one["label"] for one in json.loads(answer)["labels"]} == {"accounts", "office"}
    if name == "pictures":
        assert re.search(r"^ +\d+\.\d%  (cat|dog)$", answer, re.MULTILINE)


def test_every_block_of_these_pages_is_run():
    """Blocks without a language show how files look."""
    found = [language for language, _ in blocks(DOCS / "own_data.md")]
    assert found == ["", "python", "bash"] * len(SMALL)
    assert {language for language, _ in blocks(DOCS / "tour.md")} == {"bash", "python"}
    (home,) = blocks(DOCS / "index.md")
    assert home in blocks(ROOT / "README.md"), "the command of the first page is one of the README, which is tested"


def test_every_family_and_config_is_listed():
    text = (DOCS / "families.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(\.\./configs/(\w+)\.py\)", text))
    assert linked == {path.stem for path in (ROOT / "configs").glob("*.py")}
    classes = {name for name in jf.models.__all__ if inspect.isclass(getattr(jf.models, name))}
    assert classes - {"Model", "ImageTower", "TextTower"} <= set(re.findall(r"`jf\.models\.(\w+)`", text))


def plain(block):
    """A block of code without its comments, except for names of files."""
    lines = [re.sub(r"(^|\s+)# (?!\w+\.py$).*", "", line).rstrip() for line in block[1].splitlines()]
    return block[0], [line for line in lines if line]


def targets(path):
    """The files to which a page links, except for pages in Chinese."""
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / path).read_text(encoding="utf-8"))
    found = {os.path.relpath((ROOT / path).parent / link, ROOT) for link in links}
    return {link for link in found if "/zh/" not in link} - {*TRANSLATIONS}


@pytest.mark.parametrize("original", TRANSLATIONS)
def test_a_translation_has_the_commands_and_the_links_of_its_original(original):
    """After a change of the original, change its translation in the same way; comments in code may be translated."""
    translation = TRANSLATIONS[original]
    pairs = zip(*(map(plain, blocks(ROOT / path)) for path in (original, translation)), strict=True)
    for expected, found in pairs:
        assert found == expected, f"{translation} has another block than {original}"
    assert targets(translation) == targets(original)
    levels = [
        re.findall(r"^(#+) ", (ROOT / path).read_text(encoding="utf-8"), re.M) for path in (original, translation)
    ]
    assert levels[0] == levels[1]
