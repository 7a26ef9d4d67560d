"""Each neighbour in an environment of its own, given what srd writes for it. Prints a line of JSON for each.

    python -m benchmarks.neighbours.run WORK [trl gguf lm-eval llama-cpp litgpt llamafactory axolotl distillkit]

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
    "litgpt": ["torch==2.13.0", "litgpt==0.5.13"],
    # DistillKit is not on PyPI: what it pins of it, and reads the rows with.
    "distillkit": ["torch==2.13.0", "trl==0.25.1", "transformers==4.57.6", "accelerate==1.11.0", "datasets==4.4.1"],
    # What reading the data needs, by the tools' own bounds; all that they ask for does not go without CUDA.
    "llamafactory": [
        "torch==2.13.0", "transformers==5.6.0", "trl==0.24.0", "datasets==4.0.0", "peft==0.18.1", "accelerate==1.11.0",
        "omegaconf", "fire", "sentencepiece", "tiktoken", "einops", "pandas", "scipy", "protobuf", "hf-transfer",
        "tyro<0.9.0", "torchdata<=0.11.0", "fastapi", "uvicorn", "sse-starlette", "matplotlib",
    ],
    "axolotl": [
        "torch==2.13.0", "transformers==5.16.1", "trl==1.9.0", "datasets==4.8.4", "peft==0.20.0", "accelerate==1.13.0",
        "pydantic==2.12.5", "posthog==6.7.11", "addict", "fire", "colorama", "einops", "scipy", "fastcore", "evaluate",
        "python-dotenv", "sentencepiece", "art", "axolotl-contribs-lgpl==0.0.7", "axolotl-contribs-mit==0.0.6",
        "langdetect", "typer", "zstandard", "numba",
    ],
}  # fmt: skip
#: What is installed without what it asks for.
ALONE: dict[str, list[str]] = {
    "llamafactory": ["llamafactory==0.9.5", "modelscope", "av<=16.0.0"],
    "axolotl": ["axolotl==0.19.0", "liger-kernel==0.8.1"],
}  # fmt: skip
#: Modules that stand for packages whose builds want CUDA libraries, and that reading texts does not use.
EMPTY: dict[str, list[str]] = {"llamafactory": ["torchaudio"]}
APART = ("llama-cpp", *ALONE, "litgpt", "distillkit")  # torch and transformers of their own


def environment(work: Path, name: str, reuse: bool) -> Path:
    """The interpreter of an environment, made if it is not there."""
    folder = work / f"env-{name}"
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        (site,) = folder.glob("lib/python3*/site-packages")
        if reuse and name not in APART:
            (site / "host.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
        subprocess.run([python, "-m", "pip", "install", "--quiet", *NEEDS[name]], check=True)
        if name in ALONE:
            subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *ALONE[name]], check=True)
        for module in EMPTY.get(name, []):
            (site / f"{module}.py").touch()
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
