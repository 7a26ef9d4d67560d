"""Each neighbour in an environment of its own, given what srd writes for it. Prints a line of JSON for each.

    python -m benchmarks.neighbours.run WORK [trl gguf lm-eval llama-cpp]

WORK/env-NAME are the environments; they stay, so that a second call makes none. What is to be taken in is made first,
by ``benchmarks.neighbours.prepare``. With ``--reuse`` the packages of this interpreter are visible in the environments
(torch and transformers are not installed again); what the neighbour pins itself is installed in any case.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
#: What is installed for each, beside srd where it is needed.
NEEDS: dict[str, list[str]] = {
    "trl": [str(ROOT), "trl==1.16.0"],
    "gguf": [str(ROOT), "gguf==0.19.0"],
    "lm-eval": ["lm_eval[hf]==0.4.13", "transformers==5.23.0"],
    "llama-cpp": ["llama-cpp-python==0.3.36"],
}


def environment(work: Path, name: str, reuse: bool) -> Path:
    """The interpreter of an environment, made if it is not there."""
    folder = work / f"env-{name}"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        if reuse and name != "llama-cpp":
            (site,) = folder.glob("lib/python3*/site-packages")
            (site / "host.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
        subprocess.run([python, "-m", "pip", "install", "--quiet", *NEEDS[name]], check=True)
    return python


def check_module(work: Path, python: Path, name: str) -> dict[str, Any]:
    """What a check of this folder prints."""
    module = f"benchmarks.neighbours.check_{name.replace('-', '_')}"
    env = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(work / "hf"),
    }
    command = [python, "-m", module, str(work)]
    done = subprocess.run(command, env=env, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def check_lm_eval(work: Path, python: Path, name: str) -> dict[str, Any]:
    """The harness's ROUGE-L is that of the run, to 1e-4."""
    (task,) = (work / "lmeval").glob("*.yaml")
    command = [
        str(python.parent / "lm_eval"), "--model", "hf", "--model_args",
        f"pretrained={work / 'run' / 'student'},dtype=float32,add_bos_token=False",
        "--include_path", str(work / "lmeval"),
        "--tasks", task.stem, "--batch_size", "8", "--device", "cpu", "--output_path", str(work / "lm-eval-out"),
    ]  # fmt: skip
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(work / "hf")}
    subprocess.run(command, env=env, check=True)
    newest = max((work / "lm-eval-out").rglob("results_*.json"), key=lambda path: path.stat().st_mtime)
    theirs = json.loads(newest.read_text())["results"][task.stem]["rouge_l,none"]
    ours = json.loads((work / "run" / "evaluation" / "metrics.json").read_text())["srd"]["test"]["rouge_l"]["mean"]
    assert abs(ours - theirs) < 1e-4, (ours, theirs)
    return {"srd": ours, "lm-evaluation-harness": theirs}


CHECKS: dict[str, Callable[[Path, Path, str], dict[str, Any]]] = {"lm-eval": check_lm_eval}


def main() -> None:
    names = [argument for argument in sys.argv[2:] if argument != "--reuse"] or list(NEEDS)
    work = Path(sys.argv[1]).resolve()
    for name in names:
        python = environment(work, name, "--reuse" in sys.argv)
        print(json.dumps({"neighbour": name, **CHECKS.get(name, check_module)(work, python, name)}), flush=True)


if __name__ == "__main__":
    main()
