"""What sweeps lay out, and what their files may say."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from srd.base.errors import UserError
from srd.base.text import flattened
from srd.recipe.merging import nested
from srd.recipe.reading import load_recipe, validate_recipe, write_recipe
from srd.recipe.schema import PLUS
from srd.sweep.cells import lay_out, reference_rows
from srd.sweep.runner import Sweep
from srd.sweep.settings import find_sweep, load_sweep, shipped_sweeps
from tests.sweep.conftest import KD_AND_SRD, write_sweep


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


def test_names_act_on_no_terminal(tmp_path: Path, recipe_file: Path) -> None:
    grid = {"description": ["b\u202e"]}
    path = write_sweep(tmp_path, recipe_file, grid=grid, cells={"a\x1b[31m": {}}, reference="a\x1b[31m")
    config = load_sweep(path)
    (cell,) = lay_out(config, path)
    assert cell.row == cell.title == r"description b\u202e, a\x1b[31m"
    assert reference_rows(config, [cell], path) == {cell.row: cell.row}


def test_named_axis_changes_several_fields(tmp_path: Path, recipe_file: Path) -> None:
    methods = {"gkd": {"training.method": "gkd", "training.objective": "jsd"}, "sft": {"training.method": "sft"}}
    path = write_sweep(tmp_path, recipe_file, grid={"method": methods}, cells=KD_AND_SRD)
    cells = lay_out(load_sweep(path), path)
    assert [cell.row for cell in cells] == ["gkd, kd", "gkd, srd", "sft, kd", "sft, srd"]
    training = validate_recipe(cells[0].content, "test").training
    assert (training.method.name, training.objective.name) == ("gkd", "jsd")


def test_a_cleaning_that_no_cell_does_is_refused(tmp_path: Path, recipe_file: Path) -> None:
    """Of the recipe that a sweep begins with, too."""
    said = yaml.safe_load(recipe_file.read_text("utf-8"))
    data = said["data"] if isinstance(said["data"], dict) else {"train": said["data"]}
    said["data"] = {**data, "cleaning": {"drop": "ids.txt", "find": ["empty"]}}
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(said), encoding="utf-8")
    path = write_sweep(tmp_path, own, cells=KD_AND_SRD)
    with pytest.raises(UserError, match=r"trial\.yaml, recipe: data\.cleaning\.drop has no effect"):
        lay_out(load_sweep(path), path)
    path = write_sweep(tmp_path, own, cells={**KD_AND_SRD, "drop": {"data.cleaning.action": "drop"}})
    assert len(lay_out(load_sweep(path), path)) == 3


def test_long_values_make_folders_that_file_systems_take(tmp_path: Path, recipe_file: Path) -> None:
    texts = ["{instruction} " + "a" * 260, "{instruction} " + "a" * 261, "{instruction} " + "鯨" * 80]
    fits = "{instruction} " + "a" * 200
    path = write_sweep(tmp_path, recipe_file, grid={"data.template": [*texts, fits, "plain"]})
    folders = [cell.folder for cell in lay_out(load_sweep(path), path)]
    assert len(set(folders)) == 5 and folders[3:] == ["template-instruction-" + "a" * 200, "template-plain"]
    for name in folders:
        (tmp_path / name).mkdir()


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
        ({"cells": {"a": 3}}, r"cells\.a: give a mapping \(is 3\)$"),
        ({"overrides": {"baselines.kd": {}}}, r"baselines has no effect in a sweep.*Leave it out"),
        ({"overrides": {"name": "x"}}, r"name has no effect in a sweep"),
        ({"cells": {"a": {"name": "x"}, "b": {}}}, r"trial\.yaml, cells\.a: name has no effect in a sweep"),
        ({"grid": {"name": ["x", "y"]}}, r"trial\.yaml, grid: name has no effect in a sweep"),
        ({"grid": {"way": {"x": {"baselines.kd.seed": 1}}}}, r"trial\.yaml, grid: baselines has no effect in a sweep"),
        (
            {"cells": {"a": {"training.weight": 0.5}, **KD_AND_SRD}},
            r"cells\.a: training\.weight .* has no effect: the curr",
        ),
        ({"grid": {"training.weight": [0.5, 1.0]}}, r"trial\.yaml, grid\.training\.weight: 0\.5: .* has no effect"),
        (
            {"grid": {"way": {"x": {"training.temperature": 2.0}}}},
            r"grid\.way: x: training\.temperature .* has no effect",
        ),
        (
            {"overrides": {"training.weight": 0.5}, "cells": {"srd": {}, "b": {}}},
            r"trial\.yaml: training\.weight .* effect",
        ),
        ({"gird": {}}, r"gird: unknown key; did you mean 'grid'"),
    ],
)
def test_wrong_sweeps(tmp_path: Path, recipe_file: Path, content: dict[str, Any], message: str) -> None:
    path = write_sweep(tmp_path, recipe_file, **content)
    with pytest.raises(UserError, match=message):
        Sweep(path, tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_change_that_has_an_effect_in_some_of_its_cells_is_laid_out(tmp_path: Path, recipe_file: Path) -> None:
    grid = {"training.weight": [0.5, 1.0], "way": {"hot": {"training.temperature": 2.0}, "usual": {}}}
    path = write_sweep(tmp_path, recipe_file, grid=grid, cells=KD_AND_SRD)
    assert len(lay_out(load_sweep(path), path)) == 8
    assert len(lay_out(load_sweep(path), path, ["training.curriculum.preset=plus", "training.weight=1.0"])) == 8


def test_a_sweep_over_a_written_out_recipe_compares_no_training_with_itself(tmp_path: Path, recipe_file: Path) -> None:
    """As `load_recipe` refuses the same changes to the same file."""
    whole, preset = tmp_path / "recipe.yaml", "training.curriculum.preset"
    write_recipe(load_recipe(str(recipe_file)), whole)
    for told, content in {
        "cells.plus: ": {"cells": {"paper": {preset: "paper"}, "plus": {preset: "plus"}}},
        "grid: ": {"grid": {preset: ["paper", "plus"]}},
        "": {"overrides": {preset: "plus"}, "cells": KD_AND_SRD},
    }.items():
        short = write_sweep(tmp_path, recipe_file, **content)
        assert len(lay_out(load_sweep(short), short)) == 2
        path = write_sweep(tmp_path, whole, **content)
        with pytest.raises(UserError, match=rf"trial.yaml.*{told}.*{preset}=plus changes nothing.*recipe\.yaml"):
            lay_out(load_sweep(path), path)
    path = write_sweep(tmp_path, whole, cells={"paper": {}, "plus": {**flattened(PLUS), preset: "plus"}})
    assert len(lay_out(load_sweep(path), path)) == 2  # what sets all that a preset would changes something


def test_what_the_command_line_changes_in_vain_is_not_said_of_the_file(tmp_path: Path, recipe_file: Path) -> None:
    path = write_sweep(tmp_path, recipe_file)
    with pytest.raises(UserError, match=r"^name has no effect in a sweep"):
        lay_out(load_sweep(path), path, ["name=x"])


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


@pytest.mark.parametrize("damage", [b"", b"[1]", b"{}", b"name: [", bytes(range(256))])
def test_a_folder_that_does_not_say_whose_it_is(tmp_path: Path, recipe_file: Path, damage: bytes) -> None:
    path, note = write_sweep(tmp_path, recipe_file, name="one"), tmp_path / "work" / "sweep.yaml"
    assert Sweep(path, tmp_path / "work").outcomes() and not note.parent.exists()  # to look writes nothing
    note.parent.mkdir()
    note.write_bytes(damage)
    with pytest.raises(UserError, match="To go on with 'one' there, write `name: one` into it"):
        Sweep(path, tmp_path / "work")
    note.write_text("name: one\n")
    assert Sweep(path, tmp_path / "work").config.name == "one"


def test_folder_of_another_sweep(tmp_path: Path, recipe_file: Path) -> None:
    path = write_sweep(tmp_path, recipe_file, name="one")
    with contextlib.ExitStack() as stack:
        Sweep(path, tmp_path / "work")._claim(stack)
    path = write_sweep(tmp_path, recipe_file, name="two")
    with pytest.raises(UserError, match="is the folder of the sweep 'one', not of 'two'"):
        Sweep(path, tmp_path / "work")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        Sweep(path, tmp_path / "other")


def test_a_cell_may_be_at_some_points_alone(tmp_path: Path, recipe_file: Path) -> None:
    cells = {**KD_AND_SRD, "oracle": {"only_at": {"data.corruption.share": [0.5]}}}
    path = write_sweep(tmp_path, recipe_file, grid={"data.corruption.share": [0.0, 0.5], "seed": [0, 1]}, cells=cells)
    laid = lay_out(load_sweep(path), path)
    assert [cell.title for cell in laid if cell.label == "oracle"] == [f"share 0.5, oracle, seed {n}" for n in (0, 1)]
    assert len(laid) == 2 * 2 * 2 + 2


@pytest.mark.parametrize(
    ("label", "only_at", "message"),
    [
        ("srd", 3, r"cells\.srd\.only_at is 3\. Write \{FIELD OF THE GRID: \[VALUE, …\]\}"),
        ("srd", {"data.corruption.shar": [0.5]}, r"data\.corruption\.shar is no field of the grid; did you mean"),
        (
            "srd",
            {"data.corruption.share": []},
            r"only_at\.data\.corruption\.share is \[\]\. List some of .*\[0\.0, 0\.5\]",
        ),
        ("srd", {"data.corruption.share": [0.4]}, r"only_at\.data\.corruption\.share is \[0\.4\]\. List some of"),
        ("srd", {"data.corruption.share": 0.5}, r"only_at\.data\.corruption\.share is 0\.5\. List some of"),
        (
            "kd",
            {"data.corruption.share": [0.5]},
            r"reference 'kd' is not at share 0\.0\. Leave only_at out of that cell",
        ),
    ],
)
def test_points_that_are_not_there(tmp_path: Path, recipe_file: Path, label: str, only_at: Any, message: str) -> None:
    cells = {**KD_AND_SRD, label: {**KD_AND_SRD[label], "only_at": only_at}}
    path = write_sweep(tmp_path, recipe_file, grid={"data.corruption.share": [0.0, 0.5]}, cells=cells, reference="kd")
    with pytest.raises(UserError, match=message):
        Sweep(path, tmp_path / "work")


@pytest.mark.parametrize("name", sorted(shipped_sweeps()))
def test_shipped_sweeps_evaluate_models_that_there_are(name: str) -> None:
    for cell in lay_out(load_sweep(find_sweep(name)), find_sweep(name)):
        recipe = validate_recipe(cell.content, "test")
        assert {*(recipe.evaluation.models or [])} <= {"teacher", "student", *recipe.variants}, cell.title


def test_the_evidence_runs_what_matters_most_first() -> None:
    path = find_sweep("evidence")
    laid = lay_out(load_sweep(path), path)
    assert len(laid) == 3 * (8 + 5 + 8)
    for label, rows in (("oracle", 360), ("random subset", 360), ("kd", 600)):
        recipe = validate_recipe(next(c for c in laid if c.label == label).content, "test")
        assert recipe.data.corruption is not None
        assert (recipe.data.corruption.leave_out != "nothing") is (rows < 600)
        assert recipe.teacher.sft is not None and recipe.teacher.sft.epochs == recipe.training.epochs == 2
    actions = {c.label: validate_recipe(c.content, "test").data.cleaning.action for c in laid}
    assert {label for label, action in actions.items() if action == "drop"} == {"cleaning, drop"}
    assert {label for label, action in actions.items() if action == "repair"} == {"plus", "cleaning, repair"}
    passes = {c.label: validate_recipe(c.content, "test").training for c in laid}
    for label in ("plus", "srd"):  # in passes over all rows, as KD makes
        curriculum = passes[label].curriculum
        assert curriculum is not None
        sizes = curriculum.sizes(12_000)
        assert passes[label].epochs * sum(sizes) / 12_000 == pytest.approx(passes["kd"].epochs, rel=1e-3)


def test_the_choices_differ_in_one_thing_each() -> None:
    path = find_sweep("evidence-choices")
    recipes = {c.label: validate_recipe(c.content, "test") for c in lay_out(load_sweep(path), path)}
    plain = recipes["three stages"].training.curriculum
    assert plain is not None and plain.temperature == 1 and plain.select == 1 and plain.stages == 3
    other = {"grape": "rewrite", "kd": "off", "oracle": "off"}
    for label, recipe in recipes.items():
        assert recipe.data.cleaning.action == other.get(label, "repair")
        curriculum = recipe.training.curriculum
        sizes = curriculum.sizes(12_000) if curriculum else [12_000]
        assert recipe.training.epochs * sum(sizes) / 12_000 == pytest.approx(2, rel=1e-3), label
        if curriculum is not None and label not in ("three stages", "grape"):
            changed = [name for name in type(plain).model_fields if getattr(curriculum, name) != getattr(plain, name)]
            assert len(changed) == 1 + (label == "worst first"), label
