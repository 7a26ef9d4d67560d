"""What a name in a recipe stands for: content, not the name. One rule for every step, for plans and for sweeps."""

from __future__ import annotations

import contextlib
import glob
import platform
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from srd.base.code import HANDED
from srd.base.errors import UserError
from srd.base.files import content_of, fingerprint
from srd.base.plugins import plugin_files
from srd.base.text import texts_in
from srd.data.settings import SourceConfig
from srd.evaluation.settings import TaskConfig
from srd.models.loading.sources import model_fingerprint
from srd.models.settings import ModelConfig
from srd.recipe.schema import Recipe
from srd.tasks.base import data_set_of, get_task


def name_content(name: str) -> Any:
    """The content of a file, of a folder, or of the files that a pattern matches; of a data set's hub name its commit.

    The name is as the recipe has it; ``~`` is the home folder.
    """
    path = Path(name).expanduser()
    if path.exists():
        return content_of(path)
    if glob.has_magic(name):
        return {found: content_of(Path(found)) for found in sorted(glob.glob(str(path), recursive=True))}
    return _data_set_commit(name.partition(":")[0])


def _data_set_commit(name: str, revision: str | None = None) -> str | None:
    """The commit that a data set's hub name stands for now; that of the local cache where the hub is out of reach."""
    from huggingface_hub import HfApi, constants

    with contextlib.suppress(Exception):  # no network, no such name: reading it will say what is wrong
        return HfApi().repo_info(name, repo_type="dataset", revision=revision, timeout=10).sha
    cached = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}" / "refs" / (revision or "main")
    return cached.read_text(encoding="utf-8").strip() if cached.is_file() else None


def source_identity(source: SourceConfig | None) -> Any:
    """What decides the rows of a source: its settings, and the content of what it names."""
    if source is None:
        return None
    known, paths = data_set_of(source), source.paths
    made_here = known is not None and known.made  # from the running Python
    contents = [platform.python_version()] if made_here else [name_content(path) for path in paths]
    settings = source.model_dump(exclude={"path", *(() if source.config else ("config",))})
    names = [Path(path).name for path in paths]  # ids that are made up carry the file's name
    return [settings, names, contents]


def model_identity(model: ModelConfig) -> str:
    """What decides what a model says: the content of its folder or file, or its commit, and of its adapter."""
    if endpoint := getattr(model, "endpoint", None):  # its weights are not seen: its address or revision counts
        return fingerprint("served", str(model.model), *([model.revision] if model.revision else ["at", endpoint]))
    content = model_fingerprint(str(model.model), revision=model.revision, adapter=model.adapter)
    bits = [bits] if (bits := getattr(model, "bits", None)) else []
    return fingerprint(content, model.dtype, model.attn_implementation, model.trust_remote_code, *bits)


def task_identity(task: TaskConfig) -> Any:
    """What decides a benchmark's rows."""
    known = get_task(task.name)
    if task.path:
        content = name_content(task.path)
    elif known.hub is not None:
        content = _data_set_commit(known.hub.repository, known.hub.revision)
    else:
        content = platform.python_version()
    return [task.model_dump(exclude={"path"}), content]


def plugins_identity(recipe: Recipe, section: BaseModel | None = None, *kinds: str, but: str = "") -> list[Any]:
    """The sources of the user's own modules, and the code that the recipe names and that was registered elsewhere.

    Args:
        recipe: Names the modules.
        section: The part of it that counts, where only what is named there matters.
        kinds: Of what is registered; nothing where none of these is named.
        but: What is registered of this kind does not count, nor a file that registers nothing else.
    """
    named = set(texts_in((section or recipe).model_dump(mode="json"))) if HANDED else set()
    counted = [key for key in sorted(HANDED) if key[0] != but and (not kinds or key[0] in kinds)]
    used = {key: HANDED[key] for key in counted if key[1] in named}
    places = {each.place for each in used.values()}
    plugins = [each for each in map(plugin_files, recipe.plugins) if not kinds or places & set(map(str, each))]
    files = [[file for file in plugin if not _registers_only(but, file)] for plugin in plugins]
    listed = {str(file) for plugin in files for file in plugin}
    elsewhere = [[*key, *handed.code] for key, handed in used.items() if handed.place not in listed]
    return [[content_of(file) for file in plugin] for plugin in files if plugin] + elsewhere


def _registers_only(kind: str, file: Path) -> bool:
    """Whether all that a file registers is of one kind."""
    return {each for (each, _), handed in HANDED.items() if handed.place == str(file)} == {kind}


def recipe_identity(recipe: Recipe) -> list[Any]:
    """What decides a run's results beside its recipe: the content of everything that the recipe names."""
    data = recipe.data
    return [
        [source_identity(source) for source in (data.train, data.validation, data.test)],
        [model_identity(model) for model in (*recipe.all_teachers, recipe.student) if model.model],
        [task_identity(task) for task in recipe.evaluation.tasks],
        plugins_identity(recipe),
    ]


def _matching(name: str) -> list[str]:
    """A path as it is, or the paths that a pattern matches."""
    path = Path(name).expanduser()
    return sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(name) and not path.exists() else [name]


def named_paths(recipe: Recipe) -> dict[str, Path]:
    """Every file or folder that a recipe names as an input, by the field that names it."""
    return {field: path for field, path in _named(recipe).items() if path.exists()}


def check_begun_here(recipe: Recipe, begun_in: str | None) -> None:
    """Refuse relative names that led to something in the folder where a run was begun, and lead nowhere in this one.

    Raises:
        UserError: with the first of them, and where it leads.
    """
    for field, path in _named(recipe).items() if begun_in else ():
        there = Path(str(begun_in), path)
        if not path.exists() and there.exists():
            raise UserError(
                f"{field} is '{path}', which is not to be found from this folder, but from {begun_in}, where the run "
                f"was begun. Go there, or give {field}={there}"
            )


def _named(recipe: Recipe) -> dict[str, Path]:
    """What a recipe names as an input, as a path, whether it is there or not."""
    data = recipe.data
    found: dict[str, str | None] = {}
    for part in ("train", "validation", "test"):
        source = getattr(data, part)
        names = [source.path] if source and isinstance(source.path, str) else (source and source.path) or []
        names = [each for name in names for each in _matching(name)]
        field = f"data.{part}"
        found.update({field if len(names) == 1 else f"{field}[{i}]": name for i, name in enumerate(names)})
    names = [f"teachers[{i}]" for i in range(len(recipe.teachers))] or ["teacher"]
    roles: dict[str, ModelConfig] = {**dict(zip(names, recipe.all_teachers, strict=True)), "student": recipe.student}
    for role, model in ((role, model) for role, model in roles.items() if model in recipe.models_here):
        found.update({f"{role}.model": model.model, f"{role}.adapter": model.adapter})
    found.update({f"{role}.tokenizer": getattr(model, "tokenizer", None) for role, model in roles.items()})
    found.update({f"evaluation.tasks[{i}].path": task.path for i, task in enumerate(recipe.evaluation.tasks)})
    found.update({f"data.cleaning.{field}": getattr(data.cleaning, field) for field in ("keep", "drop")})
    found.update({f"plugins[{i}]": name for i, name in enumerate(recipe.plugins)})
    return {field: Path(str(name)).expanduser() for field, name in found.items() if name}
