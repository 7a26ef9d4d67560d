"""The model card of a student: what it is, where it comes from, what it scores, how it is used.

It says nothing that differs between two runs of one recipe on one machine (no times), so that a run that was killed
ends in the same card.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from srd.base.files import read_json
from srd.base.text import count, many, visible
from srd.base.version import VERSION
from srd.base.yaml_text import dump_yaml
from srd.curation.scores.base import scores_of
from srd.curation.settings import CurriculumConfig
from srd.data.settings import SourceConfig
from srd.evaluation.predictions import predictions_path, read_scores
from srd.metrics.statistics import paired_bootstrap
from srd.models.loading.facts import Origin, origin_of
from srd.models.settings import HUB_NAME
from srd.recipe.short import shortest
from srd.run.context import Run, made_options
from srd.run.parts.loading import parameters
from srd.tasks.base import data_set_of

#: What stands in a card for the name under which it is published.
HUB_ADDRESS = "OWNER/{name}"
#: What stands in a card for servers, by the field that names them: who reads it has others.
SERVERS = {"endpoint": "http://SERVER/v1", "address": "SERVER:6379"}
PAPER = "arxiv:2508.06135"
RESAMPLES = 2_000
#: What became of wrong rows, by ``data.cleaning.action``.
CLEANED = {
    "drop": "Rows that were found wrong were left out before.",
    "soften": "Of rows that were found wrong only what the teacher says of them was learnt.",
    "repair": "Rows that were found wrong were answered anew by the teacher before, or left out.",
    "rewrite": "The answers were written anew by the teacher before.",
}
#: Our metrics as the hub and readers call them.
METRICS = {
    "rouge_l": ("rouge", "ROUGE-L"), "rouge_1": ("rouge", "ROUGE-1"), "rouge_2": ("rouge", "ROUGE-2"),
    "exact_match": ("exact_match", "Exact match"), "accuracy": ("accuracy", "Accuracy"),
    "pass@1": ("code_eval", "Pass@1"), "bleu": ("bleu", "BLEU"), "chrf": ("chrf", "chrF"),
}  # fmt: skip


class Card:
    """What a card says.

    Args:
        run: The run, whose student is trained; evaluated or not.
        label: Of the training among the recipe's.
    """

    def __init__(self, run: Run, label: str) -> None:
        self.run, self.label = run, label
        self.recipe, self.training = run.recipe, run.recipe.variants[label]
        main = label == run.recipe.training.label
        self.title = run.recipe.name if main else f"{run.recipe.name}-{label}"
        self.results: dict[str, Any] = read_json(run.files.results, {})

    def text(self) -> str:
        """The whole README.md."""
        values = {
            "title": self.title, "label": self.label, "training": self.training, "recipe": self.recipe,
            "teacher": self.teacher, "base": self.base, "made": self.run.start_source != self.recipe.student.model,
            "parameters": count(parameters(self.run.start_source, self.run.start_options())),
            "address": HUB_ADDRESS.format(name=self.title),
            "scores": list(self._scores()), "differences": self._differences(),
            "summary": self.run.manifest.steps.get(f"train/{self.label}", {}).get("summary", {}),
            "prompt": self._prompt(), "short": dump_yaml(_without_places(shortest(self.recipe))).rstrip(),
            "adapter": self.is_adapter, "encoder_decoder": self.run.encoder_decoder, "version": VERSION,
            "data": [name for name, _ in self.data], "decoding": self._decoding(), "cleaned": self._cleaned(),
            "how": how_it_was_learnt(self.training.curriculum) if self.training.curriculum else "",
        }  # fmt: skip
        front = dump_yaml(self.front_matter())
        return visible(f"---\n{front}---\n\n{_template().render(values).strip()}\n")

    # ------------------------------------------------------------------------------------------------------- origins

    @cached_property
    def teacher(self) -> Origin:
        """Where the teacher comes from; of a served one nobody knows more than what its server calls it."""
        teacher = self.recipe.teacher
        return Origin(teacher.model) if teacher.endpoint is not None else origin_of(teacher.model, teacher.revision)

    @cached_property
    def base(self) -> Origin:
        """What the student's weights derive from: its own model, or the teacher that lost layers."""
        student = self.recipe.student
        return origin_of(student.model, student.revision) if student.model else self.teacher

    @property
    def is_adapter(self) -> bool:
        """Whether what is saved is an adapter beside its base."""
        return self.training.lora is not None and not self.training.lora.merge

    @property
    def data(self) -> list[tuple[str, str | None]]:
        """Names of the training data as people call them, and on the hub where they are there."""
        return list(_names(self.recipe.data.train))

    # -------------------------------------------------------------------------------------------------- front matter

    def front_matter(self) -> dict[str, Any]:
        """What the hub reads: as its model cards have it."""
        base, datasets = self.base.hub, [hub for _, hub in self.data if hub]
        tags = ["srd", "knowledge-distillation", *(["curriculum-learning"] if self.training.curriculum else []), PAPER]
        if self.teacher.hub and self.training.needs_teacher | self.training.teacher_writes:
            tags.append(f"teacher:{self.teacher.hub}")
        metrics = sorted({METRICS.get(metric, (metric, metric))[0] for _, metric, _ in self._own()})
        return {
            **({"base_model": [base], "base_model_relation": "adapter" if self.is_adapter else "finetune"}
               if base else {}),
            **({"datasets": datasets} if datasets else {}),
            "library_name": "peft" if self.is_adapter else "transformers",
            **self.base.terms,
            "pipeline_tag": "text-generation",
            "tags": tags,
            **({"metrics": metrics, "model-index": [{"name": self.title, "results": self._index()}]}
               if metrics else {}),
        }  # fmt: skip

    def _index(self) -> list[dict[str, Any]]:
        results: dict[str, dict[str, Any]] = {}
        for task, metric, value in self._own():
            kind, name = METRICS.get(metric, (metric, metric))
            dataset = {"name": _task_name(task), "type": self._data_type(task), "split": "test"}
            entry = results.setdefault(task, {
                "task": {"type": "text-generation", "name": "Text generation"}, "dataset": dataset, "metrics": [],
            })  # fmt: skip
            interval = self._interval(task, metric)
            spread = {"std_over_seeds": round(value["std"], 4), "seeds": [int(seed) for seed in value["seeds"]]}
            between = {"interval_95": [round(bound, 4) for bound in interval]} if interval else {}
            entry["metrics"].append(
                {"type": kind, "name": name, "value": round(value["mean"], 4), "args": {**spread, **between}}
            )
        return list(results.values())

    def _data_type(self, task: str) -> str:
        """The data set of a task as the hub calls it, else as people do."""
        if task == "test":
            name, hub = self.data[0]
            return hub or name
        return task

    # ------------------------------------------------------------------------------------------------------- results

    def _own(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for task, metrics in self.results.get(self.label, {}).items():
            for metric, value in metrics.items():
                yield task, metric, value

    def _interval(self, task: str, metric: str) -> tuple[float, float] | None:
        """The 95 % interval of a score by bootstrap over the examples; None where it is no mean over them."""
        seeds = self.results[self.label][task][metric]["seeds"]
        parts = []
        for seed in seeds:
            kept = read_scores(predictions_path(self.run.files.evaluation, self.label, task, seed)) or {}
            parts.append(kept.get("per_example", {}).get(metric))
        if not parts or any(part is None for part in parts):
            return None
        values = 100 * np.mean(parts, axis=0)
        if abs(values.mean() - self.results[self.label][task][metric]["mean"]) > 1e-6:
            return None
        _, low, high = paired_bootstrap(values, np.zeros_like(values), samples=RESAMPLES)
        return low, high

    def _scores(self) -> Iterator[dict[str, str]]:
        """Rows of the table: a line for each metric of each task, this student first, then teacher and start."""
        for task, metric, value in self._own():
            interval = self._interval(task, metric)
            others = {role: self.results.get(role, {}).get(task, {}).get(metric) for role in ("teacher", "student")}
            shown = {role: f"{other['mean']:.1f}" if other else "–" for role, other in others.items()}
            spread = f" ± {value['std']:.1f}" if len(value["seeds"]) > 1 else ""
            yield {
                "task": _task_name(task), "metric": METRICS.get(metric, (metric, metric))[1],
                "value": f"{value['mean']:.1f}{spread}",
                "interval": f"{interval[0]:.1f} to {interval[1]:.1f}" if interval else "–", **shown,
            }  # fmt: skip

    def _differences(self) -> list[str]:
        """What the paired comparisons say, of the main training, which alone is compared."""
        found = []
        for row in read_json(self.run.files.comparisons, []) if self.label in self.results else []:
            if row["a"] == self.label and row["low"] is not None:
                name = {"teacher": "the teacher", "student": "the student before the training"}.get(row["b"], row["b"])
                found.append(
                    f"{_task_name(row['task'])}, {METRICS.get(row['metric'], (0, row['metric']))[1]}: "
                    f"{row['difference']:+.1f} against {name} (95 % interval {row['low']:+.1f} to {row['high']:+.1f})"
                )
        return found

    def _cleaned(self) -> str:
        """What became of rows that were found wrong before the training; nothing where nothing did."""
        return "" if self.recipe.takes_uncleaned(self.label) else CLEANED.get(self.recipe.data.cleaning.action, "")

    def _decoding(self) -> str:
        settings = self.recipe.evaluation
        if settings.temperature == 0:
            return "greedy"
        top_p = f", top-p {settings.top_p:g}" if settings.top_p < 1 else ""
        return f"temperature {settings.temperature:g}{top_p}"

    def _prompt(self) -> str:
        """An example of the prompt, as the chat template writes it."""
        from srd.models.loading.loading import load_tokenizer

        tokenizer = load_tokenizer(str(self.run.files.student(self.label)), **made_options(self.recipe))
        if not tokenizer.chat_template:
            return ""
        asked = [{"role": "user", "content": "Why is the sky blue?"}]
        text = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
        fence = "~~~~"
        return text if fence not in text else ""


def how_it_was_learnt(curriculum: CurriculumConfig) -> str:
    """What came of a ranking, for the middle of a sentence."""
    order, stages = curriculum.order, curriculum.stages
    ranked = " and ".join(f"`{score.name}`" for score in scores_of(curriculum.score))
    left = ", the hardest were left out" if curriculum.select < 1 else ""
    if order == "fresh":
        return "every pass learnt examples that were drawn anew from all of them"
    if not left and (stages == 1 or order == "random"):
        what = "the ranks decided nothing" if curriculum.row_weights == "equal" else "what it half knew counted most"
        return f"all examples were learnt, in {many(stages, 'stage')}; {what}"
    way = {"easy_to_hard": " from easy to hard", "hard_to_easy": " from hard to easy"}.get(order, " in random order")
    rest = "the rest was" if left else "they were"
    return (
        f"the examples were ranked by {ranked}{left}, and {rest} learnt{way if stages > 1 else ''} in "
        f"{many(stages, 'stage')}"
    )


def _names(source: SourceConfig) -> Iterator[tuple[str, str | None]]:
    known = data_set_of(source)
    if known is not None:
        home = known.home
        yield known.name, home.repository if home is not None else None
        return
    for path in source.paths:
        local = Path(path).expanduser().exists() or not HUB_NAME.fullmatch(path.partition(":")[0]) or "/" not in path
        name = visible(Path(path).name if local else path)
        yield name, None if local else path.partition(":")[0]


def _task_name(task: str) -> str:
    return "held-out test split" if task == "test" else task


def _without_places(value: Any) -> Any:
    """A recipe for others to read: of a path on this machine, its last part; no address of a server."""
    if isinstance(value, dict):
        return {
            key: SERVERS[key] if inner and key in SERVERS else _without_places(inner) for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    local = isinstance(value, str) and "\n" not in value and len(value) < 1000 and (
        value.startswith(("/", "~", "./", "../")) or ("/" in value and Path(value).exists()))  # fmt: skip
    return Path(value).name if local else value


@cache
def _template() -> jinja2.Template:
    text = (resources.files("srd.run") / "templates" / "card.j2").read_text(encoding="utf-8")
    made = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    return made.from_string(text)
