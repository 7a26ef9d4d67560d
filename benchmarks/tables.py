"""From raw figures to the tables and plots of docs/speed.md."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from benchmarks.plots import bar_plot, log_plot, write_plot
from srd.base.files import atomic_write
from srd.base.text import duration
from srd.report.plots import Bar, Series
from srd.report.tables import Cell, Column, Table, to_markdown

Result = dict[str, Any]

EXAMPLES = 1_000  # of the epoch and the schedule that the tables speak of
STAGES = (0.25, 0.5, 0.75)  # shares of the data, 8 epochs each
EPOCHS = 8
SYSTEMS = {
    "conventional": "conventional",
    "trl_gkd": "TRL, GKDTrainer off-policy",
    "ours": "ours, KD",
    "ours_half": "ours, KD, bfloat16 teacher",
    "sft": "ours, plain SFT (the limit)",
}
NO_CACHE = ("conventional", "trl_gkd", "sft")


def settings_of(results: Result) -> list[tuple[str, int]]:
    """Profiles and batch sizes that were measured."""
    found = (key.split("/") for key in results if key.endswith("/ours") and key.startswith(("dolly", "pydocs")))
    return sorted({(profile, int(batch)) for profile, batch, _ in found})


def steps_of(examples: int, batch_size: int, epochs: int = 1) -> int:
    """Optimizer steps."""
    return math.ceil(examples / batch_size) * epochs


def schedule_steps(batch_size: int) -> int:
    """Optimizer steps of all three stages."""
    return sum(steps_of(int(share * EXAMPLES), batch_size, EPOCHS) for share in STAGES)


def cache_seconds(results: Result, setting: str, system: str) -> float:
    """Building the cache for all the examples; 0 for a system that has none."""
    if system in NO_CACHE:
        return 0.0
    built = results[f"{setting}/build_half" if system == "ours_half" else f"{setting}/build"]
    return float(built["seconds_per_example"]) * EXAMPLES + float(built["seconds_once"])


def schedule_seconds(results: Result, setting: str, system: str) -> float | None:
    """The whole SRD schedule with one system, cache building included; None where it could not run."""
    row = results.get(f"{setting}/{system}", {})
    if "seconds" not in row:
        return None
    batch_size = int(setting.split("/")[1])
    return float(row["seconds"]) * schedule_steps(batch_size) + cache_seconds(results, setting, system)


def training_table(results: Result, setting: str) -> str:
    """All systems in one setting."""
    batch_size = int(setting.split("/")[1])
    columns = [
        Column("system"),
        Column("seconds a step", 2),
        Column("epoch", show=duration),
        Column("with cache building", show=duration),
        Column("SRD schedule", show=duration),
        Column("tokens/s", 0),
        Column("padding %", 1),
        Column("peak memory, MB", 0),
        Column("time ÷ SFT", 2),
        Column("schedule ÷ ours", 2),
    ]
    limit = results[f"{setting}/sft"]["seconds"]
    ours = schedule_seconds(results, setting, "ours")
    rows: list[list[Cell]] = []
    for system, label in SYSTEMS.items():
        row = results.get(f"{setting}/{system}")
        if row is None:
            continue
        if "failed" in row:
            rows.append([f"{label}: {row['failed']}", *[None] * (len(columns) - 1)])
            continue
        epoch = row["seconds"] * steps_of(EXAMPLES, batch_size)
        schedule = schedule_seconds(results, setting, system)
        assert ours is not None and schedule is not None
        rows.append(
            [
                label,
                row["seconds"],
                epoch,
                epoch + cache_seconds(results, setting, system),
                schedule,
                row["tokens"] / row["seconds"],
                100 * row["padding"],
                row["memory_peak"] / 1e6,
                row["seconds"] / limit,
                schedule / ours,
            ]
        )
    return to_markdown(Table(columns, rows))


def target_table(results: Result) -> str:
    """What had to be reached, and what was measured."""
    batches = [f"dolly/{batch}" for profile, batch in settings_of(results) if profile == "dolly"]
    rows: list[list[Cell]] = []

    def row(label: str, target: str, values: list[float | None]) -> None:
        rows.append([label, target, *["–" if value is None else f"{value:.3g}" for value in values]])

    def of(setting: str, system: str, key: str) -> float | None:
        value = results.get(f"{setting}/{system}", {}).get(key)
        return None if value is None else float(value)

    def ratio(first: float | None, second: float | None) -> float | None:
        return None if first is None or second is None else first / second

    ours = {setting: schedule_seconds(results, setting, "ours") for setting in batches}
    for system, target in (("conventional", "≥ 15"), ("trl_gkd", "≥ 6")):
        label = f"{SYSTEMS[system]} ÷ ours, SRD schedule, cache building included"
        row(label, target, [ratio(schedule_seconds(results, b, system), ours[b]) for b in batches])
    for system, name in (("ours", "KD"), ("ours_half", "KD with a bfloat16 teacher")):
        pairs = [(of(b, system, "seconds"), of(b, "sft", "seconds")) for b in batches]
        row(f"{name}, warm cache ÷ SFT, one epoch", "≤ 1.08", [ratio(*pair) for pair in pairs])
    pairs = [(of(b, "ours", "memory_peak"), of(b, "sft", "memory_peak")) for b in batches]
    row("peak memory, KD ÷ SFT", "≤ 1.2", [ratio(*pair) for pair in pairs])
    row("cache bytes ÷ (tokens × hidden size × bytes)", "≤ 1.02", [of(b, "build", "overhead") for b in batches])
    for size, key in numbered(results, "reflection"):
        value = results[key]["conventional"]["seconds"] / results[key]["ours"]["seconds"]
        label = f"conventional ÷ ours, reflection in batches of {size}"
        rows.append([label, "≥ 3", f"{value:.3g}", *["same"] * (len(batches) - 1)])
    if "rouge" in results:
        value = results["rouge"]["package"] / results["rouge"]["ours"]
        rows.append(["rouge-score ÷ ours, ROUGE-L", "≥ 100", f"{value:.3g}", *["same"] * (len(batches) - 1)])
    names = [Column(f"batch {setting.split('/')[1]}") for setting in batches]
    return to_markdown(Table([Column("measured on the Dolly-like profile"), Column("target"), *names], rows))


def text_table(results: Result) -> str:
    """Reflection, ROUGE-L and on-policy training."""
    rows: list[list[Cell]] = []

    def row(label: str, ours: Result, theirs: Result) -> None:
        rows.append(
            [
                label,
                theirs["seconds"],
                ours["seconds"],
                theirs["seconds"] / ours["seconds"],
                theirs["memory_peak"] / 1e6,
                ours["memory_peak"] / 1e6,
            ]
        )

    for size, key in numbered(results, "reflection"):
        found = results[key]
        same = f"same answers {100 * found['agreed']:.0f} %, cross-entropies within {found['ce_apart']:.1e}"
        row(f"reflection in batches of {size}, conventional ({same})", found["ours"], found["conventional"])
    if "on_policy/ours" in results:
        row("on-policy step, TRL DistillationTrainer", results["on_policy/ours"], results["on_policy/trl"])
    if "rouge" in results:
        found = results["rouge"]
        label = f"ROUGE-L, rouge-score package (largest difference {found['difference']:.0e})"
        rows.append([label, found["package"], found["ours"], found["package"] / found["ours"], None, None])
    columns = [
        Column("compared with"), Column("theirs, s", 3), Column("ours, s", 3), Column("ratio", 1),
        Column("their peak, MB", 0), Column("our peak, MB", 0),
    ]  # fmt: skip
    return to_markdown(Table(columns, rows))


def numbered(results: Result, prefix: str) -> list[tuple[int, str]]:
    """The measured sizes of one scale: (size, key)."""
    sizes = {int(key.split("/")[1]) for key in results if key.startswith(f"{prefix}/")}
    return [(size, f"{prefix}/{size}") for size in sorted(sizes)]


def scaling_table(results: Result) -> str:
    """How cost grows."""
    rows: list[list[Cell]] = []
    for size, key in numbered(results, "ranking"):
        rows.append(["ranking", f"{size:,} rows", results[key]["seconds"], results[key]["memory_peak"] / 1e6, None])
    step = results.get("dolly/16/ours", results.get("dolly/4/ours", {})).get("seconds")
    for size, key in numbered(results, "examples"):
        row = results[key]
        share = f"{1000 * row['per_step']:.1f} ms a step, {100 * row['per_step'] / step:.2f} % of it" if step else None
        rows.append(["loading an epoch, batch 16", f"{size:,} examples", row["seconds"], None, share])
        if step and "dolly/16/ours" in results:
            rows.append(["training an epoch, batch 16", f"{size:,} examples", step * steps_of(size, 16), None, None])
    for prefix, unit in (("length", "response tokens"), ("batch", "examples a step")):
        for size, key in numbered(results, prefix):
            ours, sft = results[f"{key}/ours"], results[f"{key}/sft"]
            note = f"SFT {sft['seconds']:.2f} s, ÷ SFT {ours['seconds'] / sft['seconds']:.2f}"
            rows.append(["KD step", f"{size:,} {unit}", ours["seconds"], ours["memory_peak"] / 1e6, note])
    for size, key in numbered(results, "vocabulary"):
        row = results[key]
        note = f"unfused {row['unfused']:.3f} s, {row['unfused_memory'] / 1e6:.0f} MB; CE {row['cross_entropy']:.3f} s"
        rows.append(["loss path, 256 tokens", f"{size:,} ids", row["ours"], row["memory"] / 1e6, note])
    columns = [Column("what"), Column("size"), Column("seconds", 3), Column("memory, MB", 0), Column("beside it")]
    return to_markdown(Table(columns, rows))


MEMORY_LABELS = {
    "import": "import and split a file",
    "reflect": "encode and reflect, model left out",
    "rank": "rank and lay out stages",
}


def memory_table(results: Result) -> str:
    """Peak memory over rows."""
    rows: list[list[Cell]] = [
        [label, f"{size:,}", results[key]["anonymous"], results[key]["resident"], results[key]["seconds"]]
        for work, label in MEMORY_LABELS.items()
        for size, key in numbered(results, f"memory_{work}")
    ]
    columns = [
        Column("work"), Column("rows"), Column("memory of its own, GB", 2), Column("with mapped pages, GB", 2),
        Column("seconds", 0),
    ]  # fmt: skip
    return to_markdown(Table(columns, rows))


def profile_table(results: Result) -> str:
    """Where the time of a distillation step goes."""
    shares = results["profile"]["shares"]
    rows = [[kind, 100 * share] for kind, share in sorted(shares.items(), key=lambda item: -item[1])]
    return to_markdown(Table([Column("kind of work"), Column("% of the step", 1)], rows))


def all_tables(results: Result) -> dict[str, str]:
    """Every table by the name of its place in the document."""
    written = {"machine": f"{results['machine']}; measured {results['date']}.\n"}
    if settings_of(results):
        written["targets"] = target_table(results)
        for profile, batch in settings_of(results):
            written[f"{profile}-{batch}"] = training_table(results, f"{profile}/{batch}")
    if "profile" in results:
        written["profile"] = profile_table(results)
    if numbered(results, "reflection") or "on_policy/ours" in results:
        written["texts"] = text_table(results)
    if any(numbered(results, prefix) for prefix in ("ranking", "examples", "length", "vocabulary", "batch")):
        written["scaling"] = scaling_table(results)
    if any(numbered(results, f"memory_{work}") for work in MEMORY_LABELS):
        written["memory"] = memory_table(results)
    return written


def write_document(path: Path, written: dict[str, str]) -> None:
    """Put each table between its two marks, and leave every other line as it is."""
    text = path.read_text(encoding="utf-8")
    for name, table in written.items():
        pattern = re.compile(rf"(<!-- bench:{re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, places = pattern.subn(lambda match, table=table: f"{match[1]}\n{table}\n{match[2]}", text)
        if places != 1:
            raise RuntimeError(f"{path} has {places} places marked <!-- bench:{name} --> … <!-- end -->, not one")
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


#: Colours of a plot's lines, of the report's style sheet.
COLORS = ("var(--arm-srd)", "var(--arm-kd)", "var(--arm-1)")


def write_plots(folder: Path, results: Result) -> None:
    """The bars of each setting, and a plot for every scale."""
    for profile, batch in settings_of(results):
        setting = f"{profile}/{batch}"
        bars = [
            Bar(label, seconds, duration(seconds), COLORS[0] if label.startswith("ours") else "var(--bar)")
            for system, label in SYSTEMS.items()
            if (seconds := schedule_seconds(results, setting, system)) is not None
        ]
        title = f"SRD schedule, {EXAMPLES:,} examples, {profile}, batch {batch}"
        write_plot(folder / f"schedule-{profile}-{batch}.svg", bar_plot(bars, title=title))

    def points(prefix: str, suffix: str = "", key: str = "seconds") -> list[tuple[float, float]]:
        return [(size, results[name + suffix][key]) for size, name in numbered(results, prefix)]

    step = results.get("dolly/16/ours", {}).get("seconds", 0.0)
    training = [(size, step * steps_of(size, 16)) for size, _ in numbered(results, "examples") if step]
    vocabulary = {"ours, KD": "ours", "unfused KD": "unfused", "ours, cross-entropy alone": "cross_entropy"}
    memory = {label: points(f"memory_{work}", key="resident") for work, label in MEMORY_LABELS.items()}
    # name of the file: title, x axis, y axis, lines
    plots: dict[str, tuple[str, str, str, dict[str, list[tuple[float, float]]]]] = {
        "ranking": ("Ranking", "rows", "seconds", {"ranking": points("ranking")}),
        "examples": (
            "One epoch, batch 16", "examples", "seconds", {"training": training, "of which loading": points("examples")}
        ),
        "length": (
            "A step of 4 examples", "response tokens", "seconds",
            {"KD": points("length", "/ours"), "SFT": points("length", "/sft")},
        ),
        "batch": (
            "A step, Dolly-like lengths", "examples in the step", "seconds",
            {"KD": points("batch", "/ours"), "SFT": points("batch", "/sft")},
        ),
        "vocabulary": (
            "Loss path, 256 tokens", "vocabulary", "seconds",
            {label: points("vocabulary", key=key) for label, key in vocabulary.items()},
        ),
        "memory": ("Peak memory, mapped pages included", "rows", "GB", memory),
    }  # fmt: skip
    for name, (title, x_label, y_label, lines) in plots.items():
        drawn = {label: line for label, line in lines.items() if line}
        series = [
            Series(label, color, line, [f"{label}: {y:.3g}" for _, y in line])
            for (label, line), color in zip(drawn.items(), COLORS, strict=False)
        ]
        if series:
            write_plot(folder / f"{name}.svg", log_plot(series, title=title, x_label=x_label, y_label=y_label))
