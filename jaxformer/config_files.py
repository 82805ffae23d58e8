"""Config files: finds them by path, or by name if they come with jaxformer, and writes a new one."""

import difflib
import os
import re
from pathlib import Path

from jaxformer.errors import InputError

PACKAGE = Path(__file__).parent
TEMPLATE = PACKAGE / "config_template.py"


def named() -> dict[str, Path]:
    """Returns the paths of the config files that come with jaxformer, keyed by config name, such as `bert_quickstart`.
    The files are in the Git checkout or in the installed package.
    """
    installed = PACKAGE / "configs"
    folder = installed if installed.is_dir() else PACKAGE.parent / "configs"
    return {file.stem: file for file in sorted(folder.glob("*.py"))}


def locate(path: str | os.PathLike) -> Path:
    """Returns the path of a config file, given this path or the name of a config that comes with jaxformer, such as
    `bert_quickstart`. A file takes precedence over a config of the same name.

    Raises:
      InputError: If there is no config of this name.
    """
    name, configs = os.fspath(path), named()
    if not re.fullmatch(r"[\w-]+", name) or Path(path).is_file():
        return Path(path)
    if name in configs:
        return configs[name]
    if Path(path).exists():  # A folder.
        return Path(path)
    files = {file.stem: str(file) for file in Path().glob("*.py")}
    nearest = difflib.get_close_matches(name, [*files, *configs], 1)
    perhaps = files.get(nearest[0], nearest[0]) if nearest else f"one of {', '.join(configs)}"
    raise InputError(f"{name}: no such config file or config of jaxformer; perhaps {perhaps}")


def write_new(name: str) -> Path:
    """Writes a commented config to start from.

    Args:
      name: the file's path, with or without `.py`.

    Returns:
      The path of the file.

    Raises:
      InputError: If the file exists or cannot be written.
    """
    path = Path(name if name.endswith(".py") else f"{name}.py")
    text = TEMPLATE.read_text(encoding="utf-8").replace("config_template.py", str(path))
    text = text.replace("config_template", path.stem)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{path}: already exists; expected the name of a new file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    return path
