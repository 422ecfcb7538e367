"""The files that `muelle init` writes, and the names in them. Not for running anything of them.

A file `a/b.py.tmpl` becomes `a/b.py`; `{{name}}` and `{{module}}` become the project's name.
"""

from __future__ import annotations

from pathlib import Path

from muelle.core.errors import ConfigError, Conflict
from muelle.core.ids import is_model_name, to_model_name

TEMPLATES = ("fastapi", "flask", "sklearn", "python", "torch")
ENDING = ".tmpl"
_FOLDER = Path(__file__).parent
_LAYERS = {
    "fastapi": ("common", "sklearn", "fastapi"),
    "flask": ("common", "sklearn", "flask"),
    "sklearn": ("common", "sklearn"),
    "python": ("common", "python"),
    "torch": ("common", "torch"),
}
"""The folders of a template; a file of a later one comes in place of an earlier one's."""


def project_files(template: str, name: str) -> dict[str, str]:
    """Return the files of a project by relative path. Raise ConfigError for a wrong name."""
    if not is_model_name(name):
        raise ConfigError(
            f"{name!r} cannot be a model's name (a-z, 0-9, '.', '_' and '-', at most 63); perhaps "
            f"--name {to_model_name(name)}"
        )
    found: dict[str, str] = {}
    for layer in _LAYERS[template]:
        folder = _FOLDER / layer
        for path in sorted(folder.rglob(f"*{ENDING}")):
            inside = path.relative_to(folder).as_posix().removesuffix(ENDING)
            # Hidden files have another name here, so that no tool of ours takes them for its own.
            inside = inside.replace("dot-", ".", 1) if inside.startswith("dot-") else inside
            found[inside] = path.read_text("utf-8").replace("{{name}}", name)
    return found


def write_project(folder: Path, files: dict[str, str], *, force: bool) -> None:
    """Write the files. Raise Conflict, naming what is in the way, unless `force`."""
    there = [name for name in files if (folder / name).exists() or (folder / name).is_symlink()]
    if there and not force:
        raise Conflict(
            f"{folder}: {', '.join(there)} is there already; choose another folder, or --force to "
            "write over exactly these"
        )
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text, "utf-8")
