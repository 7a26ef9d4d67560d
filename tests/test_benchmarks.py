"""The benchmark compares like with like, and its tables say what was measured."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from benchmarks import cases, conventional, detection, gpu, refresh, tables, won_back
from benchmarks.lengths import log_normal_lengths
from benchmarks.plots import line_plot
from benchmarks.workload import padded_share

from srd.base.files import write_json
from srd.curation import likelihoods
from srd.curation.cleaning import Reader
from srd.data.batching import Collator
from srd.data.encoding import Encoder
from srd.data.examples import examples_from_rows
from srd.data.settings import SourceConfig
from srd.data.templates.base import get_template
from srd.evaluation.predictions import predictions_path, write_answers
from srd.models.head import HeadWeights, head_weights, response_hidden
from srd.report.plots import Series
from srd.sweep.cells import lay_out
from srd.sweep.settings import find_sweep, load_sweep
from srd.training.loss import row_losses
from srd.training.loss.response_loss import head_loss
from srd.training.loss.settings import LossSettings
from tests.oracle import noun_rows, oracle_losses
from tests.tiny import tiny_tokenizer

ROOT = Path(__file__).resolve().parent.parent


def test_what_benchmarks_import_is_there() -> None:
    """Most of them run on demand alone, so that a name that is gone would be noticed late."""
    gone = []
    for path in (ROOT / "benchmarks").rglob("*.py"):
        nodes = [each for each in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(each, ast.ImportFrom)]
        for node in (each for each in nodes if (each.module or "").split(".")[0] == "srd"):
            place = ROOT / "src" / str(node.module).replace(".", "/")
            inside = {each.stem for each in place.glob("*.py")} | {each.name for each in place.glob("*/")}
            file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            inside |= _defined(file)
            gone += [f"{path.name}: {node.module}.{each.name}" for each in node.names if each.name not in inside]
    assert gone == []


@functools.cache
def _defined(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {each.asname or each.name for each in node.names}
    return names


def test_a_cache_is_read_without_models() -> None:
    assert cases.data_path(20, 4).keys() == {"seconds", "per_step", "padding"}


def test_the_conventional_losses_have_our_gradient() -> None:
    torch.manual_seed(0)
    rows = [
        {"prompt_ids": [3, 4, 5], "response_ids": [6, 7, 1]},
        {"prompt_ids": [8], "response_ids": [9, 1]},
    ]
    labels = conventional.pad_batch(rows, pad_id=0)["labels"][:, :8]
    hidden = torch.randn(2, 8, 4, dtype=torch.float64)
    weight = torch.randn(11, 4, dtype=torch.float64, requires_grad=True)
    teacher_hidden, teacher_weight = torch.randn(2, 8, 4, dtype=torch.float64), torch.randn(11, 4, dtype=torch.float64)
    student_logits, teacher_logits = hidden @ weight.T, teacher_hidden @ teacher_weight.T
    loss = 0.2 * conventional.cross_entropy_loss(student_logits, labels)
    loss = loss + 0.8 * conventional.forward_kl_loss(student_logits, teacher_logits, labels, 2.0)
    (theirs,) = torch.autograd.grad(loss, weight)

    counts = labels != conventional.IGNORED
    assert counts.sum() == 5
    ours, _ = head_loss(
        hidden[counts],
        HeadWeights(weight),
        labels[counts],
        LossSettings("fkl", temperature=2.0, weight=0.8),
        counts.sum(),
        teacher_hidden=teacher_hidden[counts],
        teacher_head=HeadWeights(teacher_weight),
    )
    (expected,) = torch.autograd.grad(ours, weight)
    torch.testing.assert_close(theirs, expected, rtol=1e-5, atol=1e-6)


def test_lengths_have_the_mean_that_was_asked_for() -> None:
    lengths = log_normal_lengths(80, 0.9, 256, 1024, stream=1)
    assert abs(sum(lengths) / len(lengths) - 80) < 0.5
    assert 4 <= min(lengths) < max(lengths) <= 256
    assert lengths == log_normal_lengths(80, 0.9, 256, 1024, stream=1)


def test_padding_is_counted_against_the_longest_of_each_step() -> None:
    assert padded_share([2, 4, 3, 3], [[0, 1], [2, 3]]) == pytest.approx(2 / 14)


@pytest.fixture
def results() -> dict[str, Any]:
    row = {"tokens": 600.0, "padding": 0.1, "memory_peak": 2_000_000_000}
    found: dict[str, Any] = {"machine": "a machine", "date": "2026-01-01", "quick": True}
    for system, seconds in {"conventional": 20.0, "trl_gkd": 8.0, "ours": 1.1, "ours_half": 1.0, "sft": 1.0}.items():
        found[f"dolly/4/{system}"] = {**row, "seconds": seconds}
    for name in ("build", "build_half"):
        found[f"dolly/4/{name}"] = {"seconds_per_example": 0.1, "seconds_once": 5.0, "overhead": 1.001}
    found["reflection/16"] = {
        "ours": {"seconds": 2.0, "memory_peak": 1e9},
        "conventional": {"seconds": 8.0, "memory_peak": 2e9},
        "agreed": 1.0,
        "ce_apart": 1e-5,
    }
    found["ranking/1000"] = {"seconds": 0.01, "memory_peak": 5e8}
    found["ranking/10000"] = {"seconds": 0.1, "memory_peak": 6e8}
    for rows, gigabytes in ((1_000, 0.4), (10_000, 0.5)):
        found[f"memory_reflect/{rows}"] = {"anonymous": gigabytes, "resident": 0.6, "seconds": 9.0}
    return found


def test_the_schedule_counts_every_step_and_the_cache(results: dict[str, Any]) -> None:
    steps = 8 * (63 + 125 + 188)  # 250, 500 and 750 examples in batches of 4
    assert tables.schedule_steps(4) == steps
    assert tables.schedule_seconds(results, "dolly/4", "ours") == pytest.approx(1.1 * steps + 0.1 * 1000 + 5)
    assert tables.schedule_seconds(results, "dolly/4", "conventional") == pytest.approx(20 * steps)


def test_tables_show_the_ratios(results: dict[str, Any]) -> None:
    written = tables.all_tables(results)
    targets = written["targets"]
    assert "| 1.1 |" in targets  # KD to SFT
    assert f"{20 * 3008 / (1.1 * 3008 + 105):.3g}" in targets
    assert "| 4 |" in targets  # reflection
    assert "| encode and reflect, model left out | 10,000 | 0.50 |" in written["memory"]
    assert "out of memory" in tables.training_table(
        {**results, "dolly/4/conventional": {"failed": "out of memory"}}, "dolly/4"
    )


def test_the_document_has_a_place_for_every_table(results: dict[str, Any], tmp_path: Path) -> None:
    results["dolly/16/ours"] = results["pydocs/4/ours"] = results["dolly/4/ours"]
    for setting in ("dolly/16", "pydocs/4"):
        for system in ("conventional", "trl_gkd", "sft", "build"):
            results[f"{setting}/{system}"] = results[f"dolly/4/{system}"]
    results["profile"] = {"shares": {"matrix products": 0.9, "everything else": 0.1}}
    written = tables.all_tables(results)
    copy = tmp_path / "speed.md"
    copy.write_text((ROOT / "docs" / "speed.md").read_text(encoding="utf-8"), encoding="utf-8")
    tables.write_document(copy, written)
    once = copy.read_text(encoding="utf-8")
    assert all(table.strip() in once for table in written.values())
    tables.write_document(copy, written)
    assert copy.read_text(encoding="utf-8") == once
    with pytest.raises(RuntimeError, match="bench:nowhere"):
        tables.write_document(copy, {"nowhere": "a table"})


def test_plots_are_written_whole(results: dict[str, Any], tmp_path: Path) -> None:
    from xml.etree import ElementTree

    tables.write_plots(tmp_path, results)
    assert {path.name for path in tmp_path.iterdir()} == {"schedule-dolly-4.svg", "ranking.svg", "memory.svg"}
    for path in tmp_path.iterdir():
        drawing = ElementTree.parse(path).getroot()
        assert drawing.tag.endswith("svg")
        assert len(list(drawing.iter())) > 10


@pytest.fixture(scope="module")
def on_tiny_models() -> dict[str, Any]:
    plan, make = replace(gpu.TINY, texts=(("64", 2),), steps=1, written=4), torch.compile
    with pytest.MonkeyPatch.context() as patch:
        # Graphs without the kernels, which take long to make.
        patch.setattr(torch, "compile", lambda function: make(function, backend="aot_eager"))
        row_losses.compiled_losses.cache_clear()
        found = dict(gpu.measure(plan, torch.device("cpu")))
    row_losses.compiled_losses.cache_clear()
    return {"device": "no GPU", "torch": "", "transformers": "", "peak_flops": 1e9, "measured": found}


def _imported_at_once(body: list[ast.stmt]) -> Iterator[str]:
    """Names that importing these statements imports: not those in functions, nor those that only types ask for."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level
            yield from (node.module, *(f"{node.module}.{name.name}" for name in node.names))
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef) and "TYPE_CHECKING" not in ast.unparse(node):
            yield from _imported_at_once(node.body)


def test_the_gpu_benchmark_needs_nothing_that_a_training_machine_lacks() -> None:
    places, waiting, seen = (ROOT, ROOT / "src"), ["benchmarks.gpu"], set[str]()
    others = set[str]()
    while waiting:
        module = waiting.pop()
        parts = module.split(".")
        waiting += [".".join(parts[:end]) for end in range(1, len(parts))]
        paths = [place.joinpath(*parts) for place in places]
        files = [file for path in paths for file in (path.with_suffix(".py"), path / "__init__.py")]
        if module in seen or parts[0] in sys.stdlib_module_names:
            continue
        seen.add(module)
        if found := [file for file in files if file.is_file()]:
            waiting += _imported_at_once(ast.parse(found[0].read_text(encoding="utf-8")).body)
        elif parts[0] not in ("srd", "benchmarks"):
            others.add(parts[0])
    assert len(seen) > 40
    # what torch, transformers and accelerate bring, and pyarrow
    assert others == {"torch", "numpy", "transformers", "safetensors", "pyarrow"}


def test_every_path_of_the_gpu_benchmark_runs(on_tiny_models: dict[str, Any]) -> None:
    measured = on_tiny_models["measured"]
    failures = {key: found["failed"] for key, found in measured.items() if "failed" in found}
    assert {key.rpartition("/")[2] for key in measured} == set(gpu.SYSTEMS)
    assert set(failures.values()) <= {"TRL is not installed"}
    assert all(found["tokens"] > 0 and found["seconds"] > 0 for key, found in measured.items() if key not in failures)
    written = [found for key, found in measured.items() if key.endswith("stage")]
    assert all(found["written_tokens"] > 0 < found["write_seconds"] for found in written)


def test_the_cached_and_the_plain_way_learn_the_same() -> None:
    teacher_shape, student_shape, cpu = gpu.SHAPES["tiny-teacher"], gpu.SHAPES["tiny"], torch.device("cpu")
    teacher = gpu.make_model(teacher_shape, torch.float32, cpu, 128).eval().requires_grad_(False)
    examples, steps = gpu.make_texts("64", 2, 1, student_shape.vocab_size)
    inputs = Collator(0)([examples[i] for i in steps[0]])
    inputs["teacher_hidden"] = response_hidden(teacher, inputs)
    head = head_weights(teacher, student_shape.vocab_size)
    gradients = []
    for loss_of in (
        functools.partial(gpu.our_loss, head=head, width=student_shape.vocab_size),
        functools.partial(gpu.plain_loss, teacher=teacher, width=student_shape.vocab_size),
    ):
        student = gpu.make_model(student_shape, torch.float32, cpu, 128)
        loss_of(student, inputs).backward()
        gradients.append([weights.grad for weights in student.parameters()])
    assert max(float(gradient.abs().max()) for gradient in gradients[0]) > 1e-3
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_a_system_that_fails_costs_no_other_its_figures(on_tiny_models: dict[str, Any]) -> None:
    def broken() -> Any:
        raise torch.OutOfMemoryError("all is full")

    assert gpu.attempt(broken, torch.device("cpu")) == {"failed": "out of memory", "memory": 0}
    results = {**on_tiny_models, "measured": {"7B → 0.5B/4096/plain": {"failed": "out of memory", "memory": 0}}}
    assert "| 7B → 0.5B | 4096 | plain | out of memory |" in gpu.table(results)
    rows = gpu.table(on_tiny_models).splitlines()
    assert len(rows) == 4 + len(on_tiny_models["measured"])


def test_a_legend_of_long_names_is_seen_whole() -> None:
    series = [Series(f"a way with a long name, number {number}", "red", [(0, 1), (1, 2)]) for number in range(9)]
    drawn = line_plot(series, title="Nine", x_label="x", y_label="y")
    names = re.findall(r'<text x="(\d+)" y="(\d+)">a way', drawn)
    assert len(set(names)) == 9 and {int(x) for x, _ in names} == {84, 364}
    top = int(re.search(r'<svg x="70" y="(\d+)"', drawn)[1])  # type: ignore[index]
    assert max(int(y) for _, y in names) < top - 18


def test_what_is_won_back_is_paired_by_seed_and_question() -> None:
    draw = np.random.default_rng(0)
    questions = {seed: draw.normal(25, 10, 200 + seed) for seed in (0, 1, 2)}  # hard and easy ones, other for each seed
    variants = {
        name: {s: own + gain for s, own in questions.items()}
        for name, gain in (("kd", 0.0), ("oracle", 4.0), ("drop", 3.0))
    }
    assert won_back.difference(variants["drop"], variants["kd"]) == pytest.approx(
        (3, 3, 3)
    )  # the spread of questions is none of it
    assert won_back.won_back(variants["drop"], variants["kd"], variants["oracle"]) == pytest.approx((0.75, 0.75, 0.75))
    variants["drop"][1] = variants["drop"][1] - 3
    value, low, high = won_back.won_back(variants["drop"], variants["kd"], variants["oracle"]) or (0, 0, 0)
    assert value == pytest.approx(0.5)
    assert (low, high) == pytest.approx((0, 0.75))  # the seed that gained nothing may be drawn alone, or not at all
    del variants["drop"][1]
    assert won_back.difference(variants["drop"], variants["kd"]) == pytest.approx(
        (3, 3, 3)
    )  # over the seeds that both have


def test_a_choice_gets_in_by_the_interval_over_all_shares_or_by_being_simpler() -> None:
    draw = np.random.default_rng(0)
    gains = {"three stages": 0.0, "kd": -1.0, "better": 2.0, "worse": -2.0, "one stage": 0.0, "equal": 0.0}

    def variant(gain: float, seeds: int = 3) -> won_back.Variant:
        scores = {seed: own + gain + (draw.normal(0, 1, 100) if gain == 0 else 0) for seed, own in asked.items()}
        return won_back.Variant(scores={seed: scores[seed] for seed in range(seeds)}, summaries=[
            {"examples": 600, "steps": 38, "training_seconds": 8.0}
        ])  # fmt: skip

    asked = {seed: draw.normal(25, 10, 100) for seed in range(3)}
    found = {share: {label: variant(gain) for label, gain in gains.items()} for share in ("0%", "40%")}
    found["40%"].pop("equal")  # the time ended
    table = won_back.choices_table(found)
    said = {row.split(" | ")[0].strip("| "): row for row in table.splitlines()}
    assert said["better"].rstrip(" |").endswith("ahead: gets in") and said["worse"].rstrip(" |").endswith("behind")
    assert said["one stage"].rstrip(" |").endswith("level, and simpler: gets in")
    assert said["equal"].count("–") == 1 and said["equal"].rstrip(" |").endswith("level")  # by what there is
    assert "kd" not in said and "three stages" not in said
    alone = won_back.choices_table({"40%": found["40%"]})  # of one share there is nothing to take together
    assert "over its shares" in table and "over its shares" not in alone
    assert "| ahead: gets in |" in next(row for row in alone.splitlines() if row.startswith("| better |"))
    assert "less three stages" in won_back.variants_table(found, teachers=False, other="three stages")


def test_what_is_won_back_is_told_for_each_kind_of_damage(tmp_path: Path) -> None:
    """Of a folder as a sweep that was cut off leaves it: the variant that lacks a seed is left out."""
    gains = {"kd": 0.0, "oracle": 0.04, "cleaning, repair": 0.03, "cleaning, soften": 0.01}
    gains |= {"kd, equal time": 0.01, "random subset": 0.02, "srd": 0.0, "cleaning, drop": 0.02}
    ranks = {name: [2, 1] for name in ("rouge_l", "ce", "rank_rouge", "rank_ce", "rrf", "rank", "stage")}
    path = find_sweep("evidence-kinds")
    for cell in lay_out(load_sweep(path), path):
        seed, place = cell.seeds["seed"], tmp_path / "cells" / cell.folder
        if cell.point[won_back.KINDS] == ["duplicated"] or (cell.label == "cleaning, soften" and seed == 2):
            continue
        write_json(place / "cell.json", {"state": "done"})
        (place / "recipe.yaml").write_text("training: {curriculum: null}", encoding="utf-8")
        step = {"summary": {"examples": 144, "steps": 24, "training_seconds": 9.0}}
        write_json(place / "manifest.json", {"steps": {"train/kd": step}})
        scores = np.random.default_rng(seed).random(50) / 2 + gains[cell.label]
        answers = predictions_path(place / "evaluation", "kd", "test", 10)
        answers.parent.mkdir(parents=True)
        rows = [{"id": str(number), "prediction": ""} for number in range(50)]
        write_answers(answers, rows, {"per_example": {"rouge_l": scores.tolist()}}, "")
        for name, columns in (
            ("cleaning/rows", {"why": ["match", None]}),
            ("examples/train", {"corruption": [cell.point[won_back.KINDS][0], ""], "instruction": ["a", "b"]}),
            ("curriculum/ranked", {**ranks, "kept": [seed == 0, True]}),
        ):
            (place / name).parent.mkdir()
            pq.write_table(pa.table({"id": ["0", "1"], **columns}), place / f"{name}.parquet")
    tables = won_back.tables_of(tmp_path, path)
    arms, targets = (tables[f"{tmp_path.name}-{name}"].splitlines() for name in ("arms", "targets"))
    shown = ["swapped"] * 6 + ["truncated"] * 6 + ["mix"] * 7  # the mix has dropping beside the others
    assert [line.split(" | ")[0].strip("| ") for line in arms[2:]] == shown
    assert "0.75 (0.75 to 0.75)" in arms[4] and "cleaning, soften" not in "".join(arms)
    assert targets[3] == "| swapped: cleaning, repair wins back 0.8 | 0.75 (0.75 to 0.75) | missed |"
    assert targets[4] == "| swapped: cleaning, repair is ahead of the random subset | +1.00 (+1.00 to +1.00) | met |"
    assert targets[5] == "| swapped: repair is ahead of KD that takes as long | +2.00 (+2.00 to +2.00) | met |"
    assert "| swapped | swapped | 3 | 100.0 | match 3 |" in tables[f"{tmp_path.name}-found"]
    assert "| swapped | swapped | 3 | 2 | 66.7 |" in tables[f"{tmp_path.name}-dropped"]
    assert "| swapped | none | 3 | 0 | 0.0 |" in tables[f"{tmp_path.name}-dropped"]
    assert f"{tmp_path.name}-teachers" not in tables  # none was evaluated


def test_nothing_is_won_back_where_the_oracle_is_not_surely_ahead() -> None:
    draw = np.random.default_rng(0)
    variants = [{seed: draw.normal(25, 10, 50) for seed in (0, 1)} for _ in range(3)]
    assert won_back.won_back(*variants) is None
    assert won_back.difference(variants[0], {}) is None


def test_rows_that_a_sweep_has_read_are_marked_again_without_a_model(tmp_path: Path) -> None:
    """The first fifth belongs elsewhere: `match` tells it apart, and marks hardly anything else."""
    draw, count = np.random.default_rng(0), 100
    words = [" ".join(draw.choice(list("abcdefghij"), 8)) for _ in range(count)]
    kinds = ["swapped"] * 20 + [""] * 80
    made = examples_from_rows([{"instruction": each, "output": f"{each} {i}"} for i, each in enumerate(words)], "rows")
    rows = made.remove_columns("corruption").add_column("corruption", kinds).data.table
    own = pa.table({"length": np.full(count, 10.0), "ce": draw.normal(2, 0.1, count), "end_nll": draw.random(count)})

    def read(kind: str, **columns: Any) -> pa.Table:
        table = own
        for name, values in {"mismatched_nll": draw.normal(60, 4, count), **columns}.items():
            table = table.drop_columns([name]) if name in table.column_names else table
            table = table.append_column(name, pa.array(values))
        return table.append_column("kind", pa.array([kind] * count))

    wrong = draw.normal(20, 4, count)
    tables = [read("", mismatched_nll=np.where(np.array(kinds) == "swapped", wrong, draw.normal(60, 4, count))),
              read("swapped", mismatched_nll=draw.normal(20, 4, count)), read("cut", end_nll=9 + draw.random(count)),
              read("garbled", ce=draw.normal(9, 0.1, count))]  # fmt: skip
    cell = tmp_path / "cells" / "share-0.25-cleaning-drop-seed-0"
    for place, table in (("examples/train", rows), ("cleaning/likelihoods", pa.concat_tables(
            [table.select(sorted(table.column_names)) for table in tables]))):  # fmt: skip
        (cell / place).parent.mkdir(parents=True)
        pq.write_table(table, cell / f"{place}.parquet")
    found = detection.read_before(tmp_path)
    ((_, marks),) = found[0.25]
    assert marks.wrong[:20].mean() > 0.9 and marks.wrong[20:].mean() < 0.05
    assert detection.at_clean(found[0.25], "swapped", "match", 0.05) == 1
    told = detection.readings_table(found).splitlines()
    assert told[2].startswith("| 25% | none | 80 |") and told[3].startswith("| 25% | swapped | 20 |") and len(told) == 4
    with pytest.raises(SystemExit, match="no cells"):
        detection.read_before(tmp_path / "nowhere")


def test_what_longer_schedules_cost_follows_from_what_is_paid_once_and_in_every_pass() -> None:
    off = {refresh.WRITES: 0.0, refresh.READS: 10.0, "a pass": 5.0, "processor": 50.0, "memory_peak": 2.0**30}
    stage = {refresh.WRITES: 20.0, refresh.READS: 10.0, "a pass": 5.0, "processor": 70.0, "memory_peak": 2.0**30}
    text = refresh.table({"off-policy": off, refresh.STAGE: stage})
    assert f"| {refresh.STAGE} | 20.0 s | 10.0 s | 5.0 s | 70.0 s | 1.40 | 1,024 MiB | 1.00 |" in text
    assert "| baseline, 20 passes | 110 s | 130 s | 1.18 |" in text
    assert "| SRD, 3 stages of 8 passes | 68 s | 105 s | 1.56 |" in text


def test_the_detection_is_told_over_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two draws, read by a stand-in: shares over both, with each beside them, and nothing of a set without damage."""
    monkeypatch.setattr(likelihoods, "pair_losses", oracle_losses)
    monkeypatch.setattr(detection, "rows_of", lambda source, seed: examples_from_rows(noun_rows(120, seed), "rows"))
    tokenizer = tiny_tokenizer("llama")
    reader = Reader(None, Encoder(tokenizer, get_template("plain", tokenizer)))
    names = ["eos", "match", "near_copy"]
    draws = [detection.read_draw(SourceConfig(dataset="pydocs"), "nouns", seed, names, reader) for seed in (0, 1)]
    told = {kind: (marked, by) for _, kind, marked, by in detection.figures("nouns", draws)}
    assert list(told) == [*detection.KINDS, "none, in the damaged set", "none, in the undamaged set"]
    of_kind = [np.array(draw.rows["corruption"]) == "swapped" for draw in draws]
    marked = [draw.found.wrong[own].mean() for draw, own in zip(draws, of_kind, strict=True)]
    both = np.mean(np.repeat(marked, [own.sum() for own in of_kind]))
    assert told["swapped"][0] == f"{100 * both:.1f} % ({100 * marked[0]:.0f} / {100 * marked[1]:.0f})"
    count = sum(draw.found.wrong[own].sum() for draw, own in zip(draws, of_kind, strict=True))
    assert told["swapped"][1] == f"{count} of 20: match {count}" and count > 5
    assert told["none, in the undamaged set"][1] == "0 of 240"
    assert [row[:2] for row in detection.detector_rows("nouns", draws)] == [["nouns", "eos"], ["nouns", "match"]]
