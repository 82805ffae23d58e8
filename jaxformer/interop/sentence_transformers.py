"""The files beside an encoder that say how its vectors become one of a sentence, as sentence-transformers has them."""

import json
from pathlib import Path

from jaxformer.errors import InputError
from jaxformer.interop.folders import read_json, write_json
from jaxformer.models.bert import Bert
from jaxformer.objectives.sentence_embedding import SentenceEmbedding

MODULES = "modules.json"
POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
KINDS = ("Transformer", "Pooling", "Normalize")


def read(folder: Path, model: Bert) -> SentenceEmbedding:
    """What the folder says of sentences' vectors; the mean of its tokens' where it says nothing.

    Raises:
      InputError: modules or ways of pooling that are not here.
    """
    if not (folder / MODULES).is_file():
        return SentenceEmbedding(normalized=False)
    try:
        modules = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        kinds = {str(module["type"]).rpartition(".")[2]: str(module["path"]) for module in modules}
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{folder / MODULES}: expected a list of modules, each with type and path") from error
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise InputError(f"{folder / MODULES}: {unknown[0]} is not supported; expected {', '.join(KINDS)} alone")
    longest = None
    if (folder / "sentence_bert_config.json").is_file():
        longest = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    pooling = _pooling(folder, kinds.get("Pooling", "1_Pooling"))
    return SentenceEmbedding(pooling, "Normalize" in kinds, longest)


def _pooling(folder: Path, name: str) -> str:
    path = folder / name / "config.json"
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise InputError(f"{folder / MODULES}: names {name!r}, which is outside of the folder; refused")
    said = read_json(path)
    used = [field for field, value in said.items() if field.startswith("pooling_mode") and value is True]
    if len(used) != 1 or used[0] not in POOLINGS:
        raise InputError(f"{path}: {' and '.join(used) or 'no pooling'}: expected one of {', '.join(POOLINGS)}")
    return POOLINGS[used[0]]


def write(folder: Path, objective: SentenceEmbedding, model: Bert) -> None:
    """Writes the same, where the pooling is one of theirs."""
    names = {ours: theirs for theirs, ours in POOLINGS.items()}
    if objective.pooling not in names:
        return
    kinds = KINDS if objective.normalized else KINDS[:2]
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{kind}" if number else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    (folder / MODULES).write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
    longest = objective.longest or model.positions
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})
    for number, kind in enumerate(kinds[1:], 1):
        (folder / f"{number}_{kind}").mkdir()
    config = {field: ours == objective.pooling for field, ours in POOLINGS.items()}
    config |= {"word_embedding_dimension": model.transformer.width}
    write_json(folder / "1_Pooling" / "config.json", config)
