"""What `srd doctor` prints: one screen of what the models will see, and of what to do before a run."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from srd.base.text import count, duration, many, percent, shown_bytes
from srd.run.plan.doctor import Diagnosis, Seen, Side

SHOWN = 120  # tokens of a prompt or a response
READ, LEARNT, BORDER = "cyan", "bold green", "dim"


def print_diagnosis(found: Diagnosis, console: Console) -> None:
    """Print models, examples token by token, counts, costs, and warnings with their remedies."""
    console.print(Text(found.recipe, style="bold"))
    console.print(_models(found))
    for example in found.examples:
        _print_example(example, found.tokens, console)
    console.print(_facts(found))
    for note in found.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)
    for warning in found.warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), warning.what), soft_wrap=True)
        console.print(Text.assemble(("  remedy: ", "bold green"), warning.remedy), soft_wrap=True)
    if not found.warnings:
        console.print(Text("No warnings.", style="green"))


def _models(found: Diagnosis) -> Table:
    table = Table("", "teacher", "student", box=None, pad_edge=False)
    sides: tuple[Side, Side] = (found.teacher, found.student)
    sizes = (found.plan.teacher, found.plan.student)
    rows = {
        "model": [f"{side.model} ({side.architecture})" for side in sides],
        "parameters": [count(size.parameters) if size.parameters else "not known" for size in sizes],
        "tokenizer": [side.tokenizer for side in sides],
        "template": [side.template for side in sides],
        "special tokens": [
            ", ".join(f"{role.removesuffix('_token')} {token}" for role, token in side.special.items() if token)
            for side in sides
        ],
        "an answer ends with": [" or ".join(side.stops) for side in sides],
    }
    for name, values in rows.items():
        table.add_row(name, *map(Text, values))
    return table


def _print_example(example: Seen, texts: dict[int, str], console: Console) -> None:
    end = "" if example.ended else ", without an end"
    console.print(Text(f"\nexample {example.id}, template {example.template}", style="bold"), soft_wrap=True)
    read, learnt = many(len(example.prompt_ids), "token"), many(len(example.response_ids), "token")
    parts = (
        (f"read, {read}", example.prompt_ids, _learnt_within(example)),
        (f"learnt, {learnt}{end}", example.response_ids, [True] * len(example.response_ids)),
    )
    for title, ids, own in parts:
        console.print(Text(f"{title}:", style="dim"))
        console.print(_tokens(ids, own, texts), soft_wrap=True)


def _learnt_within(example: Seen) -> list[bool]:
    """Which tokens of the prompt are learnt, as parts of earlier answers."""
    spans = list(zip(example.earlier[::2], example.earlier[1::2], strict=True))
    return [any(first <= place < end for first, end in spans) for place in range(len(example.prompt_ids))]


def _tokens(ids: Sequence[int], learnt: Sequence[bool], texts: dict[int, str]) -> Text:
    """Tokens between bars, those that are learnt in another colour, the middle of many left out."""
    text, half = Text(), SHOWN // 2
    for place, (token, own) in enumerate(zip(ids, learnt, strict=True)):
        if len(ids) > SHOWN and half <= place < len(ids) - half:
            if place == half:
                text.append(f"│ … {many(len(ids) - SHOWN, 'token')} … ", style=BORDER)
            continue
        text.append("│" if place else "", style=BORDER)
        text.append(texts[token].replace("\n", "↵\n"), style=LEARNT if own else READ)
    return text


def _facts(found: Diagnosis) -> Table:
    counts, plan = found.counts, found.plan
    table = Table(box=None, show_header=False, pad_edge=False)
    learnt = f"{counts.ended:,} of {counts.examples:,} responses ({percent(counts.ended / counts.examples)})"
    table.add_row("\nend of a turn learnt", f"\nin {learnt}")
    table.add_row(
        "cut", f"{many(counts.prompts_cut, 'prompt')}, {many(counts.responses_cut, 'response')} of {counts.examples:,}"
    )
    data = plan.data
    table.add_row("examples", f"{data.train:,} train, {data.validation:,} validation, {data.test:,} test")
    table.add_row("time", f"about {duration(plan.flops / plan.flops_per_second)} on this machine")
    table.add_row("memory", f"{shown_bytes(plan.memory)} at the peak")
    table.add_row("disk", f"{shown_bytes(plan.disk)} kept, {shown_bytes(plan.checkpoint_bytes)} while a stage trains")
    if found.missing:
        table.add_row("missing packages", Text("; ".join(each.remedy for each in found.missing)))
    return table
