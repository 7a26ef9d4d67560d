"""README and docs: every command is tried or says why not, every page that is to be followed is followed."""

from __future__ import annotations

import functools
import json
import re
import runpy
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from benchmarks import reference, sizes

from srd.base import console
from srd.base.errors import UserError
from srd.recipe.files import shipped_recipes
from srd.recipe.reading import load_recipe
from srd.run.context import Run
from tests.documents import PAGES, ROOT, Block, blocks_of, inline_commands
from tests.runs import in_turn, tiny_rows, write_rows
from tests.tiny import save_tiny

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
FOLLOWED = sorted({block.page for block in BLOCKS if block.mark == "run"})
#: Hub names on the pages and the tiny models that stand for them: family, layers, seed.
STAND_INS = {
    "Qwen/Qwen2.5-1.5B-Instruct": ("teacher-model", "qwen2", 4, 1),
    "Qwen/Qwen2.5-0.5B-Instruct": ("student-model", "qwen2", 2, 2),
}
#: What is made smaller on the pages, beside the models: tiny models know few tokens and few rows.
SMALLER = {
    r"max_new_tokens: \d+": "max_new_tokens: 4", r"max_new_tokens=\d+": "max_new_tokens=4",
    r"epochs: [2-9]": "epochs: 1", r"seeds: \[[^]]*\]": "seeds: [1]",
}  # fmt: skip


#: Behind `srd run` on pages whose recipe leaves all of this to its defaults.
SHORT = ["generation.max_new_tokens=4", "training.epochs=1", "evaluation.seeds=[1]"]


def test_every_command_is_tried_or_says_why_not() -> None:
    """A new block needs a comment above it: see tests/documents.py."""
    assert len(BLOCKS) > 60
    assert [block.place for block in BLOCKS if block.has_commands and not block.mark] == []


@pytest.mark.parametrize("mark", sorted({block.mark for block in BLOCKS if block.mark}))
def test_what_is_said_of_a_block_holds(mark: str) -> None:
    kind, _, said = mark.partition(": ")
    assert kind in ("run", "file", "test", "not run")
    if kind == "test":
        path, _, name = said.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")
    elif kind == "not run":
        assert len(said.split()) > 3, f"no reason: {said}"


@functools.cache
def command_line() -> Any:
    from srd.cli import app

    return typer.main.get_command(app)


@pytest.mark.parametrize(
    ("place", "command"), [(place, command) for page in PAGES for place, command in inline_commands(page)]
)
def test_commands_within_the_text_are_commands(place: str, command: str) -> None:
    """Those of ``srd`` name a command and its options, those of ``make`` a target, those of Python a module."""
    words = shlex.split(re.sub(r"[\[\]…|]", " ", command), comments=True)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert [word for word in words[1:] if word not in targets and "=" not in word] == [], place
    if words[:2] == ["python", "-m"] and words[2].startswith("benchmarks"):
        path = ROOT / words[2].replace(".", "/")
        assert path.with_suffix(".py").is_file() or path.is_dir(), place
    for start in [at for at, word in enumerate(words) if word == "srd" and (not at or words[at - 1] == "-m")]:
        check_options(words[start + 1 :], place)


def check_options(words: list[str], place: str) -> None:
    """Refuse a command that is none, and an option that it does not have."""
    known = command_line()
    if words[0].startswith("-"):
        assert words[0] in {name for parameter in known.params for name in parameter.opts}, place
        return
    assert words[0] in {*known.commands, "…", "NAME", "COMMAND"}, f"{place}: srd {words[0]}"
    options = {name for parameter in known.commands[words[0]].params for name in parameter.opts} | {"--help"}
    assert [word for word in words[1:] if word.startswith("-") and word.split("=")[0] not in options] == [], place


def test_commands_in_blocks_are_commands() -> None:
    for block in BLOCKS:
        text = block.text.replace("\\\n", " ")
        for line in text.splitlines() if block.language in ("", "bash", "sh", "console") else []:
            if line.strip().startswith("srd "):
                words = shlex.split(re.sub(r"[\[\]…|]", " ", line.split(" #")[0]), comments=True)
                check_options(words[1:], f"{block.place}: {line}")


def commands_on(text: str) -> Iterator[list[str]]:
    """The words of each command of srd that starts a line."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip().startswith("srd "):
            yield shlex.split(line, comments=True)[1:]


def test_what_commands_say_of_shipped_recipes_is_valid() -> None:
    """The fields that a page changes can be changed so; whether files are there is not asked."""
    texts = [(block.place, block.text) for block in BLOCKS if block.language in ("", "bash", "sh", "console")]
    texts += [each for page in PAGES for each in inline_commands(page)]
    tried = 0
    for place, words in ((place, words) for place, text in texts for words in commands_on(text)):
        if words[0] in ("run", "plan", "doctor") and len(words) > 1 and words[1] in shipped_recipes():
            fields = [word for word in words[2:] if re.match(r"[a-z][\w.]*=", word)]
            try:
                load_recipe(words[1], fields)
            except UserError as error:
                raise AssertionError(f"{place}: {error}") from error
            tried += bool(fields)
    assert tried > 5


class Reader:
    """Someone who follows a page in an empty folder, with tiny models in the place of large ones."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.patch = patch
        self.names: dict[str, Any] = {"__name__": "page"}
        for name, (place, family, layers, seed) in STAND_INS.items():
            assert name
            save_tiny(folder / place, family, layers=layers, seed=seed)

    def follow(self, block: Block) -> None:
        """Write the file that a block is, or run the commands or the Python in it."""
        text = block.text
        for name, (place, *_) in STAND_INS.items():
            text = text.replace(name, place)
        for pattern, smaller in SMALLER.items():
            text = re.sub(pattern, smaller, text)
        named = re.match(r"(?:# |\{?/\* )([\w./-]+\.\w+)\n", text)
        if block.mark and block.mark.startswith("file: "):
            (self.folder / block.mark.removeprefix("file: ")).write_text(text, encoding="utf-8")
        elif named:
            (self.folder / named[1]).write_text(text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(text, block.place, "exec"), self.names)
        else:
            for line in text.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    self.command(words, block.place)

    def command(self, words: list[str], place: str) -> None:
        if words[0] == "python":
            self.patch.setattr("sys.argv", words[1:])
            runpy.run_path(str(self.folder / words[1]), run_name="__main__")
            return
        assert words[0] == "srd", f"{place}: {words}"
        runs: list[Run] = []
        claim = Run.claim
        with self.patch.context() as patched:
            patched.setattr(Run, "claim", lambda run: (runs.append(run), claim(run))[1])
            from srd.cli import app

            short = SHORT if words[1] == "run" and place.startswith(("README", "docs/start")) else []
            app([*words[1:], *short], standalone_mode=False)
        for run in runs:
            run.close()


#: What a page takes for granted in the reader's folder.
GIVEN: dict[str, Callable[[Path], object]] = {
    "README.md": lambda folder: write_rows(folder / "train.jsonl", tiny_rows()),
    "docs/tutorials/chat.md": lambda folder: write_rows(folder / "chats.jsonl", chats()),
    "docs/tutorials/cleaning.md": lambda folder: write_rows(folder / "train.jsonl", tiny_rows() * 2),
}


def chats() -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]}
        for row in tiny_rows()
    ]


@pytest.mark.parametrize("page", in_turn(FOLLOWED, *[page for page in FOLLOWED if page == "docs/tutorials/chat.md"]))
def test_a_page_is_followed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console.console, "_width", 10_000)
    GIVEN.get(page, lambda folder: write_rows(folder / "train.jsonl", tiny_rows()))(tmp_path)
    reader = Reader(tmp_path, monkeypatch)
    for block in BLOCKS:
        if block.page == page and block.mark and block.mark.partition(":")[0] in ("run", "file"):
            reader.follow(block)
    for name in ("train.jsonl", "chats.jsonl"):
        for line in (tmp_path / name).read_text(encoding="utf-8").splitlines() if (tmp_path / name).exists() else []:
            json.loads(line)  # what the reader had is as it was


@pytest.mark.parametrize("name", sorted(reference.PAGES))
def test_the_reference_says_what_the_code_says(name: str) -> None:
    made = reference.PAGES[name]()
    assert (ROOT / "docs/reference" / name).read_text(encoding="utf-8") == made, "run: python -m benchmarks.reference"


def test_the_table_of_sizes_is_what_the_plan_says() -> None:
    lines = (ROOT / "docs/howto/sizes.md").read_text(encoding="utf-8").splitlines()
    (teacher, student, found), *_ = sizes.needs(sizes.PAIRS[:1])
    row = f"| {teacher} | {student} | {' | '.join(map(sizes.fits, found.values()))} |"
    assert row in lines, "run: python -m benchmarks.sizes"


def test_every_page_is_in_the_navigation_and_every_link_leads_somewhere() -> None:
    """What `make docs` refuses too, seen without it."""
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"([\w./-]+\.md)$", site, re.MULTILINE))
    assert named == {str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")}
    for page in PAGES:
        text = re.sub(r"```.*?```|`[^`]+`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            place = link.partition("#")[0]
            assert re.match(r"https?:", link) or not place or (page.parent / place).exists(), f"{page.name}: {link}"


def test_the_readme_is_short_and_every_public_name_is_in_the_reference() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120
    import srd

    shown = set(re.findall(r"^::: srd\.(\w+)$", (ROOT / "docs/reference/api.md").read_text(), re.MULTILINE))
    assert {name for name in srd.__all__ if name[0].islower()} - {"integrations"} <= shown
