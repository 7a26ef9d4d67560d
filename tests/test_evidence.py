"""The evidence on teachers: models from nothing are measured, told over seeds, and every recipe of it is one."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
from benchmarks import alignment, small, teachers

from srd.recipe.reading import validate_recipe

ROWS = [{"instruction": f"What is {n}?", "output": f"It is the number {n}."} for n in range(40)]
WANTED = {"rows": 40, "answers": 20, "epochs": 1, "batch_size": 8, "seeds": 2, "width": 16, "at_once": 1, "json": None}


def test_a_model_that_knows_nothing_needs_as_many_nats_as_a_token_has_choices(tmp_path: Path) -> None:
    tokenizer = small.tokenizer_of([row["output"] for row in ROWS], 270, digits=True)
    folder = small.save_model(tmp_path / "model", tokenizer, 1, 16, seed=0)
    tokens = sum(len(tokenizer(row["output"])["input_ids"]) + 1 for row in ROWS)
    size = sum(len(row["output"]) for row in ROWS)
    assert small.nats_a_byte(folder, ROWS) == pytest.approx(math.log(len(tokenizer)) * tokens / size, rel=0.05)


def test_means_over_seeds_are_told_and_put_into_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = argparse.Namespace(**{**WANTED, "json": tmp_path / "found.json"})
    found = small.over_seeds(
        lambda folder, seed, options: {"one": {"nats": 1.0 + seed}, "other": {"nats": 2.0}}, wanted
    )
    small.tell("teachers", found, wanted)
    assert "| one | 1.500 ± 0.707 |\n| other | 2.000 ± 0.000 |" in capsys.readouterr().out
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- bench:teachers -->\n<!-- end -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(small, "DOCUMENT", document)
    monkeypatch.setattr("sys.argv", ["small", str(wanted.json)])
    small.main()
    text = document.read_text(encoding="utf-8")
    assert "| one | 1.500 ± 0.707 |" in text and "benchmarks.teachers --rows 40" in text and text.endswith("after\n")
    assert json.loads(wanted.json.read_text(encoding="utf-8"))["seeds"] == found


def test_every_recipe_of_the_evidence_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(teachers.srd, "run", lambda recipe, run_dir: ran.append(recipe) or argparse.Namespace(folder=1))
    monkeypatch.setattr(alignment, "measured", lambda recipe, folder, names: ran.append(recipe) or dict.fromkeys(names))
    for module in (teachers, alignment):
        monkeypatch.setattr(module, "load_pydocs", lambda: documented())
        monkeypatch.setattr(module, "nats_a_byte", lambda folder, rows: len(rows))
        wanted = argparse.Namespace(**WANTED, teacher_rows=40, teacher_epochs=1, weight=80)
        module.compare(tmp_path / module.__name__, 0, wanted)
    recipes = [validate_recipe(recipe, "evidence") for recipe in ran]
    assert [len(recipe.teachers) for recipe in recipes] == [0, 0, 0, 0, 2, 2, 0, 0, 0]
    assert [list(recipe.baselines) for recipe in recipes[-2:]] == [["ce", "identical", "prefix", "chunks"], ["ce"]]


def documented() -> list[dict[str, str]]:
    rows = [{"id": f"pydocs-{letter}mod.f{n}", "instruction": f"What does `{letter}mod.f{n}` do?", "input": "",
             "output": f"It does {n % 30} times {letter}.", "group": f"{letter}{n % 30}"}
            for letter in "_abkz" for n in range(40)]  # fmt: skip
    return rows


def test_no_answer_that_is_measured_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: dict[str, list[dict[str, str]]] = {}
    measured: list[list[dict[str, str]]] = []
    monkeypatch.setattr(teachers, "load_pydocs", documented)
    monkeypatch.setattr(teachers, "trained", lambda name, folder, rows, *rest, **more: trained.update({name: rows}))
    monkeypatch.setattr(teachers, "nats_a_byte", lambda folder, rows: measured.append(rows))
    wanted = argparse.Namespace(**WANTED, teacher_rows=40, teacher_epochs=1)
    for seed in range(3):
        teachers.compare(tmp_path / str(seed), seed, wanted)
        asked = {row["group"] for rows in measured for row in rows}
        learnt = {name: {row["group"] for row in rows} for name, rows in trained.items()}
        assert all(learnt.values()) and not asked & set().union(*learnt.values())
        assert not learnt["teacher a to i"] & learnt["teacher j to z"]
        measured.clear()
