"""Speech: a run that learns to speak, answers as sounds and pages, vocoders, bad requests, and chains of runs."""

import json
import re
import wave

import jax
import numpy as np
import pytest
import small_whisper
import tiny_speech
import tiny_waveforms
from small_whisper import RATE

import jaxformer as jf
from jaxformer import cli, config
from jaxformer.data.fields.sound import wav
from jaxformer.data.sources.sounds import read_sound
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.models import export_hf
from jaxformer.models.hifi_gan import HifiGan
from jaxformer.predictors.speech import Mark, Speech
from jaxformer.predictors.vocoding import Vocoder

SIZES = {"strides": (16, 16), "kernels": (16, 16), "dilations": ((1,), (1,), (1,))}
LABELS = ("yes", "no")
VOCODER = HifiGan(mels=tiny_speech.LOG_MEL.mels, channels=16, **SIZES)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has learned the sounds of two phonemes and a pause."""
    folder = tmp_path_factory.mktemp("speech")
    whole = jf.load("fastspeech_spoken_bible")
    small = tiny_speech.shrunk(whole) | tiny_speech.sources(folder)
    small |= {"optimizer.schedule.peak": 1e-2, "optimizer.schedule.warmup": 10, "steps": 120}
    small |= {"model.predictor_dropout": 0.0, "model.encoder.dropout": 0.0, "model.decoder.dropout": 0.0}
    small |= {"evaluation.every": 60, "checkpoint.every": 60, "log.every": 20}
    return jf.fit(config.override(whole, small), folder / "run", quiet=True)


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory):
    """A folder with a vocoder of random weights."""
    folder = tmp_path_factory.mktemp("vocoder") / "hifi_gan"
    params = VOCODER.init(jax.random.key(0), np.zeros((1, 2, VOCODER.mels), np.float32))["params"]
    export_hf(
        VOCODER, jax.tree.map(lambda box: box.value, params, is_leaf=lambda box: hasattr(box, "value")), None, folder
    )
    return folder


@pytest.mark.slow
def test_a_run_learns_to_speak(run):
    errors = [line for line in run.history if line["split"] == "validation"]
    assert errors[-1]["spectrogram"] < 0.3 and errors[-1]["duration"] < 0.05
    assert errors[-1]["loss"] == pytest.approx(
        sum(errors[-1][name] for name in ("spectrogram", "duration", "pitch", "energy"))
    )
    speech = run.predict("/a o _/")
    samples, *_ = tiny_speech.spoken("ao")
    assert abs(speech.seconds - len(samples) / RATE) < 0.05 and speech.rate == RATE
    assert [mark.text for mark in speech.marks] == ["a", "o", "_"]
    assert all(one.end == other.start for one, other in zip(speech.marks, speech.marks[1:], strict=False))
    spectrum = np.abs(np.fft.rfft(speech.samples[: round(0.1 * RATE)] * np.hanning(round(0.1 * RATE))))
    assert min(abs(spectrum.argmax() * 10 - order * 200) for order in (1, 2, 3)) < 40


@pytest.mark.slow
def test_speech_is_slower_or_of_several_parts(run):
    one, slow = run.predict("/a o _/"), run.with_speaking(speed=0.5).predict("/a o _/")
    assert 1.6 < slow.seconds / one.seconds < 2.4
    several = run.predict(["/a _/", "/o a _/"])
    assert [answer.text for answer in several] == ["/a _/", "/o a _/"]
    np.testing.assert_allclose(run.predict("/a _/").log_mel, several[0].log_mel, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text, said",
    [
        ("", "text 1, '': has no words to speak"),
        ("/a ʒ/", "text 1, '/a ʒ/': phonemes ʒ: not in the vocabulary of 4 phonemes"),
        (f"/{'a ' * 300}/", "300 phonemes without a full stop; the model reads 256"),
        (f"/{'a ' * 200}/", r"\d+ frames of speech without a full stop; the model speaks 40"),
    ],
)
def test_bad_texts_get_a_line(run, text, said):
    with pytest.raises(InputError, match=said) as caught:
        run.predict(text)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_command_writes_sounds_and_pages(run, vocoder, tmp_path, capsys):
    assert cli.main(["predict", str(run.folder), "/a o _/", "--out", str(tmp_path / "speech.wav")]) == 0
    with wave.open(str(tmp_path / "speech.wav")) as file:
        assert file.getframerate() == RATE and file.getnchannels() == 1 and file.getnframes() > 0.1 * RATE
    arguments = ["predict", str(run.folder), "/a o _/", "--vocoder", str(vocoder), "--speed", "2"]
    assert cli.main([*arguments, "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert page.count("<audio") == 1 and len(re.findall(r"<span style", page)) == 3
    assert cli.main(["predict", str(run.folder), "/a o _/"]) == 0
    assert re.fullmatch(r"/a o _/: 0\.\d seconds of speech; --out speech.wav saves it\n", capsys.readouterr().out)
    for more, said in (
        (["--out", str(tmp_path / "a.mp4")], "expected a path that ends in .wav, .flac, .ogg, .html or .json"),
        (["--speed", "0"], "objective.speaking.speed=0.0: expected above 0"),
        (["--max_new_tokens", "3"], "ParallelSpeech does not generate text; leave it out"),
        (["--vocoder", str(tmp_path)], "config.json"),
    ):
        assert cli.main(["predict", str(run.folder), "/a/", *more]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_vocoder_makes_the_sound(run, vocoder):
    spoken = run.with_vocoder(*jf.import_hf(vocoder)).predict("/a o _/")
    frames = len(spoken.log_mel)
    assert len(spoken.samples) == frames * VOCODER.hop
    model, params = jf.import_hf(vocoder)
    expected = jax.jit(model.apply)({"params": params}, spoken.log_mel[None]).waveform[0]
    np.testing.assert_allclose(spoken.samples, expected, atol=1e-5)
    with pytest.raises(InputError, match="vocoder=FastSpeech2: is not a vocoder"):
        run.with_vocoder(run.model, run.params)
    other = Vocoder(HifiGan(), None)
    with pytest.raises(InputError, match="reads 80 mel bands per 256 samples at 16000 Hz; the model predicts 16 mel"):
        other([spoken.log_mel], tiny_speech.LOG_MEL)


SPEECH = Speech(
    "a <b>", 0.5, RATE, np.sin(np.arange(RATE // 2) / 9).astype(np.float32), np.zeros((4, 3)), (Mark("a", 0.0, 0.5),)
)


def test_speech_is_saved_in_the_format_of_the_path(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    for name in ("speech.wav", "speech.flac", "speech.ogg", "speech.html", "speech.json"):
        SPEECH.save(tmp_path / name)
    for name in ("speech.wav", "speech.flac"):
        assert np.abs(read_sound(tmp_path / name, RATE) - SPEECH.samples).max() < 1e-3
    assert soundfile.info(tmp_path / "speech.ogg").frames == RATE // 2
    assert "a &lt;b&gt; (0.5 s)" in (tmp_path / "speech.html").read_text() and "<audio" in SPEECH._repr_html_()
    said = json.loads((tmp_path / "speech.json").read_text())
    assert said == {"text": "a <b>", "seconds": 0.5, "rate": RATE, "marks": [{"text": "a", "start": 0.0, "end": 0.5}]}


def test_several_answers_are_a_folder_or_a_page(tmp_path):
    Speech.save_all([SPEECH, SPEECH], tmp_path / "folder")
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {"1.wav", "2.wav", "answers.json"}
    Speech.save_all([SPEECH, SPEECH], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("<audio") == 2
    with pytest.raises(InputError, match=r"2 texts; expected one, a folder, or a path that ends in \.html"):
        Speech.save_all([SPEECH, SPEECH], tmp_path / "speech.wav")


@pytest.fixture(scope="module")
def runs(run, tmp_path_factory):
    """Folders of runs: a recognizer that has learned one text, a classifier and the model that speaks."""
    pytest.importorskip("soundfile")
    home = tmp_path_factory.mktemp("assistant")
    found = {"listen": home / "listen", "think": home / "think", "speak": run.folder}
    ctc = jf.load("ctc_spoken_bible")
    listen = tiny_waveforms.shrunk(ctc) | dict.fromkeys(("data.train", "data.validation"), readings(home))
    listen |= {"steps": 60, "optimizer.schedule.peak": 1e-2, "optimizer.schedule.warmup": 5, "log.every": 20}
    jf.fit(config.override(ctc, listen), found["listen"], quiet=True)
    examples = [{"text": text, "label": label} for text, label in zip(("ab", "cd"), LABELS, strict=True)]
    (home / "labels.jsonl").write_text("\n".join(map(json.dumps, examples * 4)))
    stack = jf.layers.Transformer(16, 1, 2, dropout=0.0, attention_dropout=0.0, dtype="float32")
    think = jf.Experiment(
        model=jf.models.Classifier(jf.models.Bert(stack, vocab=None, max_length=16), LABELS),
        objective=jf.objectives.Classification(),
        data=jf.data.Data(
            train=jf.data.JsonLines((str(home / "labels.jsonl"),)),
            task=jf.data.Classify(labels=LABELS, length=16),
            batch=2,
        ),
        tokenizer=jf.tokenizers.WordPiece(60),
        optimizer=jf.optimizers.AdamW(),
        steps=2,
        mesh=jf.Mesh(1),
    )
    jf.fit(think, found["think"], quiet=True)
    return found


def readings(home):
    """Sounds that all have the same transcript."""
    paths = [small_whisper.wav(home / f"{number}.wav", 0.08, number) for number in range(8)]
    (home / "readings.jsonl").write_text("\n".join(json.dumps({"audio": path, "text": "ab"}) for path in paths))
    return jf.data.SoundManifest((str(home / "readings.jsonl"),))


@pytest.mark.slow
def test_trained_runs_are_chained_by_the_command(runs, tmp_path, capsys):
    question, replies = str(runs["listen"].parent / "0.wav"), tmp_path / "replies.json"
    replies.write_text(json.dumps(dict(zip(LABELS, ("/a o _/", "/o a _/"), strict=True))))
    base = ["assistant", "--listen", str(runs["listen"]), "--think", str(runs["think"]), "--replies", str(replies)]
    assert cli.main([*base, "--speak", str(runs["speak"]), question, "--out", str(tmp_path / "answer.wav")]) == 0
    heard, said = capsys.readouterr().out.splitlines()
    assert heard == "ab" and said.strip() in ("/a o _/", "/o a _/")
    members = [jf.open_run(runs[name]) for name in ("listen", "think", "speak")]
    answer = jf.Assistant(*members, json.loads(replies.read_text())).answer(question)
    assert (answer.path, answer.heard, answer.text) == (question, "ab", said.strip())
    assert (tmp_path / "answer.wav").read_bytes() == wav(answer.speech.samples, RATE)
    assert cli.main([*base, "--json", question, question]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"path": question, "heard": "ab", "text": said.strip(), "seconds": 0.0}] * 2
    (tmp_path / "text.txt").write_text("no sound")
    for arguments, said in (
        (["--think", "x"], "the following arguments are required: --listen"),
        (base[1:], "assistant: no question; give the path of a sound file"),
        ([*base[1:], "nothing.wav"], "nothing.wav: no such file or directory; give the path of a sound file"),
        ([*base[1:], question, str(tmp_path / "text.txt")], "text.txt: cannot be decoded as a sound"),
        ([*base[1:], question, "--out", "a.wav"], "--out a.wav: needs a run that speaks; set --speak"),
        ([*base[1:], question, "--out", "a.mp4"], "--out a.mp4: one answer; expected a path that ends in .wav"),
        ([*base[1:], question, question, "--out", "a.wav"], "several answers; expected a folder, or a path that ends"),
        ([*base[1:], question, "--vocoder", "x"], "--vocoder x: needs a run that speaks; set --speak"),
        ([*base[1:], question, "--speak", str(runs["think"])], "Classifier does not speak"),
        ([*base[1:], question, "--replies", "none.json"], "--replies none.json: No such file or directory"),
        ([*base[1:], question, "--replies", str(tmp_path / "text.txt")], "text.txt: not JSON: "),
        ([*base[1:3], "--think", str(runs["speak"]), question], "FastSpeech2 does not answer texts with texts"),
        (["--listen", str(tmp_path), *base[3:], question], "not a run's folder"),
    ):
        assert cli.main(["assistant", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert list(tmp_path.glob("a.*")) == []
    with pytest.raises(InputError, match="ParallelSpeech does not answer texts with texts"):
        next(members[2].reply("a text"))
