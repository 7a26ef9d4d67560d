"""Running sweeps: what cells share, that a sweep goes on, and that its tables say what the files say."""

from __future__ import annotations

import csv
import io
import json
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from srd.base import failures
from srd.base.errors import RunError, UserError
from srd.base.files import write_sealed
from srd.cli import app
from srd.recipe.files import read_recipe
from srd.recipe.reading import validate_recipe
from srd.run.context import Run
from srd.run.flow import advance
from srd.run.manifest import Manifest
from srd.run.steps import cleaning
from srd.sweep import one
from srd.sweep.cells import Cell
from srd.sweep.page import print_sweep
from srd.sweep.runner import Sweep
from tests.sweep.conftest import write_sweep

pytestmark = pytest.mark.xdist_group("sweep runner")  # one worker makes what all of these compare with


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, recipe_file: Path) -> Sweep:
    """A sweep of two seeds, with corrupted data and a cell that is to make as many passes as another."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sweep")
    cells = {"kd": {"training.curriculum": None, "equal_passes": "srd"}, "srd": {}}
    path = write_sweep(
        folder, recipe_file, name="done", description="A <trial>.", grid={"training.seed": [0, 1]}, cells=cells,
        overrides={"data.corruption.share": 0.25}, reference="kd",
    )  # fmt: skip
    sweep = Sweep(path, folder / "work")
    assert [outcome.state for outcome in sweep.run()] == ["done"] * 4
    return sweep


def manifest(sweep: Sweep, cell: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((sweep.folder / "cells" / cell / "manifest.json").read_text())["steps"]
    return content


def test_common_steps_are_made_once(done: Sweep) -> None:
    first, others = manifest(done, "kd-seed-0"), [manifest(done, f"srd-seed-{seed}") for seed in (0, 1)]
    assert "shared" not in first["examples"]
    for other in others:
        assert other["examples"]["shared"]
        assert other["student"]["shared"]
        assert other["student"]["seconds"] == first["student"]["seconds"]
    assert "shared" not in others[0]["reflection"]
    assert others[1]["reflection"]["shared"]
    assert others[1]["reflection"]["seconds"] == others[0]["reflection"]["seconds"]
    assert len(list((done.folder / "shared" / "cache").iterdir())) == 1
    assert not list((done.folder / "cells").glob("*/cache"))
    answers = [
        next((done.folder / "cells" / cell / "evaluation" / "predictions").glob("teacher.test.10.jsonl"))
        for cell in ("kd-seed-0", "srd-seed-1")
    ]
    assert answers[0].stat().st_ino == answers[1].stat().st_ino


def test_weights_are_dropped_and_numbers_kept(done: Sweep) -> None:
    assert not list((done.folder / "cells").rglob("*.safetensors"))
    for cell in ("kd-seed-0", "srd-seed-1"):
        assert (done.folder / "cells" / cell / "report" / "index.html").is_file()
        assert (done.folder / "cells" / cell / "evaluation" / "metrics.json").is_file()


def test_cell_equals_a_run_of_its_own(done: Sweep, tmp_path: Path) -> None:
    cell = next(cell for cell in done.cells if cell.folder == "srd-seed-1")
    advance(Run(validate_recipe(cell.content, "test"), tmp_path / "alone"))
    own = json.loads((tmp_path / "alone" / "evaluation" / "metrics.json").read_text())
    assert own == json.loads((done.folder / "cells" / cell.folder / "evaluation" / "metrics.json").read_text())


def test_equal_passes(done: Sweep) -> None:
    passes = {
        label: manifest(done, f"{label}-seed-0")[f"train/{label}"]["summary"]["passes"] for label in ("kd", "srd")
    }
    # 12 training examples, 9 kept: stages of 4 and 9 where the fraction says 4.5 and 9.
    assert passes["srd"] == pytest.approx(13 / 12, abs=1e-3)
    assert passes["kd"] == pytest.approx(1.125)


def test_tables_say_what_the_files_say(done: Sweep) -> None:
    with open(done.folder / "results.csv", newline="") as file:
        rows = {row["Run"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["Teacher", "Initial student", "kd", "srd"]
    means = {}
    for label in ("kd", "srd"):
        metrics = [
            json.loads((done.folder / "cells" / f"{label}-seed-{seed}" / "evaluation" / "metrics.json").read_text())
            for seed in (0, 1)
        ]
        means[label] = [content[label]["test"]["rouge_l"]["mean"] for content in metrics]
        assert float(rows[label]["ROUGE-L mean"]) == pytest.approx(statistics.fmean(means[label]))
        assert float(rows[label]["ROUGE-L std"]) == pytest.approx(statistics.stdev(means[label]))
    difference = statistics.fmean(means["srd"]) - statistics.fmean(means["kd"])
    assert float(rows["srd"]["Difference"]) == pytest.approx(difference, abs=1e-9)
    assert float(rows["srd"]["Low"]) <= difference <= float(rows["srd"]["High"])
    assert rows["srd"]["Seeds ahead"] == f"{sum(a > b for a, b in zip(means['srd'], means['kd'], strict=True))} of 2"
    assert float(rows["kd"]["Time ratio"]) == 1
    assert rows["kd"]["Difference"] == ""
    with open(done.folder / "cells.csv", newline="") as file:
        numbers = list(csv.DictReader(file))
    assert len(numbers) == 4 * 2 * 2  # cells, metrics, seeds of answering


def test_page_and_other_formats(done: Sweep) -> None:
    page = (done.folder / "sweep.html").read_text()
    assert "A &lt;trial&gt;." in page
    assert "http" not in page.replace("http-equiv", "")
    assert 'href="cells/srd-seed-1/report/index.html"' in page
    assert page.count("<table>") == 2
    assert "Precision in the dropped" in page
    assert "| srd |" in (done.folder / "results.md").read_text()
    assert r"\begin{tabular}" in (done.folder / "results.tex").read_text()
    with open(done.folder / "corruption.csv", newline="") as file:
        [row] = csv.DictReader(file)
    assert float(row["Corrupted"]) == 0.25
    assert 0 <= float(row["AUC, fused"]) <= 1


def test_the_screen_ends_with_the_table(done: Sweep) -> None:
    output = io.StringIO()
    print_sweep(Console(file=output, width=80), done.outcomes(), done.references)
    header, *rows = [line for line in output.getvalue().splitlines() if line]
    assert header.split()[:3] == ["Run", "ROUGE-L", "Difference"]
    assert [row.split()[0] for row in rows[:4]] == ["Teacher", "Initial", "kd", "srd"]
    assert any("comparison with the reference" in row for row in rows)
    print_sweep(Console(file=output), [], {})  # nothing is done: nothing to say


def test_done_cells_are_left_alone(done: Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where the sweep was moved, or its folder is named otherwise."""

    def refuse(run: Run) -> None:
        raise AssertionError(f"{run.folder} was done")

    monkeypatch.setattr(one, "advance", refuse)
    before = (done.folder / "results.csv").read_bytes()
    note = done.folder / "cells" / "srd-seed-0" / "cell.json"
    whole = note.read_text()
    write_sealed(note, {"state": "done", "identity": json.loads(whole)["identity"]})  # as it was once noted
    assert [outcome.state for outcome in done.run()] == ["done"] * 4
    assert note.read_text() == whole
    assert (done.folder / "results.csv").read_bytes() == before
    shutil.copytree(done.folder, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert [outcome.state for outcome in Sweep(done.folder.parent / "trial.yaml", Path("moved")).run()] == ["done"] * 4


@pytest.mark.parametrize(
    "name",
    ["evaluation/predictions/srd.test.10.jsonl", "evaluation/predictions/teacher.test.20.scores.json",
     "evaluation/metrics.json", "logs/srd.jsonl", "cell.json"],
)  # fmt: skip
def test_a_cell_whose_files_were_changed_is_not_done(done: Sweep, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "cell"
    shutil.copytree(done.folder / "cells" / "srd-seed-0", folder)
    identity = json.loads((folder / "cell.json").read_text())["identity"]
    assert one._is_done(folder, identity)
    assert not one._is_done(folder, "another")
    path = folder / name
    whole = path.read_text()
    changed = whole.replace(identity, identity[::-1]) if name == "cell.json" else whole.replace("0", "1", 1)
    for content in (changed, "[]", "", "{"):
        path.write_text(content)
        assert not one._is_done(folder, identity)
    path.unlink()
    assert not one._is_done(folder, identity)


def test_a_cell_goes_by_the_rules_that_its_steps_go_by(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where rows are not marked by them, its former result counts."""
    content = read_recipe(recipe_file)
    marked = {**content, "data": {**content["data"], "cleaning": "report"}}
    recipes = [validate_recipe(each, "test") for each in (content, marked)]
    before = [one._identity(recipe) for recipe in recipes]
    monkeypatch.setattr(cleaning, "rules", lambda: ["other"])
    assert [one._identity(recipe) == known for recipe, known in zip(recipes, before, strict=True)] == [True, False]


def test_weights_that_a_kill_has_left_are_dropped(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not those that the sweep keeps, nor those that somebody has made anew in the cell's folder since."""

    def run(keep: bool) -> bool:
        path = write_sweep(tmp_path, recipe_file, cells={"kd": {"training.curriculum": None}}, keep_students=keep)
        assert [outcome.state for outcome in Sweep(path, tmp_path / "work").run()] == ["done"]
        return (cell / "student/model.safetensors").is_file()

    cell = tmp_path / "work/cells/kd"
    with monkeypatch.context() as killed:
        killed.setattr(one, "_drop_weights", _raise(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(False)
    assert (cell / "student/model.safetensors").is_file()
    shutil.copytree(tmp_path / "work", tmp_path / "left")
    assert not run(False)
    advance(Run(validate_recipe(read_recipe(cell / "recipe.yaml"), "test"), cell))
    assert run(False)
    shutil.rmtree(tmp_path / "work")
    shutil.move(tmp_path / "left", tmp_path / "work")
    assert run(True) and run(False)


def _raise(error: type[BaseException]) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_a_changed_cell_counts_nowhere_until_it_is_run_again(done: Sweep) -> None:
    path = done.folder / "cells" / "srd-seed-0" / "evaluation" / "metrics.json"
    whole = path.read_text()
    try:
        for content in (whole.replace("0", "9", 1), "{"):
            path.write_text(content)
            assert [outcome.state for outcome in done.outcomes()].count("done") == 3
            done.write_report()
    finally:
        path.write_text(whole)
    assert [outcome.state for outcome in done.outcomes()] == ["done"] * 4
    done.write_report()


def test_a_cell_of_other_settings_or_rows_counts_nowhere_until_it_is_run_again(
    done: Sweep, recipe_file: Path, tmp_path: Path
) -> None:
    """Nor does one from before its recipe was noted; one of these that is as it was counts."""

    def states(*overrides: str) -> list[str]:
        return [outcome.state for outcome in Sweep(path, done.folder, list(overrides)).outcomes()]

    path = done.folder.parent / "trial.yaml"
    rows, note = recipe_file.parent / "rows.jsonl", done.folder / "cells" / "srd-seed-0" / "cell.json"
    whole, noted = rows.read_text(), note.read_text()
    try:
        for _ in range(2):
            assert states() == ["done"] * 4
            assert states("training.weight_decay=0.5") == ["missing"] * 4
            rows.write_text(whole.replace("north", "other"))
            assert states() == ["missing"] * 4
            rows.write_text(whole)
            write_sealed(note, {"state": "done", "identity": json.loads(noted)["identity"]})
    finally:
        rows.write_text(whole)
        note.write_text(noted)
    shutil.copytree(done.folder, tmp_path / "moved")
    assert [outcome.state for outcome in Sweep(path, tmp_path / "moved").outcomes()] == ["done"] * 4


def test_what_lies_in_the_place_of_a_cell_and_is_none_is_refused(tmp_path: Path) -> None:
    mine = tmp_path / "cell" / "cell.json"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UserError, match=r"cell holds other files \(cell\.json\)"):
        one.check_places([mine.parent])
    with pytest.raises(UserError, match=r"cell\.json is a file"):
        one.check_places([mine])
    mine.unlink()
    one.CellRunner(tmp_path)._note(mine.parent, {"state": "failed"})
    one.check_places([mine.parent])
    one.check_places([tmp_path / "nothing"])


def test_failed_cell_does_not_stop_the_others(
    tmp_path: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = {"broken": {"evaluation.models": ["nobody"]}, "crashing": {}, "kd": {"training.curriculum": None}}
    path = write_sweep(tmp_path, recipe_file, cells=cells, reference="kd", keep_students=True)

    def crash(run: Run) -> None:
        if run.folder.name == "crashing":
            raise SystemExit(0)  # even that
        advance(run)

    monkeypatch.setattr(one, "advance", crash)
    with pytest.raises(
        RunError, match=r"2 of 3 cells failed: broken: .*nobody.*; crashing: a library has ended the program"
    ):
        app(["sweep", str(path), "--dir", str(tmp_path / "work"), "training.epochs=0.5"], standalone_mode=False)
    page = (tmp_path / "work" / "sweep.html").read_text()
    assert "a library has ended the program" in page
    assert "in crash" in (tmp_path / "work" / "cells" / "crashing" / "error.txt").read_text()
    assert (tmp_path / "work" / "cells" / "kd" / "student" / "model.safetensors").is_file()
    sweep = Sweep(path, tmp_path / "work", ["training.epochs=0.5"])
    assert [outcome.state for outcome in sweep.outcomes()] == ["failed", "failed", "done"]
    monkeypatch.setattr(one, "advance", advance)
    assert [outcome.state for outcome in sweep.run()] == ["failed", "done", "done"]


def test_what_fails_before_a_cell_has_a_folder_is_kept_in_the_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not in that of the cell before it."""
    before = tmp_path / "cells" / "before"
    before.mkdir(parents=True)

    def crash(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(failures, "_place", before)
    monkeypatch.setattr(one, "validate_recipe", crash)
    assert one.CellRunner(tmp_path).run(Cell("next", {}, {}, {}))
    assert "ZeroDivisionError" in (tmp_path / "error.txt").read_text() and list(before.iterdir()) == []


def test_a_full_disk_is_told_of_by_the_option_of_a_sweep(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    (outcome,) = Sweep(write_sweep(tmp_path, recipe_file), tmp_path / "work").run()
    assert outcome.state == "failed" and outcome.error.endswith("Free some space, or choose another --dir.")


def test_a_cell_in_which_another_recipe_was_run_counts_nowhere(done: Sweep, tmp_path: Path) -> None:
    shutil.copytree(done.folder, tmp_path / "moved")
    sweep = Sweep(done.folder.parent / "trial.yaml", tmp_path / "moved")
    cell = tmp_path / "moved" / "cells" / "srd-seed-0"
    other = Manifest(cell)
    other.begin("train/srd", "of other settings", other.places("train/srd"))
    other.finish("train/srd", {}, [], [], [])
    assert [outcome.state for outcome in sweep.outcomes()].count("done") == 3
    assert not one._is_done(cell, json.loads((cell / "cell.json").read_text())["identity"])
