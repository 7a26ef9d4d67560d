"""The starting student: its own model or a shortened teacher, warmed up if the recipe asks for it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from srd.base import parallel
from srd.base.files import content_of, read_sealed, write_sealed
from srd.base.text import count, many
from srd.models.loading.loading import load_model, save_model
from srd.models.pruning import drop_layers
from srd.recipe.schema import Recipe
from srd.run.context import Run, load_options, made_options
from srd.run.identity import model_identity, plugins_identity
from srd.run.outline import order
from srd.run.outline.costs import alignment_of
from srd.run.outline.order import is_made
from srd.run.parts.assemble import training_of
from srd.run.parts.loading import parameters
from srd.run.steps.base import Step, Summary
from srd.training.batches import make_collator
from srd.training.progress import told_of
from srd.training.settings import TrainingConfig
from srd.training.stages import train

SHRINK_EXAMPLES = 64  # training examples whose hidden states decide which layers go


class Student(order.Student, Step):
    """``start/``, where the student is not a model that is taken as it is."""

    label = "warm_start"

    def inputs(self, run: Run) -> list[Any]:
        student, warm = run.recipe.student, run.recipe.student.warm_start
        own = [model_identity(student)] if student.model else []
        if not is_made(run.recipe):
            return own
        found: list[Any] = [*own, student.dtype, student.drop_layers, run.encoding, run.recipe.seed]
        if warm is not None:  # its checkpoints may be chosen by what they write
            generation = run.recipe.generation.model_dump(exclude={"engine"})
            found += [warm.decides(), generation, *taught_by(run.recipe), *run.reading(warm), *alignment(run, warm)]
            found += softened(run, warm)
        return found

    def outputs(self, run: Run) -> list[Path]:
        if not is_made(run.recipe):
            return []
        return [run.files.start, *([run.files.log(self.label)] if run.recipe.student.warm_start else [])]

    def scratch(self, run: Run) -> list[Path]:
        return [run.files.start_work] if is_made(run.recipe) else []

    def make(self, run: Run) -> Summary:
        student, warm, work = run.recipe.student, run.recipe.student.warm_start, run.files.start_work
        if not is_made(run.recipe):
            return {"parameters": parameters(str(student.model), student.found)}
        dropped = shorten(run, work / "shortened")
        source = str(work / "shortened") if student.drop_layers else str(student.model)
        summary: Summary = {}
        if warm is not None:
            options = made_options(run.recipe) if student.drop_layers else load_options(student)
            with training_of(run, self.label, warm, work, source, options) as training:
                summary = train(training, run.files.start)
        elif parallel.is_main() and (work / "shortened").exists():
            os.replace(work / "shortened", run.files.start)
        parallel.barrier()
        return {"parameters": parameters(run.start_source, run.start_options()), "dropped_layers": dropped, **summary}

    def told(self, run: Run, summary: Summary) -> str:
        dropped = len(re.findall(r"\d+", str(summary.get("dropped_layers") or "")))
        made = [f"{many(dropped, 'layer')} dropped" if dropped else "", told_of(summary, run.recipe.student.warm_start)]
        return f"{count(summary['parameters'])} parameters, {', '.join(filter(None, made)) or 'used as it is'}"


def taught_by(recipe: Recipe) -> list[Any]:
    """What else decides a training: plugins but for tasks, and who gives the targets where that is said."""
    source = [recipe.teacher.source] if recipe.teacher.source else []
    weights = [] if recipe.teach_by_row else [each.weight or 1.0 for each in recipe.teachers]
    return [plugins_identity(recipe, but="task"), *source, *([weights] if weights else [])]


def alignment(run: Run, training: TrainingConfig) -> list[Any]:
    """What decides how a teacher with tokens of its own teaches."""
    apart = run.apart and training.needs_teacher
    return [alignment_of(run.recipe, training), *run.teacher_frame] if apart else []


def softened(run: Run, training: TrainingConfig) -> list[Any]:
    """What decides how softened rows are learnt that the student may answer: the weight 1 is of their own text."""
    return ["by their own text"] if training.method.text == "student" and run.soft_rows() else []


def reflecting_student(run: Run) -> tuple[str, dict[str, Any]]:
    """The student that reflects on all rows, and how it is loaded: as it starts, or before its warm-up."""
    student = run.recipe.student
    if run.recipe.out_of_sample == "before":
        return str(student.model), load_options(student)
    return run.start_source, run.start_options()


def shorten(run: Run, target: Path) -> str | None:
    """Write the shortened model, if the student loses layers, unless an interrupted attempt has."""
    student = run.recipe.student
    if not student.drop_layers:
        return None
    note = target.parent / "dropped.json"
    if parallel.is_main() and not _is_shortened(note, target, run.files.start):
        source, options = (str(student.model), load_options(student)) if student.model else (
            run.teacher_source, {**run.teacher_options(), "dtype": "float32"})  # fmt: skip
        model = load_model(source, tokenizer=run.tokenizer, **options)
        examples, collate = run.encoded("train"), make_collator(model, run.tokenizer)
        rows = [examples[i] for i in range(min(SHRINK_EXAMPLES, len(examples)))]
        batches = [collate(rows[start : start + 8]) for start in range(0, len(rows), 8)]
        shorter, dropped = drop_layers(model, student.drop_layers, batches)
        save_model(shorter, run.tokenizer, target)
        told = "; ".join(f"{stack} {layers}" for stack, layers in dropped.items())
        write_sealed(note, {"dropped": told, "content": content_of(target)})
    parallel.barrier()
    return str(read_sealed(note)["dropped"])


def _is_shortened(note: Path, target: Path, moved: Path) -> bool:
    """Whether an interrupted attempt has written the shortened model, here or where it was moved to, whole."""
    content = read_sealed(note).get("content")
    return content is not None and content in (content_of(target), content_of(moved))
