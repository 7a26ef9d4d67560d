"""Sweeps: what they lay out, what they share, that they go on, and that their tables say what the files say."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from srd.base.errors import RunError, UserError
from srd.cli import app
from srd.recipe.schema import nested, validate_recipe
from srd.run.context import Run
from srd.run.flow import run_all
from srd.sweep import runner
from srd.sweep.cells import lay_out, reference_rows
from srd.sweep.runner import Sweep
from srd.sweep.settings import find_sweep, load_sweep, shipped_sweeps
from tests.tiny import save_tiny

SEAS = ("north", "south", "east", "west", "cold", "warm", "deep", "calm", "rough", "blue", "green", "grey")


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe on tiny models and a few rows."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("recipe")
    teacher = save_tiny(folder / "teacher", "gpt2", hidden=16)
    rows = [{"instruction": f"What lives in the {sea} sea?", "output": f"The {sea} whale lives there."} for sea in SEAS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *variants(rows)]))
    recipe = {
        "teacher": {"model": str(teacher)},
        "student": {"drop_layers": 1},
        "data": {"train": str(folder / "rows.jsonl"), "validation_size": 2, "test_size": 4, "template": "plain"},
        "generation": {"max_new_tokens": 3},
        "training": {"epochs": 1, "batch_size": 6, "curriculum": {"stages": 2, "select": 0.75}},
        "evaluation": {"seeds": [10, 20]},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def variants(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{**row, "instruction": row["instruction"].replace("What", "Who")} for row in rows[:6]]


def write_sweep(folder: Path, recipe_file: Path, **content: Any) -> Path:
    path = folder / "trial.yaml"
    path.write_text(yaml.safe_dump({"recipe": str(recipe_file), **content}, sort_keys=False))
    return path


KD_AND_SRD = {"kd": {"training.curriculum": None}, "srd": {}}

# ------------------------------------------------------------------------------------------------------------- layout


@pytest.mark.parametrize("name", sorted(shipped_sweeps()))
def test_shipped_sweeps_are_valid(name: str) -> None:
    path = find_sweep(name)
    config = load_sweep(path)
    cells = lay_out(config, path)
    assert config.name == name
    assert config.description
    assert len({cell.folder for cell in cells}) == len(cells) >= 12
    assert set(reference_rows(config, cells, path)) == {cell.row for cell in cells}


def test_main_sweep_is_the_papers_table() -> None:
    cells = lay_out(load_sweep(find_sweep("paper-main")), find_sweep("paper-main"))
    recipes = {cell.row: validate_recipe(cell.content, "test") for cell in cells}
    assert len(cells) == 6 * 2 * 3
    assert recipes["tsrkl, kd"].training.epochs == 20
    assert recipes["tsrkl, kd"].training.curriculum is None
    assert recipes["tjsd, srd"].training.objective.name == "jsd"
    assert recipes["tjsd, srd"].training.epochs == 8
    assert all(recipe.baselines == {} for recipe in recipes.values())


def test_ablations_make_equal_passes() -> None:
    cells = lay_out(load_sweep(find_sweep("paper-ablations")), find_sweep("paper-ablations"))
    for cell in cells:
        training = validate_recipe(cell.content, "test").training
        sizes = training.curriculum.sizes(12_000) if training.curriculum else [12_000]
        assert training.epochs * sum(sizes) / 12_000 == pytest.approx(12, rel=1e-3), cell.title


def test_grid_and_cells_are_multiplied(tmp_path: Path, recipe_file: Path) -> None:
    grid = {"training.objective": ["fkl", {"name": "jsd", "lam": 0.5}], "training.seed": [0, 1]}
    path = write_sweep(tmp_path, recipe_file, grid=grid, cells=KD_AND_SRD, reference="kd")
    config = load_sweep(path)
    cells = lay_out(config, path)
    assert [cell.folder for cell in cells[:4]] == ["fkl-kd-seed-0", "fkl-srd-seed-0", "fkl-kd-seed-1", "fkl-srd-seed-1"]
    rows = ["fkl, kd", "fkl, srd", "jsd lam 0.5, kd", "jsd lam 0.5, srd"]
    assert reference_rows(config, cells, path) == dict(zip(rows, [rows[0], rows[0], rows[2], rows[2]], strict=True))


def test_named_axis_changes_several_fields(tmp_path: Path, recipe_file: Path) -> None:
    methods = {"gkd": {"training.method": "gkd", "training.objective": "jsd"}, "sft": {"training.method": "sft"}}
    path = write_sweep(tmp_path, recipe_file, grid={"method": methods}, cells=KD_AND_SRD)
    cells = lay_out(load_sweep(path), path)
    assert [cell.row for cell in cells] == ["gkd, kd", "gkd, srd", "sft, kd", "sft, srd"]
    training = validate_recipe(cells[0].content, "test").training
    assert (training.method.name, training.objective.name) == ("gkd", "jsd")


def test_extends_changes_another_sweep(tmp_path: Path, recipe_file: Path) -> None:
    write_sweep(tmp_path, recipe_file, grid={"training.seed": [0, 1]}, cells=KD_AND_SRD)
    child = tmp_path / "child.yaml"
    child.write_text("extends: trial.yaml\ngrid: {training.seed: [7]}\ncells: {kd: {training.epochs: 3}}\n")
    cells = lay_out(load_sweep(child), child)
    assert [(cell.label, cell.seeds["training.seed"]) for cell in cells] == [("kd", 7), ("srd", 7)]
    assert load_sweep(child).name == "child"
    assert cells[0].content["training"]["epochs"] == 3
    assert cells[0].content["training"]["curriculum"] is None


def test_nested_keys() -> None:
    assert nested({"a.b": 1, "a.c": {"d": 2}, "e": 3}) == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"grid": {"training.objectiv": ["fkl"]}}, r"training\.objectiv: unknown key; did you mean 'objective'"),
        ({"grid": {"trainin.epochs": [1]}}, r"trainin: unknown key; did you mean 'training'"),
        ({"grid": {"training.epochs": [1, 1]}}, r"'epochs 1' and 'epochs 1' would write the same folder 'epochs-1'"),
        ({"cells": {"a b": {}, "a-b": {}}}, r"'a b' and 'a-b' would write the same folder 'a-b'"),
        ({"grid": {"training.epochs": []}}, r"grid\.training\.epochs has no values"),
        ({"cells": KD_AND_SRD, "reference": "kb"}, r"reference 'kb' is no cell of the sweep; did you mean 'kd'"),
        ({"cells": {"a": {"equal_passes": "b"}}}, r"cells\.a\.equal_passes: there is no cell 'b'"),
        ({"cells": {"a": {"equal_time": {"to": "b"}}}}, r"equal_time: unknown key"),
        ({"reference": 3}, r"reference: input should be a valid string \(is 3\)"),
        ({"cells": {"a": 3}}, r"cells\.a: input should be a valid dictionary \(is 3\)"),
        ({"gird": {}}, r"gird: unknown key; did you mean 'grid'"),
    ],
)
def test_wrong_sweeps(tmp_path: Path, recipe_file: Path, content: dict[str, Any], message: str) -> None:
    path = write_sweep(tmp_path, recipe_file, **content)
    with pytest.raises(UserError, match=message):
        Sweep(path, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_sweep_that_extends_itself(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(UserError, match=r"extends itself \(a.yaml -> b.yaml -> a.yaml\)"):
        load_sweep(tmp_path / "a.yaml")


def test_unknown_sweep_suggests_a_name() -> None:
    with pytest.raises(UserError, match="did you mean 'paper-main'"):
        find_sweep("paper-mian")
    with pytest.raises(UserError, match=r"no sweep file 'no/such.yaml'"):
        find_sweep("no/such.yaml")


def test_folder_of_another_sweep(tmp_path: Path, recipe_file: Path) -> None:
    path = write_sweep(tmp_path, recipe_file, name="one")
    Sweep(path, tmp_path / "work")
    path = write_sweep(tmp_path, recipe_file, name="two")
    with pytest.raises(UserError, match="is the folder of the sweep 'one', not of 'two'"):
        Sweep(path, tmp_path / "work")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        Sweep(path, tmp_path / "other")


# ------------------------------------------------------------------------------------------------------------- running


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
    run_all(Run(validate_recipe(cell.content, "test"), tmp_path / "alone"))
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


def test_done_cells_are_left_alone(done: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: Run) -> None:
        raise AssertionError(f"{run.folder} was done")

    monkeypatch.setattr(runner, "run_all", refuse)
    before = (done.folder / "results.csv").read_bytes()
    assert [outcome.state for outcome in done.run()] == ["done"] * 4
    assert (done.folder / "results.csv").read_bytes() == before


@pytest.mark.parametrize("name", ["srd.test.10.jsonl", "teacher.test.20.scores.json"])
def test_a_cell_whose_answers_were_changed_is_not_done(done: Sweep, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "cell"
    shutil.copytree(done.folder / "cells" / "srd-seed-0", folder)
    identity = json.loads((folder / "cell.json").read_text())["identity"]
    assert runner._is_done(folder, identity)
    assert not runner._is_done(folder, "another")
    path = folder / "evaluation" / "predictions" / name
    path.write_text(path.read_text().replace("0.", "1.", 1))
    assert not runner._is_done(folder, identity)


def test_failed_cell_does_not_stop_the_others(
    tmp_path: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = {"broken": {"evaluation.models": ["nobody"]}, "crashing": {}, "kd": {"training.curriculum": None}}
    path = write_sweep(tmp_path, recipe_file, cells=cells, reference="kd", keep_students=True)

    def crash(run: Run) -> None:
        if run.folder.name == "crashing":
            raise ZeroDivisionError("by zero")
        run_all(run)

    monkeypatch.setattr(runner, "run_all", crash)
    with pytest.raises(
        RunError, match=r"2 of 3 cells failed: broken: .*nobody.*; crashing: ZeroDivisionError: by zero"
    ):
        app(["sweep", str(path), "--dir", str(tmp_path / "work"), "training.epochs=0.5"], standalone_mode=False)
    page = (tmp_path / "work" / "sweep.html").read_text()
    assert "ZeroDivisionError: by zero" in page
    assert (tmp_path / "work" / "cells" / "kd" / "student" / "model.safetensors").is_file()
    sweep = Sweep(path, tmp_path / "work", ["training.epochs=0.5"])
    assert [outcome.state for outcome in sweep.outcomes()] == ["failed", "failed", "done"]
    monkeypatch.setattr(runner, "run_all", run_all)
    assert [outcome.state for outcome in sweep.run()] == ["failed", "done", "done"]
