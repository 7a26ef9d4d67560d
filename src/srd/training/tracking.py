"""What trackers are given beside the loggers' own numbers: the stages, and the validation answers, as tables."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

from srd.base import parallel

PROJECT = "srd"  # under which trackers list runs, unless their own variable says otherwise
SHOWN = 50  # answers of a validation in a table: the same questions each time
Rows = Sequence[dict[str, Any]]


def names_of(folder: str, label: str, stage: int) -> dict[str, str]:
    """The arguments of a `transformers.TrainingArguments` that say as what a stage is tracked."""
    os.environ.setdefault("WANDB_PROJECT", PROJECT)
    os.environ.setdefault("MLFLOW_EXPERIMENT_NAME", PROJECT)
    return {"project": os.environ.get("TRACKIO_PROJECT", PROJECT), "run_name": f"{folder}/{label}/stage {stage}"}


def to_markdown(rows: Rows) -> str:
    """A Markdown table in which no text breaks a cell."""

    def line(values: Any) -> str:
        texts = (html.escape(str(value)).replace("|", "&#124;").replace("\n", "<br>") for value in values)
        return f"| {' | '.join(texts)} |"

    return "\n".join([line(rows[0]), "|" + " --- |" * len(rows[0]), *(line(row.values()) for row in rows)])


def _tensorboard(callback: Any, name: str, rows: Rows, step: int) -> None:
    callback.tb_writer.add_text(name, to_markdown(rows), step)


def _wandb(callback: Any, name: str, rows: Rows, step: int) -> None:
    table = callback._wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
    callback._wandb.log({name: table, "train/global_step": step})


def _trackio(callback: Any, name: str, rows: Rows, step: int) -> None:
    import pandas as pd

    callback._trackio.log({name: callback._trackio.Table(dataframe=pd.DataFrame(rows)), "train/global_step": step})


def _mlflow(callback: Any, name: str, rows: Rows, step: int) -> None:
    columns = {column: [row[column] for row in rows] for column in rows[0]}
    callback._ml_flow.log_table(columns, f"{name}/step-{step}.json")


#: The callback of transformers that writes to a tracker -> how that tracker is given a table; others take numbers only.
TABLES: dict[str, Callable[[Any, str, Rows, int], None]] = {
    "TensorBoardCallback": _tensorboard,
    "WandbCallback": _wandb,
    "TrackioCallback": _trackio,
    "MLflowCallback": _mlflow,
}


class Tables(TrainerCallback):
    """Gives the trackers of a stage its tables, and closes what one would keep open into the next stage.

    Args:
        trainer: Whose callbacks write to trackers, and whose last validation answers are shown.
        stages: One row for each stage of the training.
        questions: ``(prompt, reference)`` of each validation example, by its id.
    """

    def __init__(self, trainer: Any, stages: Rows, questions: dict[str, tuple[str, str]]) -> None:
        self.trainer, self.stages, self.questions = trainer, stages, questions

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write("stages", self.stages, state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if answers := sorted(self.trainer.answers)[:SHOWN]:
            rows = [
                {"id": name, "prompt": prompt, "answer": text, "reference": reference, "rouge_l": score}
                for name, text, score in answers
                for prompt, reference in (self.questions[name],)
            ]
            self._write("validation_answers", rows, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for callback in self.trainer.callback_handler.callbacks:
            if type(callback).__name__ == "WandbCallback" and callback._wandb.run is not None:
                callback._wandb.finish()  # it would take the next stage for more of this one

    def _write(self, name: str, rows: Rows, step: int) -> None:
        for callback in self.trainer.callback_handler.callbacks if parallel.is_main() else ():
            if write := TABLES.get(type(callback).__name__):
                write(callback, name, rows, step)
