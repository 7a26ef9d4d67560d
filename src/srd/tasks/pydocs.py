"""Questions and answers from the standard library's own documentation: a data set that is on every machine.

"What does `os.path.join` do?" is answered by the first paragraph of its docstring. Modules written in Python
are parsed, not imported, so nothing of them runs; of modules written in C a fixed list is read from memory.
For one version of Python the rows are the same on every platform, but for modules that it was built without.
As a benchmark: ROUGE-L and exact match on the held-out tenth.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from rapidfuzz import fuzz, process

from srd.base.errors import RunError
from srd.data.examples import examples_from_rows, split_by_group
from srd.tasks.base import PUBLISHED, register_task
from srd.tasks.instruction import InstructionTask

LONGEST_ANSWER = 400  # characters
SKIPPED_MODULES = frozenset(
    [
        "antigravity",
        "distutils",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "ntpath",
        "nturl2path",
        "pydoc_data",
        "site",
        "sitecustomize",
        "test",
        "tests",
        "this",
        "tkinter",
        "turtle",
        "turtledemo",
        "usercustomize",
        "venv",
    ]
)
# Modules whose content is documented under another name.
PUBLIC_NAMES = {
    "posixpath": "os.path",
    "_collections_abc": "collections.abc",
    "_pydecimal": "decimal",
    "_pydatetime": "datetime",
    "_pyio": "io",
    "pathlib._local": "pathlib",
}
# Modules with content written in C that is the same on every platform, all safe to import.
COMPILED_MODULES = (
    "array",
    "atexit",
    "binascii",
    "bisect",
    "builtins",
    "cmath",
    "codecs",
    "collections",
    "contextvars",
    "csv",
    "datetime",
    "decimal",
    "errno",
    "faulthandler",
    "functools",
    "gc",
    "heapq",
    "io",
    "itertools",
    "json",
    "marshal",
    "math",
    "operator",
    "pickle",
    "random",
    "re",
    "string",
    "struct",
    "time",
    "unicodedata",
    "weakref",
    "zlib",
)
# What exists, or exists under this name, on some platforms only.
PLATFORM_DEPENDENT = re.compile(
    r"WindowsError|time\.(clock_|pthread_|tzset).*|codecs\.(mbcs_|oem_|code_page_).*|faulthandler\.(un)?register"
)
QUESTIONS = {
    "module": "What is the module `{}` for?",
    "class": "What does the class `{}` represent?",
    "function": "What does `{}` do?",
    "method": "What does the method `{}` do?",
    "property": "What does the property `{}` hold?",
}

SIGNATURE = r"[A-Za-z_][\w.]*\([^()]*(?:\([^()]*\)[^()]*)*\)"
SIGNATURE_LINE = re.compile(rf"{SIGNATURE}\s*(->((?!--)[^.])*)?:?")
SIGNATURE_PREFIX = re.compile(rf"{SIGNATURE}\s*(->\s*[\w, ()\[\]|]+?)?\s*(--|[.:]\s)\s*(?=\S)")
MARKUP = re.compile(r"(>>>|:\w+|@\w+|[-=*#]{3,}|\.\. )")

# Answers are near duplicates from this similarity of their sorted words on (rapidfuzz's ratio, 0 to 100).
NEAR_DUPLICATE = 80.0


@dataclass(frozen=True)
class _Entry:
    """One documented thing."""

    kind: str
    name: str
    docstring: str


def load_pydocs() -> list[dict[str, str]]:
    """Read the questions and answers, sorted by the qualified name of what is asked about.

    Returns:
        Rows with `id`, `instruction`, `input` (""), `output`, `kind` (one of `QUESTIONS`) and `group`; rows
        of one group have the same or nearly the same answer.

    Raises:
        RunError: this Python has no standard library in source form.
    """
    return [dict(row) for row in documented_rows()]


@functools.cache
def documented_rows() -> list[dict[str, str]]:
    """The rows of `load_pydocs`, read once."""
    entries: dict[str, _Entry] = {}
    for entry in [*_parsed_entries(), *_compiled_entries()]:
        # What a module defines in Python comes first, and its accelerated twin is left out.
        entries.setdefault(entry.name, entry)
    rows = []
    for name in sorted(entries):
        answer = first_paragraph(entries[name].docstring)
        if not _is_answer(answer):
            continue
        question = QUESTIONS[entries[name].kind].format(name)
        rows.append({"id": f"pydocs-{name}", "instruction": question, "input": "", "output": answer})
        rows[-1]["kind"] = entries[name].kind
    for row, group in zip(rows, _groups([row["output"] for row in rows]), strict=True):
        row["group"] = rows[group]["id"]
    return rows


def pydocs_splits(seed: int) -> DatasetDict:
    """Split the questions into train and tenths for validation and test, near duplicates of an answer together."""
    rows = load_pydocs()
    sizes = dict.fromkeys(("validation", "test"), round(0.1 * len(rows)))
    indices = split_by_group([row["group"] for row in rows], sizes, seed)
    examples = examples_from_rows(rows, "pydocs")
    return DatasetDict({name: examples.select(chosen) for name, chosen in indices.items() if len(chosen)})


# ------------------------------------------------------------------------------------------ modules in Python


def _parsed_entries() -> Iterator[_Entry]:
    root = Path(sysconfig.get_paths()["stdlib"])
    # Of the library alone: what is installed beside it is many times as much.
    places = [root / name for name in sys.stdlib_module_names]
    paths = [path for place in places for path in (place.with_suffix(".py"), *place.rglob("*.py")) if path.is_file()]
    modules = {name: path for path in paths if (name := _module_name(path.relative_to(root))) is not None}
    if not modules:
        raise RunError(f"data set 'pydocs' needs the sources of the standard library, but {root} has none")
    for name in sorted(modules):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old escapes in docstrings, which the user cannot change
            tree = ast.parse(modules[name].read_bytes())
        public = PUBLIC_NAMES.get(name, name)
        docstring = ast.get_docstring(tree)
        if docstring and public == name:
            yield _Entry("module", name, docstring)
        yield from _definitions(tree.body, public, inside_class=False)


def _module_name(path: Path) -> str | None:
    """Return the dotted name of a module file, or None if it is private, a test or not of the library."""
    parts = list(path.with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    name = ".".join(parts)
    if name in PUBLIC_NAMES:
        return name
    is_standard = bool(parts) and parts[0] in sys.stdlib_module_names
    is_hidden = any(part.startswith("_") or part in SKIPPED_MODULES for part in parts)
    is_code_table = name.startswith("encodings.")
    return name if is_standard and not is_hidden and not is_code_table else None


def _definitions(body: Sequence[ast.stmt], prefix: str, *, inside_class: bool) -> Iterator[_Entry]:
    """Walk over public classes, functions and methods, also under `if` and `try`, not inside functions."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            handlers = [statement for handler in getattr(node, "handlers", []) for statement in handler.body]
            inner = [*node.body, *handlers, *node.orelse, *getattr(node, "finalbody", [])]
            yield from _definitions(inner, prefix, inside_class=inside_class)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
            name = f"{prefix}.{node.name}"
            docstring = ast.get_docstring(node)
            if docstring:
                yield _Entry(_kind_of(node, inside_class), name, docstring)
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node.body, name, inside_class=True)


def _kind_of(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, inside_class: bool) -> str:
    if isinstance(node, ast.ClassDef):
        return "class"
    if not inside_class:
        return "function"
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return "property" if decorators & {"property", "cached_property"} else "method"


# ----------------------------------------------------------------------------------------------- modules in C


def _compiled_entries() -> Iterator[_Entry]:
    for module_name in COMPILED_MODULES:
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue  # zlib and a few others are optional when Python is built
        if not getattr(module, "__file__", None) and module.__doc__:
            yield _Entry("module", module_name, module.__doc__)
        prefix = "" if module is builtins else f"{module_name}."
        for name, value in sorted(vars(module).items()):
            qualified = f"{prefix}{name}"
            is_public = not name.startswith("_") and not PLATFORM_DEPENDENT.fullmatch(qualified)
            if is_public and _belongs_to(value, module_name):
                yield from _compiled_members(value, qualified)


def _belongs_to(value: Any, module_name: str) -> bool:
    """Whether a member is written in C and defined in this module or its accelerator."""
    if inspect.isclass(value):
        is_compiled = not value.__flags__ & (1 << 9)  # Py_TPFLAGS_HEAPTYPE, as of classes made in Python
        is_compiled = is_compiled or not any(inspect.isfunction(member) for member in vars(value).values())
    else:
        is_compiled = inspect.isbuiltin(value)
    home = getattr(value, "__module__", None) or ""
    return is_compiled and home.lstrip("_") == module_name


def _compiled_members(value: Any, name: str) -> Iterator[_Entry]:
    kind = "class" if inspect.isclass(value) else "function"
    if isinstance(value.__doc__, str):
        yield _Entry(kind, name, value.__doc__)
    if kind == "class":
        for member_name, member in sorted(vars(value).items()):
            kind = "method" if callable(member) or isinstance(member, classmethod | staticmethod) else "property"
            if not member_name.startswith("_") and isinstance(member.__doc__, str) and _has_own_docstring(member):
                yield _Entry(kind, f"{name}.{member_name}", member.__doc__)


def _has_own_docstring(member: Any) -> bool:
    """Tell a documented member from a value (a number, say) that shows the docstring of its type."""
    return inspect.isroutine(member) or inspect.isdatadescriptor(member)


# ------------------------------------------------------------------------------------------------ the answers


def first_paragraph(docstring: str) -> str:
    """Return the first paragraph that is not just a signature, on one line; "" if there is none."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        lines = [line.strip() for line in paragraph.splitlines()]
        while lines and (not lines[0] or SIGNATURE_LINE.fullmatch(lines[0])):
            lines.pop(0)
        text = " ".join(" ".join(lines).split())
        text = SIGNATURE_PREFIX.sub("", text, count=1) if SIGNATURE_PREFIX.match(text) else text
        if text:
            return text
    return ""


def _is_answer(text: str) -> bool:
    return (
        len(text) <= LONGEST_ANSWER
        and len(re.findall(r"[A-Za-z]{2,}", text)) >= 2
        and " " in text
        and not MARKUP.match(text)
        and text.isprintable()
    )


def _groups(answers: Sequence[str]) -> list[int]:
    """Give each answer the number of the first answer of its group of near duplicates (transitively)."""
    ordered = [" ".join(sorted(re.findall(r"[a-z0-9]+", answer.lower()))) for answer in answers]
    groups = list(range(len(answers)))
    members = {index: [index] for index in groups}
    for start in range(0, len(ordered), 500):  # in slices, as the whole table would take the square of the rows
        # Each pair once; what is less alike is 0, which is known without comparing to the end.
        rest = ordered[start:]
        similarity = process.cdist(rest[:500], rest, scorer=fuzz.ratio, dtype=np.float32, score_cutoff=NEAR_DUPLICATE)
        for left, right in np.argwhere(similarity > 0).tolist():
            first, second = sorted((groups[start + left], groups[start + right]))
            if first != second:
                moved = members.pop(second)
                members[first] += moved
                for index in moved:
                    groups[index] = first
    return groups


# ------------------------------------------------------------------------------------------------ the task

# The split has to be the one that training used, and training's default seed is 0.
SPLIT_SEED = 0


@dataclass(frozen=True)
class PydocsTask(InstructionTask):
    """ROUGE-L and exact match on the held-out tenth of the standard library's docstrings."""

    def make(self, seed: int) -> DatasetDict:
        """Make the splits from the installed Python."""
        return pydocs_splits(seed)

    def examples(self, path: Path | None = None, limit: int | None = None) -> Dataset:
        """Make the test split from the installed Python, or read a file where one is given."""
        if path is not None:
            return super().examples(path, limit)
        examples = pydocs_splits(SPLIT_SEED)["test"]
        return examples.select(range(min(limit, len(examples)))) if limit is not None else examples


PYDOCS = PydocsTask(
    name="pydocs",
    title="pydocs",
    licence="PSF-2.0",
    source="docstrings of the installed Python's standard library",
    primary="rouge_l",
    splits=PUBLISHED,
)
register_task("pydocs")(PYDOCS)
