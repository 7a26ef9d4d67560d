"""The commands and code of README and docs: where each block stands, and what is said of how it is tried.

Above a block stands a comment, or at the top of a page one for all of its blocks:

    <!-- run -->                                  the blocks of the page are run in order, on tiny stand-ins
    <!-- file: rows.jsonl -->                     likewise, and the block is written to that file first
    <!-- test: tests/test_cli.py::test_name -->   that test runs it
    <!-- not run: the reason -->                  nothing runs it, and why
    <!-- page: one of these -->                   for every block below that has no comment of its own

A block that holds no command and no Python needs none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PROGRAMS = (
    "srd", "python", "python3", "pip", "make", "torchrun", "accelerate", "dvc", "git", "ollama", "tensorboard", "trl",
    "axolotl", "lm_eval", "llamafactory-cli", "litgpt", "vllm", "docker", "wandb", "mlflow", "trackio", "hf",
)  # fmt: skip
COMMAND = re.compile(rf"^\s*(?:\$ )?(?:[A-Z_]+=\S+ +)*(?:{'|'.join(PROGRAMS)})(?: |$)")
COMMENT = re.compile(r"^\s*<!-- (.*?) -->\s*$")


@dataclass(frozen=True)
class Block:
    """A block of code on a page: its language, its text, and the comment that says how it is tried."""

    page: str
    line: int
    language: str
    text: str
    mark: str | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def has_commands(self) -> bool:
        return self.language == "python" or any(COMMAND.match(line) for line in self.text.splitlines())


def blocks_of(path: Path) -> list[Block]:
    """The blocks of a page, fenced and indented ones."""
    lines = path.read_text(encoding="utf-8").splitlines()
    page, whole, found = str(path.relative_to(ROOT)), None, []
    mark: str | None = None
    number = 0
    while number < len(lines):
        line = lines[number]
        start = number
        number += 1
        if comment := COMMENT.match(line):
            mark = comment[1]
            if mark.startswith("page: "):
                whole, mark = mark.removeprefix("page: "), None
        elif fence := re.match(r"( *)(`{3,})(\S*)", line):
            end = next(i for i in range(number, len(lines)) if lines[i].strip() == fence[2])
            text = "\n".join(each.removeprefix(fence[1]) for each in lines[number:end]) + "\n"
            found.append(Block(page, start + 1, fence[3], text, mark or whole))
            number, mark = end + 1, None
        elif line.startswith("    ") and (start == 0 or not lines[start - 1].strip()):
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                number += 1
            text = "\n".join(each[4:] for each in lines[start:number]) + "\n"
            found.append(Block(page, start + 1, "", text, mark or whole))
            mark = None
        elif line.strip():
            mark = None
    return found


def inline_commands(path: Path) -> list[tuple[str, str]]:
    """``(place, command)`` of what stands between backticks in running text and is a command."""
    text = re.sub(r"^( *)(`{3,}).*?^\1\2$", lambda match: "\n" * match[0].count("\n"), path.read_text(encoding="utf-8"),
                  flags=re.MULTILINE | re.DOTALL)  # fmt: skip
    page = path.relative_to(ROOT)
    return [
        (f"{page}:{text.count(chr(10), 0, match.start()) + 1}", match[1].replace("\n", " "))
        for match in re.finditer(r"`([^`]+)`", text)
        if COMMAND.match(match[1]) and " " in match[1]
    ]
