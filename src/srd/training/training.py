"""Everything that one training needs, and the files of its stages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from srd.curation.curriculum import Stage
from srd.data.batching import EncodedExamples
from srd.training.cache.teacher_cache import TeacherCache
from srd.training.settings import TrainingConfig
from srd.training.teachers.common import Teacher
from srd.training.validation import Validation

METRICS_FILE = "metrics.json"  # written last: a stage that has it is done
SCORES_FILE = "scores.parquet"  # of a stage that chose its examples anew
ROLLOUTS_FILE = "rollouts.json"  # what a stage hands on to the next beside its model: who writes,
SCHEDULE_FILE = "schedule.json"  # ... and how far the loss has come
ANSWERS_FILE = "validation.jsonl"  # what the best model of a stage answered in validation


@dataclass
class Training:
    """Everything one training needs.

    Attributes:
        label: Its name in files and tables, such as srd or kd.
        config: Its settings.
        folder: Its stages lie in ``folder/stages/<i>``.
        start: Where the student comes from (hub name or folder).
        load_options: How the student is loaded (dtype, revision …).
        examples: Encoded training examples, with the teacher cache where there is one.
        tokenizer: Of student and teacher.
        validation: What checkpoints are chosen by.
        stages: What each stage trains on. `reflect_again` may replace a stage's examples.
        seed: Fixes order, dropout and student text.
        load_teacher: Gives the teacher; None where the method needs none.
        read_once: ``(examples, folder) -> cache``: lets the teacher read what the student has written ahead; None: it
            is asked in every step.
        engine: ``(student, folder) -> what it writes with``, within a context; the folder is free for it.
        reflect_again: ``(model, stage) -> stage`` before every stage but the first; None: stages are as planned.
        metrics_file: Every logged value goes here, one JSON object a line, ...
        log_file: ... and here, where this training's are alone.
        progress: ``(done, total, note)`` in optimizer steps of all stages.
        kept_tokenizer: What is saved beside the trained model; None: the tokenizer as it is.
    """

    label: str
    config: TrainingConfig
    folder: Path
    start: str
    load_options: dict[str, Any]
    examples: EncodedExamples
    tokenizer: PreTrainedTokenizerBase
    validation: Validation
    stages: list[Stage]
    seed: int
    metrics_file: Path
    log_file: Path
    load_teacher: Callable[[], Teacher] | None = None
    read_once: Callable[[EncodedExamples, Path], TeacherCache] | None = None
    engine: Callable[[Any, Path], AbstractContextManager[Any]] = lambda student, folder: nullcontext(student)
    reflect_again: Callable[[Any, Stage], Stage] | None = None
    progress: Callable[..., None] = lambda *values: None
    kept_tokenizer: PreTrainedTokenizerBase | None = None
    _teacher: Teacher | None = field(default=None, init=False)

    def stage_folder(self, index: int) -> Path:
        """Where a stage keeps its checkpoints, its metrics and its best model."""
        return self.folder / "stages" / str(index)

    @property
    def teacher(self) -> Teacher | None:
        """The teacher, loaded at its first use."""
        if self._teacher is None and self.load_teacher is not None:
            self._teacher = self.load_teacher()
        return self._teacher
