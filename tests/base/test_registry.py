"""Names are files: listing them imports nothing, asking for one imports it, plugins and packages add to them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from srd.base import registry
from srd.base.errors import UserError
from srd.base.plugins import import_plugin
from srd.base.registry import Registry

FILES = {
    "__init__.py": "",
    "base.py": "from srd.base.registry import Registry\nSHAPES = Registry('shape', 'shapes_of_a_test')",
    "square.py": "from shapes_of_a_test.base import SHAPES\nSHAPES.register('square', aliases=['box'])(4)",
    "circle.py": "from shapes_of_a_test.base import SHAPES\nSHAPES.register('circle')(0)",
    "_helper.py": "raise AssertionError('no name')",
}


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[int]]:
    folder = tmp_path / "shapes_of_a_test"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    from shapes_of_a_test.base import SHAPES  # type: ignore[import-not-found]

    yield SHAPES
    for name in [name for name in sys.modules if name.startswith("shapes_of_a_test")]:
        del sys.modules[name]


def imported(name: str) -> bool:
    return f"shapes_of_a_test.{name}" in sys.modules


def test_names_are_files_and_listing_them_imports_nothing(shapes: Registry[int]) -> None:
    assert shapes.names() == ["circle", "square"]
    assert not imported("circle") and not imported("square")
    assert shapes.get("circle") == 0
    assert imported("circle") and not imported("square")


def test_an_alias_means_its_name(shapes: Registry[int]) -> None:
    assert shapes.name_of("box") == "square"
    assert shapes.get("box") == shapes.get("square") == 4
    assert "box" not in shapes.names()


@pytest.mark.parametrize(("wrong", "meant"), [("cirle", "circle"), ("boxx", "box"), ("base", None), ("_helper", None)])
def test_an_unknown_name_is_told_the_nearest(shapes: Registry[int], wrong: str, meant: str | None) -> None:
    with pytest.raises(UserError) as error:
        shapes.get(wrong)
    hint = f"did you mean '{meant}'? " if meant else ""
    assert str(error.value) == f"unknown shape '{wrong}'; {hint}Known: box, circle, square"


@pytest.mark.parametrize("asked", ["gguf", "lm-eval", "lm_eval", "axolotl-kd", "axolotl_kd"])
def test_a_name_of_a_command_is_said_with_hyphens_and_taken_with_both(asked: str) -> None:
    from srd.export.base import FORMATS

    assert FORMATS.name_of(asked) == asked.replace("-", "_") and asked in FORMATS
    known = "axolotl-kd, distillkit, gguf, lm-eval, ollama"
    for wrong in (f"{asked}x", f"{asked}x".replace("-", "_")):
        with pytest.raises(UserError) as error:
            FORMATS.get(wrong)
        meant = asked.replace("_", "-")
        assert str(error.value) == f"--to: there is no format '{wrong}'; did you mean '{meant}'? Known: {known}"


def test_an_installed_name_with_a_hyphen_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    point = Installed("my-form", "7", "srd.forms")
    monkeypatch.setattr(registry, "_installed", lambda: EntryPoints([point]))
    forms: Registry[int] = Registry("form", "no_package_of_a_test", hyphens=True)
    assert forms.names() == ["my-form"]
    assert forms.get("my-form") == forms.get("my_form") == 7
    with pytest.raises(UserError, match="there is a form 'my-form' already"):
        forms.register("my_form")(8)


@pytest.mark.parametrize("taken", ["square", "box", "hexagon"])
@pytest.mark.parametrize("as_alias", [False, True])
def test_a_taken_name_is_refused(shapes: Registry[int], taken: str, as_alias: bool) -> None:
    shapes.register("hexagon")(6)
    with pytest.raises(UserError, match=f"there is a shape '{taken}' already: register yours under another name"):
        shapes.register("new" if as_alias else taken, aliases=[taken] if as_alias else [])(1)


def test_a_plugin_adds_a_name(shapes: Registry[int], tmp_path: Path) -> None:
    plugin = tmp_path / "more.py"
    plugin.write_text(
        "from shapes_of_a_test.base import SHAPES\nSHAPES.register('triangle', aliases=['tri'])(3)", encoding="utf-8"
    )
    import_plugin(str(plugin))
    assert shapes.names() == ["circle", "square", "triangle"]
    assert shapes.get("tri") == 3


class Installed(EntryPoint):
    """An entry point whose package gives a number."""

    def load(self) -> Any:
        if self.value == "broken":
            raise ImportError("no such module")
        return int(self.value)


def test_an_installed_package_adds_a_name(shapes: Registry[int], monkeypatch: pytest.MonkeyPatch) -> None:
    points = [Installed("pentagon", "5", "srd.shapes"), Installed("bad", "broken", "srd.shapes")]
    monkeypatch.setattr(shapes, "_entry_points", {point.name: point for point in points})
    assert shapes.names() == ["bad", "circle", "pentagon", "square"]
    assert shapes.get("pentagon") == shapes.get("pentagon") == 5
    with pytest.raises(UserError, match="the shape 'bad' of an installed package cannot be imported: no such module"):
        shapes.get("bad")


def test_what_is_run_again_takes_the_place_of_what_it_registered(shapes: Registry[Any], tmp_path: Path) -> None:
    """A cell of a notebook, or a plugin, that was changed; other code under a taken name is refused as ever."""
    cell = (
        "from shapes_of_a_test.base import SHAPES\n@SHAPES.register('mine', aliases=['own'{}])\ndef {}(): return {}\n"
    )
    exec(cell.format(", 'of_mine'", "mine", 1), {"__name__": "__main__"})
    exec(cell.format("", "mine", 2), {"__name__": "__main__"})
    assert shapes.get("own")() == 2
    assert "of_mine" not in shapes.aliases
    for other in ({"__name__": "elsewhere"}, {"__name__": "__main__", "__file__": str(tmp_path / "other.py")}):
        with pytest.raises(UserError, match="there is a shape 'mine' already"):
            exec(cell.format("", "mine", 3), other)
    with pytest.raises(UserError, match="there is a shape 'mine' already"):
        exec(cell.format("", "another", 3), {"__name__": "__main__"})
    with pytest.raises(UserError, match="there is a shape 'square' already"):
        exec(cell.format("", "square", 3).replace("'mine'", "'square'"), {"__name__": "__main__"})
    assert shapes.get("mine")() == 2


def test_a_module_that_registers_nothing_is_told(shapes: Registry[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "_entry_points", {"flat": EntryPoint("flat", "json", "srd.shapes")})
    for ask in (shapes.get, shapes.name_of):
        with pytest.raises(UserError, match=r"'flat' of an installed package: json registers none of that name"):
            ask("flat")
