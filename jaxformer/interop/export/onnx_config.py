"""Writes the config files of exported ONNX models that the Hugging Face libraries transformers, optimum and
transformers.js read.
"""

from pathlib import Path

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.families import bridge_of, family_of_model
from jaxformer.interop.huggingface.folders import CONFIG, GENERATION, read_json, write_json
from jaxformer.interop.huggingface.generation_config import generation_fields
from jaxformer.interop.huggingface.image_runs import image_field_in
from jaxformer.interop.huggingface.images import write_preprocessor
from jaxformer.interop.huggingface.runs import export_run, obstacle, plan_of, read_origin
from jaxformer.interop.huggingface.text.tokenizer_folders import export_tokenizer
from jaxformer.predictors.labelled_texts import template_of
from jaxformer.runs.run import Run

LEFT_OUT = ("README.md", "*.safetensors", "*.safetensors.index.json")
"""File name patterns of the files in a Hugging Face export (README and weights) that are not copied to the folder with
the ONNX programs.
"""


def write_files(run: Run, folder: Path, programs: list[str]) -> str | None:
    """Writes config.json and the tokenizer files, and generation_config.json and the image processor file if the model
    needs them.

    Args:
      run: Run whose model is exported.
      folder: Existing folder to write to.
      programs: Names of the ONNX programs whose weights are in an external data file. config.json lists them for
        transformers.js.

    Returns:
      The reason why the transformers library cannot load the parameters of the run, or None if it can. If it cannot,
      config.json names the transformers class whose arguments and outputs match those of the programs.

    Raises:
      InputError: If the tokenizer or the image processing cannot be exported.
    """
    origin = read_origin(run.folder)
    problem = obstacle(run)
    try:
        family_of_model(run.model, origin and origin.architecture)
    except InputError as error:
        problem = str(error)
    if problem is None:
        source = folder / "huggingface"
        export_run(run, source, certificate=False)
        _keep(open_folder(source).path, folder)
    else:
        _describe(run, folder)
    config = read_json(folder / CONFIG)
    # transformers.js loads external data files only if the config names them.
    data = {f"{name}.onnx": True for name in programs}
    write_json(folder / CONFIG, config | {"transformers.js_config": {"use_external_data_format": data}})
    return problem


def _keep(source: Path, folder: Path) -> None:
    for path in source.iterdir():
        if not any(path.match(pattern) for pattern in LEFT_OUT):
            path.rename(folder / path.name)
        else:
            path.unlink()
    source.rmdir()


def _describe(run: Run, folder: Path) -> None:
    """Writes config.json, tokenizer and preprocessing files for a model whose parameters no class of the transformers
    library can load. config.json names the class whose arguments and outputs match those of the ONNX programs.
    """
    model, plan = run.model, plan_of(run)
    tokens = plan.special_tokens(model, run.tokenizer)
    config = bridge_of(model).config_for_onnx(model, run.objective) | tokens
    write_json(folder / CONFIG, config)
    if model.pixel_input is not None:
        write_preprocessor(folder, model, image_field_in(run.experiment.data.task))
    if run.tokenizer is not None:
        template = template_of(model, run.tokenizer)
        export_tokenizer(run.tokenizer, folder, config["model_type"], plan.add_bos, template)
    if (decoding := run.objective.decoding) is not None:
        known = {name: value for name, value in tokens.items() if value is not None}
        write_json(folder / GENERATION, known | generation_fields(decoding))
