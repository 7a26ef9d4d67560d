"""What each extra of the package brings beside what is installed: packages, and megabytes to download, as a table.

python -m benchmarks.extras [EXTRA …]    # in an environment with the package alone; nothing is installed
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parent.parent


def needed(extra: str) -> list[str]:
    """What pyproject names under an extra."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return list(settings["project"]["optional-dependencies"][extra])


def files_of(packages: list[str], timeout: float = 900) -> list[str]:
    """Where pip would take the files from that are not installed yet."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", *packages]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout)
    report = json.loads(done.stdout[done.stdout.index("{") :])
    return [each["download_info"]["url"] for each in report["install"]]


def size_of(url: str) -> int:
    """Bytes of a file, which is not fetched."""
    if url.startswith("file:"):
        return Path(unquote(urlsplit(url).path)).stat().st_size
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=60) as answer:
        return int(answer.headers["Content-Length"])


def line(extra: str) -> str:
    """A line of the table; what pip says where it finds no set of versions."""
    try:
        files = files_of(needed(extra))
    except subprocess.CalledProcessError as error:
        reason = re.findall(r"^ERROR: (.*)", error.stderr, re.MULTILINE)
        return f"| `{extra}` | – | {reason[-1] if reason else 'pip failed'} |"
    except subprocess.TimeoutExpired:
        return f"| `{extra}` | – | pip was still looking for versions after 15 minutes |"
    return f"| `{extra}` | {len(files)} | {sum(map(size_of, files)) / 1e6:.1f} MB |"


def main() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    print("| extra | further packages | to download |\n|---|---|---|")
    for extra in sys.argv[1:] or settings["project"]["optional-dependencies"]:
        print(line(extra), flush=True)


if __name__ == "__main__":
    main()
