"""What each extra of the package brings beside the package and its demo: packages, and megabytes to download.

    pip install uv
    python -m benchmarks.extras [EXTRA …]    # nothing is installed, and nothing but lists of versions is fetched

uv finds the versions, in seconds where pip takes a quarter of an hour: for gptqmodel pip would build what it looks at.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parent.parent
#: They pin torch and transformers, and live in an environment of their own: all that they bring is counted.
APART = ("vllm",)


def project() -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])


def files_of(needs: list[str]) -> dict[str, int]:
    """Bytes of each file that an empty environment of this Python would fetch for them, by its address."""
    with TemporaryDirectory() as folder:
        lock = Path(folder) / "pylock.toml"
        command = ["uv", "pip", "compile", "--quiet", "--python", sys.executable, "--output-file", str(lock), "-"]
        subprocess.run(command, check=True, input="\n".join(needs), text=True, stdout=subprocess.DEVNULL)
        packages = tomllib.loads(lock.read_text(encoding="utf-8"))["packages"]
    # The wheel that comes first is the one that fits this machine best; without one the source is fetched and built.
    files = [package["wheels"][0] if package.get("wheels") else package["sdist"] for package in packages]
    return {file["url"]: file["size"] for file in files}


def line(extra: str) -> str:
    """A line of the table."""
    named = project()
    extras = named["optional-dependencies"]
    there = [] if extra in APART else named["dependencies"] + (extras["demo"] if extra != "demo" else [])
    files = files_of([*there, *extras[extra]])
    for address in files_of(there) if there else {}:
        files.pop(address, None)
    built = sum(not address.endswith(".whl") for address in files)
    return f"| `{extra}` | {len(files)} | {built} | {sum(files.values()) / 1e6:.1f} MB |"


def main() -> None:
    print("| extra | further packages | of them built here | to download |\n|---|---|---|---|")
    for extra in sys.argv[1:] or project()["optional-dependencies"]:
        print(line(extra), flush=True)


if __name__ == "__main__":
    main()
