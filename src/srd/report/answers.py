"""Examples to read: the student's answers to training examples before and after, and to unseen prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from srd.base.text import escape_html as escape
from srd.evaluation.predictions import predictions_path, read_answers
from srd.report import words
from srd.report.comparison import Model, baseline_of, main_model, primary_metrics
from srd.report.difficulty import examples_to_show
from srd.report.run_files import Row, RunFiles, finite, read_json_lines, read_parquet

GROUPS = {
    "easiest": ("Easiest", "The student nearly knew these already; training starts here."),
    "hardest": ("Hardest of those kept", "These enter in the last stage."),
    "dropped": ("Dropped", "Too hard or too odd for this student; never trained on."),
}
TEXT_LIMIT = 2000


def training_answers(run: RunFiles) -> str:
    """Write the easiest, hardest and some dropped training examples to unfold; empty without a ranking."""
    groups = examples_to_show(run.ranked)
    ids = [example_id for group in groups.values() for example_id in group]
    examples = by_id(read_parquet(run.training_file, ids))
    before = by_id(read_parquet(run.run_dir / "reflection" / "scores.parquet", ids, ["id", "response"]))
    after = by_id(read_json_lines(run.run_dir / "evaluation" / "train_samples.jsonl"))
    ranked = by_id(read_parquet(run.run_dir / "curriculum" / "ranked.parquet", ids))
    parts = []
    for group, group_ids in groups.items():
        cards = [
            training_card(ranked[example_id], examples[example_id], before.get(example_id), after.get(example_id))
            for example_id in group_ids
            if example_id in examples
        ]
        if cards:
            title, explanation = GROUPS[group]
            parts.append(f"<h3>{title}</h3><p class='note'>{explanation}</p>{''.join(cards)}")
    return "".join(parts)


def training_card(ranked: Row, example: Row, before: Row | None, after: Row | None) -> str:
    """Write one training example with its scores, its reference and both answers of the student."""
    scores = [f"ROUGE-L {finite(ranked, 'rouge_l'):.2f}", f"{finite(ranked, 'ce'):.2f} nats"]
    if example.get("corruption"):
        scores.append(str(example["corruption"]))
    answers: list[tuple[str, str | None, str]] = [("Reference", first_reference(example), "reference")]
    answers.append(("Student before", before["response"] if before else None, ""))
    if after is not None:
        score = finite(after, "rouge_l")
        title = f"{words.model_name(str(after.get('model', 'srd')))} after"
        answers.append((title + (f" · ROUGE-L {score:.2f}" if math.isfinite(score) else ""), after["text"], "ours"))
    return card(f"#{ranked['rank']:.0f}", example, scores, answers)


def unseen_answers(run: RunFiles, models: Sequence[Model]) -> str:
    """Write test prompts where our model gains most on the baseline, is typical of it, and loses most.

    Uses one seed and the first task whose prompts are in ``examples/test.parquet``; else empty.
    """
    ours = main_model(list(models), primary_metrics(list(models)))
    if ours is None:
        return ""
    for task in {task: None for task, _ in ours.scores}:
        answers = {model.key: predictions(run, model, task) for model in models}
        answers = {key: rows for key, rows in answers.items() if rows}
        found = baseline_of([model for model in models if model is not ours and model.key in answers])
        if found is None or ours.key not in answers:
            continue
        baseline = found.key
        gains = sorted(
            (finite(row, "rouge_l") - finite(answers[baseline][key], "rouge_l"), key)
            for key, row in answers[ours.key].items()
            if key in answers[baseline] and "rouge_l" in row and "rouge_l" in answers[baseline][key]
        )
        chosen = {
            "Greatest gain": gains[-1:],
            "Typical": gains[len(gains) // 2 :][:1],
            "Greatest loss": gains[:1],
        }
        wanted = [key for pairs in chosen.values() for _, key in pairs]
        prompts = by_id(read_parquet(run.run_dir / "examples" / "test.parquet", wanted))
        cards = [
            unseen_card(label, key, gain, prompts[key], answers, ours.key)
            for label, pairs in chosen.items()
            for gain, key in pairs
            if key in prompts
        ]
        if cards:
            note = f"From {words.task_name(task)}, one seed; gain and loss are over {words.phrase(baseline)}."
            return f"<h3>Answers to unseen prompts</h3><p class='note'>{escape(note)}</p>{''.join(cards)}"
    return ""


def unseen_card(label: str, key: str, gain: float, example: Row, answers: dict[str, dict[str, Row]], ours: str) -> str:
    """Write one test prompt with the answers of all models, each with its ROUGE-L."""
    shown: list[tuple[str, str | None, str]] = [("Reference", first_reference(example), "reference")]
    for model, rows in answers.items():
        if key in rows:
            score = finite(rows[key], "rouge_l")
            title = words.model_name(model) + (f" · ROUGE-L {score:.2f}" if math.isfinite(score) else "")
            shown.append((title, rows[key]["text"], "ours" if model == ours else ""))
    return card(label, example, [f"ROUGE-L {words.signed(gain, 2)}"], shown)


def predictions(run: RunFiles, model: Model, task: str) -> dict[str, Row]:
    """Read the answers of a model to a task for the first of the seeds that ``metrics.json`` has, by example id.

    Answers that are not as they were when they were scored are left out: their scores would be another text's.
    """
    seeds = next((seeds for (name, _), seeds in model.seeds.items() if name == task and seeds), {})
    for seed in seeds:
        rows = read_answers(predictions_path(run.run_dir / "evaluation", model.key, task, seed))
        if rows:
            return by_id(rows)
    return {}


def card(label: str, example: Row, scores: Sequence[str], answers: Sequence[tuple[str, str | None, str]]) -> str:
    """Write an example that unfolds: its instruction as the summary, then input, and answers side by side.

    Args:
        label: What comes before the instruction, such as its rank.
        example: A row of the examples.
        scores: Short facts.
        answers: (title, text or None where unknown, CSS class) in the order shown.
    """
    instruction = str(example.get("instruction") or example.get("prompt") or "")
    facts = "".join(f"<span>{escape(score)}</span>" for score in scores)
    prompt = "" if len(instruction) <= 110 and "\n" not in instruction else text_box("Instruction", instruction, "wide")
    if example.get("input"):
        prompt += text_box("Input", str(example["input"]), "wide")
    boxes = "".join(text_box(title, text, css_class) for title, text, css_class in answers)
    return (
        f'<details class="example"><summary><span class="label">{escape(label)}</span>'
        f'<span class="instruction">{escape(words.shorten(" ".join(instruction.split()), 110))}</span>'
        f'<span class="facts">{facts}</span></summary><div class="answers">{prompt}{boxes}</div></details>'
    )


def text_box(title: str, text: str | None, css_class: str) -> str:
    """Write one titled text; None is said to be unknown, an empty one to be empty."""
    body = escape(text, longest=TEXT_LIMIT) if text else f"<em>{'unknown' if text is None else 'empty'}</em>"
    return f'<div class="answer {css_class}"><h4>{escape(title)}</h4><p>{body}</p></div>'


def first_reference(example: Row) -> str:
    """Return the reference that is trained on."""
    references = example.get("references") or [""]
    return str(references[0])


def by_id(rows: Sequence[Row]) -> dict[str, Row]:
    """Key rows by their id."""
    return {str(row["id"]): row for row in rows if "id" in row}
