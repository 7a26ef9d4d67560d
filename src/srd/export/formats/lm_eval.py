"""lm-evaluation-harness: the run's test rows as a task, scored as srd scores them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srd.base.files import write_json_lines, write_text
from srd.base.yaml_text import dump_yaml
from srd.data.turns import turns_of
from srd.export.base import FORMATS, Exported, Format
from srd.export.texts import shown
from srd.metrics.scripts import PUBLISHED

ROWS, SCORER = "test.jsonl", "srd_metrics.py"
AT_ONCE = 1000

SCORER_TEXT = '''"""ROUGE-L and exact match of an answer in percent, as srd has them."""

import string

try:
    import functools

    from srd import rouge_l

    rouge_l = functools.partial(rouge_l, words={words!r})
except ImportError:
    from rouge_score.rouge_scorer import RougeScorer

    SCORER = RougeScorer(["rougeL"], use_stemmer=True)  # reads Latin letters and digits alone

    def rouge_l(prediction, references):
        return max(SCORER.score(reference, prediction)["rougeL"].fmeasure for reference in references)


def process_results(doc, results):
    """The scores of one answer."""
    answer, references = results[0], doc["references"]
    return {
        "rouge_l": 100 * rouge_l(answer, references),
        "exact_match": 100 * float(any(_plain(answer) == _plain(reference) for reference in references)),
    }


def _plain(text):
    """A text without case, punctuation and more than one space between words."""
    return " ".join("".join(letter for letter in text.lower() if letter not in string.punctuation).split())
'''


def task_name(exported: Exported) -> str:
    """The task's name, of characters that the harness takes."""
    return "srd_" + "".join(letter if letter.isalnum() else "_" for letter in exported.name)


def names(exported: Exported) -> list[str]:
    """The task, its rows and its scorer."""
    return [f"{task_name(exported)}.yaml", ROWS, SCORER]


def write(exported: Exported, folder: Path) -> None:
    """Write them."""
    write_json_lines(folder / ROWS, rows(exported))
    task = dump_yaml(settings(exported, folder)) + f"process_results: !function {Path(SCORER).stem}.process_results\n"
    scorer = SCORER_TEXT.replace("{words!r}", repr(exported.run.words))
    for name, text in ((f"{task_name(exported)}.yaml", task), (SCORER, scorer)):
        write_text(folder / name, text)


def rows(exported: Exported) -> Iterator[dict[str, Any]]:
    """The test rows with the whole text of their prompts."""
    run = exported.run
    split = run.split("test")
    for start in range(0, len(split), AT_ONCE):
        batch = split.select(range(start, min(start + AT_ONCE, len(split)))).to_list()
        for row, text in zip(batch, shown(run.encoder, batch), strict=True):
            yield {"id": row["id"], "prompt": text.begin + text.prompt, "references": list(row["references"])}


def settings(exported: Exported, folder: Path) -> dict[str, Any]:
    """The task without its scorer, which plain YAML cannot name."""
    run = exported.run
    stops = sorted({str(run.tokenizer.decode([token])) for token in turns_of(run.tokenizer).stops})
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("rouge_l", "exact_match")]
    return {
        "task": task_name(exported),
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str((folder / ROWS).resolve())}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",  # whole, with its frame
        "doc_to_target": "{{references[0]}}",
        "target_delimiter": "",
        "generation_kwargs": {"until": stops, "do_sample": False, "max_gen_toks": run.recipe.generation.max_new_tokens},
        "metric_list": metrics,
        "metadata": {"version": 1.0},
    }


def then(exported: Exported, folder: Path) -> str:
    """What to do with it."""
    needs = "" if exported.run.words == PUBLISHED else "; install srd there, as rouge-score reads Latin letters alone"
    return (
        f"lm_eval --model hf --model_args pretrained={exported.folder},dtype=float32,add_bos_token=False "
        f"--include_path {folder} --tasks {task_name(exported)} --batch_size 8 (greedy: compare with "
        f"evaluation.temperature=0{needs})"
    )


FORMATS.register("lm_eval")(Format("lm-evaluation-harness", names, write, then))
