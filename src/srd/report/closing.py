"""What a person may do next with a finished run: each a command that works as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from srd.models.loading.facts import CARD
from srd.report.reading import RunFiles


def next_steps(run: RunFiles) -> list[tuple[str, str]]:
    """What to do with the student, and the command; nothing where there is none yet, or only a former one."""
    student = run.files.student(run.main_variant)
    if not student.is_dir() or not run.steps.get(f"train/{run.main_variant}", {}).get("finished"):
        return []
    folder, name = run.run_dir, re.sub(r"[^\w.-]+", "-", str(run.recipe.get("name") or "student")).strip("-.")
    target = folder.parent / f"{folder.name}-lm-eval"
    found: list[tuple[str, list[str | Path]]] = [
        ("Talk to it", ["srd", "chat", folder]),
        ("Evaluate it", ["srd", "evaluate", run.files.recipe, "--run-dir", folder]),
    ]
    if run.evaluation:
        found.append(("Export it", ["srd", "export", folder, "--to", "lm-eval", "-o", target]))
    if (student / CARD).is_file():
        found.append(("Push it", ["srd", "push", folder, f"me/{name}", "--dry-run"]))
    return [(title, shlex.join(map(str, command))) for title, command in found]
