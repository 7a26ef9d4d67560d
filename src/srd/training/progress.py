"""What a training says of itself while it works, and what it took when it is done."""

from __future__ import annotations

import json
import math
from typing import Any

from transformers import TrainerCallback

from srd.base import parallel
from srd.base.files import read_json, write_text
from srd.base.text import many
from srd.curation.curriculum import Stage
from srd.training.arguments import all_steps
from srd.training.log import read_rows
from srd.training.settings import TrainingConfig
from srd.training.trainer import DistillTrainer
from srd.training.training import ANSWERS_FILE, METRICS_FILE, Training

#: What a training says of itself while it works: key in the log -> name, decimals and factor.
SHOWN = {"loss": ("loss", 3, 1), "eval_loss": ("validation loss", 3, 1), "eval_rouge_l": ("validation ROUGE-L", 1, 100)}


class Report(TrainerCallback):
    """Progress, and a validation at the very last step, with a checkpoint where the best one is to be chosen."""

    def __init__(self, training: Training, stage: Stage, trainer: DistillTrainer) -> None:
        self.training = training
        self.stage = stage
        self.trainer = trainer
        self.before, self.total = all_steps(training, stage.index), all_steps(training)
        self.values: dict[str, float] = {}
        self.started = self._seconds()

    def _seconds(self) -> float:
        """Time spent on training alone."""
        return self.trainer.seconds - self.trainer.validation_seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = self._seconds()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_log = True
            control.should_save = self.training.config.select_by != "last"  # else the model itself is written next
        self.training.progress(self.before + state.global_step, self.total, self.note())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.values |= {name: logs[name] for name in SHOWN if logs and name in logs}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Keep the answers of the best model so far, for the report."""
        key, best = self.training.config.select_by, state.best_metric
        value = metrics.get(f"eval_{key}")
        better = best is None or value is None or (value > best if key == "rouge_l" else value < best)
        if better and self.trainer.answers and parallel.is_main():
            rows = [{"id": name, "text": text, "rouge_l": score} for name, text, score in self.trainer.answers]
            path = self.training.stage_folder(self.stage.index) / ANSWERS_FILE
            write_text(path, "".join(json.dumps(row) + "\n" for row in rows))

    def note(self) -> str:
        """Stage, speed and the last values."""
        seconds, stages = self._seconds() - self.started, len(self.training.stages)
        parts = [f"stage {self.stage.index + 1} of {stages}"] if stages > 1 else []
        parts += [f"{self.trainer.tokens_read / seconds:,.0f} tokens a second"] if seconds > 0 else []
        shown = [(SHOWN[name], value) for name, value in self.values.items()]
        return ", ".join(parts + [f"{name} {factor * value:.{digits}f}" for (name, digits, factor), value in shown])


def summarise(training: Training) -> dict[str, Any]:
    """What a training took, from its stages' metrics."""
    stages = [read_json(training.stage_folder(stage.index) / METRICS_FILE) for stage in training.stages]
    everything = len(training.examples)
    texts = 2 if training.config.on_pairs else 1  # of each example
    total = sum(stage["seconds"] for stage in stages)
    checking = sum(stage["validation_seconds"] for stage in stages)
    return {
        "passes": round(sum(s["examples"] for s in stages) * training.config.epochs / everything, 4),
        "examples": (everything if training.stages[-1].subset else max(s["examples"] for s in stages)) // texts,
        "steps": sum(stage["steps"] for stage in stages),
        "stages": len(stages),
        "seconds": round(total, 2),
        "training_seconds": round(total - checking, 2),
        "validation_seconds": round(checking, 2),
        "best_validation": stages[-1]["best_metric"],
        **_alignment(training),
    }


def _alignment(training: Training) -> dict[str, float]:
    """How much a teacher with tokens of its own supervised: the mean of what was logged."""
    rows = [row for row in read_rows(training.log_file) if "supervised" in row]
    values = {name: [row[name] for row in rows if name in row] for name in ("supervised", "by_chunks", "mass")}
    return {name: round(math.fsum(own) / len(own), 4) for name, own in values.items() if own}


def told_of(summary: dict[str, Any], config: TrainingConfig | None) -> str:
    """A summary in words: what was trained on, and the best validation; nothing of what was not trained."""
    if config is None or "steps" not in summary:
        return ""
    stages = f" in {many(summary['stages'], 'stage')}" if summary["stages"] > 1 else ""
    if "supervised" in summary:
        stages += f" by a teacher that supervised {summary['supervised']:.1%} of the positions"
        stages += f" and {chunks:.1%} by chunks" if (chunks := summary.get("by_chunks", 0)) else ""
    passes = f"{summary['passes']:.3g}"
    once = "pass" if passes == "1" else "passes"
    told = f"trained for {many(summary['steps'], 'step')}{stages}, {passes} {once} over the data"
    best = summary["best_validation"]
    if best is None:
        return told
    return (
        told
        + (f", ROUGE-L {100 * best:.1f}" if config.select_by == "rouge_l" else f", loss {best:.3f}")
        + (" in validation")
    )
