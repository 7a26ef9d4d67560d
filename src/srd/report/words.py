"""Numbers and names as a reader wants to see them: durations, counts, signs, models, metrics and steps."""

from __future__ import annotations

import math

MODEL_NAMES = {
    "teacher": "Teacher",
    "student": "Initial student",
    "sft": "SFT",
    "seqkd": "SeqKD",
    "kd": "Plain KD",
    "gkd": "GKD",
    "distillm": "DistiLLM",
    "srd": "SRD",
    "teacher_sft": "Teacher SFT",
    "warm_start": "Warm start",
}
PHRASES = {"teacher": "its teacher", "student": "the initial student", "kd": "plain KD"}
METRIC_NAMES = {
    "rouge_l": "ROUGE-L",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "exact_match": "Exact match",
    "accuracy": "Accuracy",
    "pass@1": "Pass@1",
    "bleu": "BLEU",
}
STEP_NAMES = {
    "examples": "Reading examples",
    "teacher": "Teacher",
    "student": "Student",
    "cache": "Teacher cache",
    "reflection": "Reflection",
    "ranking": "Ranking",
    "evaluation": "Evaluation",
}


def model_name(key: str) -> str:
    """Return the display name of a model or training arm, the key itself where there is none."""
    return MODEL_NAMES.get(key, key)


def metric_name(key: str) -> str:
    """Return the display name of a metric, the key itself where there is none."""
    return METRIC_NAMES.get(key, key)


def task_name(key: str) -> str:
    """Return a task as it stands in a sentence: the recipe's own test split has no name of its own."""
    return "the test set" if key == "test" else key


def step_name(key: str) -> str:
    """Return the display name of a step of the run, such as ``Training: SRD`` for ``train/srd``."""
    if key.startswith("train/"):
        return f"Training: {model_name(key.removeprefix('train/'))}"
    return STEP_NAMES.get(key, key)


def phrase(key: str) -> str:
    """Name a model in the middle of a sentence."""
    return PHRASES.get(key, model_name(key))


def duration(seconds: float) -> str:
    """Write a time span with two units at most: ``4.2 s``, ``5 min 12 s``, ``2 h 05 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def count(number: float) -> str:
    """Write how many: ``11,430``, ``135 M``, ``1.5 B``."""
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if number >= size:
            scaled = number / size
            return f"{scaled:.0f} {unit}" if scaled >= 100 else f"{scaled:.1f} {unit}"
    return f"{number:,.0f}"


def signed(number: float, digits: int = 1) -> str:
    """Write a difference with its sign, a true minus included: ``+0.8``; zero has none."""
    text = f"{abs(number):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if number > 0 else "\N{MINUS SIGN}") + text


def percent(fraction: float, digits: int = 0) -> str:
    """Write a fraction (0..1) as a percentage: ``0.75`` -> ``75%``."""
    if digits == 0 and 0 < fraction < 0.005:
        return "<1%"
    return f"{100 * fraction:.{digits}f}%"


def change(new: float, old: float, *, less: str, more: str, same: str) -> str:
    """Say how a cost compares: ``28% less``; ``same`` within half a percent, nothing for an old of 0."""
    if old <= 0 or not math.isfinite(new / old):
        return ""
    ratio = new / old - 1
    if abs(ratio) < 0.005:
        return same
    return f"{percent(abs(ratio))} {less if ratio < 0 else more}"


def shorten(text: str, limit: int) -> str:
    """Cut ``text`` to ``limit`` characters at most, an ellipsis included."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
