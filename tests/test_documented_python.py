"""The Python on the documentation's pages runs, and the plugins on them work together in one recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

import srd
from tests.runs import TinyRun, tiny_rows, write_rows
from tests.tiny import brief, save_tiny, tiny_model, tiny_tokenizer

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page: str) -> list[str]:
    """The Python on a page."""
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_page_on_python_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny("teacher-model", "llama", seed=1)
    save_tiny("student-model", "llama", seed=2)
    brief(tiny_model("llama", seed=2)).save_pretrained("student-model")
    rows = tiny_rows()[:16]
    write_rows(tmp_path / "few_rows.jsonl", rows[:2])
    recipe = (
        TinyRun(tmp_path)
        .set(training__method={"name": "sft"}, training__curriculum=None, evaluation__seeds=[1])
        .write_recipe()
    )
    recipe.rename(tmp_path / "recipe.yaml")
    names: dict[str, Any] = {
        "rows": rows, "few_rows": rows[:2], "teacher": tiny_model("llama", seed=1),
        "student_logits": torch.randn(3, 5), "teacher_logits": torch.randn(3, 5),
    }  # fmt: skip
    for number, block in enumerate(blocks("python.md")):
        block = block.replace('"max_new_tokens": 64', '"max_new_tokens": 4')
        exec(compile(block, f"python.md, block {number}", "exec"), names)
    assert names["result"].run_dir == Path("runs/one") and len(names["stages"]) == 3 and names["cache"].places
    assert (tmp_path / "student" / "tokenizer.json").is_file()


def test_the_page_on_other_trainers_runs() -> None:
    (block,) = [block for block in blocks("extending.md") if "srd.reflect" in block]
    seen: list[Any] = []
    names = {
        "student": brief(tiny_model("llama")), "tokenizer": tiny_tokenizer("llama"), "rows": tiny_rows()[:8],
        "train_on": lambda ids, **settings: seen.append(ids),
    }  # fmt: skip
    exec(compile(block, "extending.md", "exec"), names)
    assert [len(ids) for ids in seen] == [2, 4, 6]


def test_the_plugins_on_the_page_work_together(tmp_path: Path) -> None:
    """A divergence, score, method, teacher, template, task, detector and fusion, and no other file touched."""
    plugins = {}
    for block in blocks("extending.md"):
        if named := re.match(r"# (\w+\.py)\n", block):
            path = tmp_path / named[1]
            path.write_text(block, encoding="utf-8")
            plugins[path.stem] = str(path)
    assert set(plugins) >= {
        "hellinger",
        "long_and_surprising",
        "often_own",
        "cautious",
        "terse",
        "brief",
        "short",
        "first_word",
    }
    few = str(write_rows(tmp_path / "few.jsonl", tiny_rows()[:1]))
    tiny = TinyRun(tmp_path).set(
        plugins=list(plugins.values()), teacher__source="cautious", data__template="terse",
        training__objective={"name": "hellinger", "floor": 0.001},
        training__method={"name": "often_own", "max_new_tokens": 4},
        training__curriculum={"stages": 1, "score": ["fused", "long_and_surprising"], "fusion": "median_rank"},
        data__cleaning={"action": "report", "find": ["short"]},
        evaluation__tasks=[{"name": "brief", "path": few}, {"name": "first_word", "path": few}],
        evaluation__seeds=[1],
    )  # fmt: skip
    result = srd.run(tiny.recipe, run_dir=tiny.run_dir)
    assert 0 <= result.metrics["srd"]["brief"]["brief"]["mean"] <= 100
    ranked = pandas.read_parquet(tiny.run_dir / "curriculum" / "ranked.parquet")
    assert ranked["id"].tolist() != srd.rank(ranked[["id", "rouge_l", "ce"]])["id"][:]  # the score has had its say


def test_the_readme() -> None:
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names = {
        "student_logits": torch.randn(3, 5), "teacher_logits": torch.randn(3, 5), "rows": tiny_rows()[:8],
        "model": brief(tiny_model("llama")), "tokenizer": tiny_tokenizer("llama"),
    }  # fmt: skip
    exec(compile(block, "README.md", "exec"), names)
    assert [len(stage.ids) for stage in names["stages"]] == [2, 4, 6]
