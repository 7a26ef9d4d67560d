"""The programs of examples/ run, on tiny models."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from tests.runs import tiny_rows, write_rows
from tests.tiny import save_tiny

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Teacher, student and rows; the working directory is the test's own."""
    monkeypatch.chdir(tmp_path)
    teacher, student = save_tiny("teacher", "llama", seed=1), save_tiny("student", "llama", layers=1, seed=2)
    return [str(teacher), str(student), str(write_rows(tmp_path / "rows.jsonl", tiny_rows()))]


def run(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a program, made to write short answers."""
    text = (EXAMPLES / name).read_text(encoding="utf-8").replace('"max_new_tokens": 64', '"max_new_tokens": 4')
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    monkeypatch.setattr("sys.argv", [name, *arguments])
    runpy.run_path(str(path), run_name="__main__")


def test_own_loop(inputs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("own_loop.py", [*inputs, "out"], monkeypatch)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stage ")]
    assert [line.split(", loss")[0] for line in told] == [
        "stage 0: 15 rows, temperature 1.0", "stage 1: 30 rows, temperature 2.0"]  # fmt: skip
    assert Path("out/model.safetensors").is_file()


@pytest.mark.slow
def test_own_objective(inputs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("own_objective.py", inputs, monkeypatch)
    assert "'srkl'" in capsys.readouterr().out


@pytest.mark.slow
def test_distill_and_look_at_it(
    inputs: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("distill.py", inputs, monkeypatch)
    assert "report: " in capsys.readouterr().out
    notebook = json.loads((EXAMPLES / "look_at_a_run.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), f"look_at_a_run.ipynb, {cell['id']}", "exec"), names)
    assert len(names["answers"]) == 3 and len(names["ranked"])  # type: ignore[arg-type]
