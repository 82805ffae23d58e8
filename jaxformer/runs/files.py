"""Reads the experiment and the tokenizer in a run's folder, and checks that they match their digests."""

from pathlib import Path

from jaxformer import digests, storage
from jaxformer.data.tokenizers import Tokenizer, load_tokenizer
from jaxformer.data.tokenizers.loading import saved
from jaxformer.errors import InputError
from jaxformer.runs.folder import EXPERIMENT, TOKENIZER


def experiment_text(folder: Path) -> str:
    """Returns the JSON of a run's experiment, without its digest.

    Raises:
      InputError: If the folder does not contain a run, or the file does not match its digest. A file without a digest
        counts as edited on purpose and is accepted.
    """
    if storage.is_remote(folder):
        storage.check_bucket(folder)
    path = folder / EXPERIMENT
    try:
        text = storage.read_bytes(str(path)).decode()
        return digests.unseal(text) if digests.is_sealed(text) else text
    except OSError as error:
        reason = f"{EXPERIMENT}: {error.strerror or 'no such object'}" if folder.exists() else "there is no such folder"
        raise InputError(f"{folder}: not a run's folder: {reason}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text, at byte {error.start}") from error
    except digests.Mismatch as error:
        raise InputError(
            f"{path}: damaged: {error}; put a good copy back, or remove the line {digests.FIELD!r} if you have edited "
            "the file"
        ) from error


def seal_tokenizer(folder: Path) -> None:
    """Writes the digests of the files of a new tokenizer to its folder."""
    # Of the content, also in a bucket: the files are few and small, and a run may be copied to another storage.
    names = [path.name for path in folder.iterdir() if path.name != digests.DIGESTS]
    digests.write(folder, {name: digests.of_file(folder / name) for name in names})


def read_tokenizer(home: Path) -> Tokenizer:
    """Loads the tokenizer in a run's folder. Raises InputError if the tokenizer is missing or damaged."""
    folder = home / TOKENIZER
    check_tokenizer_files(folder)
    return load_tokenizer(str(folder))


def check_tokenizer_files(folder: Path) -> None:
    """Raises InputError if a file in the folder of a run's tokenizer does not match its digest."""
    if not saved(str(folder)):
        return  # `load_tokenizer` says what is missing.
    try:
        wrong = digests.problems(folder, digests.read(folder))
    except digests.Mismatch as error:
        wrong = [str(error)]
    if wrong:
        raise InputError(f"{folder}: damaged: {digests.summary(wrong)}; put a good copy back")
