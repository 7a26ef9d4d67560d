"""The names that a reader sees: of models, metrics, tasks and steps."""

from __future__ import annotations

from srd.run.folder import UNCLEANED
from srd.training.methods.base import METHODS

MODEL_NAMES = {
    "teacher": "Teacher", "student": "Initial student", "teacher_sft": "Teacher SFT", "warm_start": "Warm start",
    "srd": "SRD",
}  # fmt: skip
PHRASES = {"teacher": "its teacher", "student": "the initial student", "kd": "plain KD"}
METRIC_NAMES = {
    "rouge_l": "ROUGE-L", "rouge_1": "ROUGE-1", "rouge_2": "ROUGE-2", "exact_match": "Exact match",
    "accuracy": "Accuracy", "pass@1": "Pass@1", "bleu": "BLEU",
}  # fmt: skip
STEP_NAMES = {
    "examples": "Reading examples", "teacher": "Teacher", "student": "Student", "cache": "Teacher cache",
    "likelihoods": "Reading for the cleaning",
    "cleaning": "Cleaning", "teacher repairs": "Teacher's repairs", "repair": "Repair", "reflection": "Reflection",
    "measures": "Other scores", "ranking": "Ranking", "evaluation": "Evaluation", "cards": "Model cards",
}  # fmt: skip


def model_name(key: str, uncleaned: bool = False) -> str:
    """Return the display name of a model or training, the key itself where there is none.

    Args:
        key: Its name in the recipe.
        uncleaned: It had the rows as they came, where others have cleaned ones.
    """
    title = METHODS.get(key).title or key if key in METHODS else MODEL_NAMES.get(key, key)
    return f"{title}, uncleaned" if uncleaned else title


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
    name, mark, _ = key.partition(UNCLEANED)
    return f"{STEP_NAMES.get(name, name)}{mark}"


def phrase(key: str) -> str:
    """Name a model in the middle of a sentence."""
    return PHRASES.get(key, model_name(key))
