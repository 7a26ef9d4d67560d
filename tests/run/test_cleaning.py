"""Cleaning as part of a run: what follows sees the cleaned rows, and a changed option redoes what depends on it."""

from __future__ import annotations

import copy
import gzip
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch
from transformers import T5ForConditionalGeneration

from srd.base import files
from srd.base.errors import UserError
from srd.curation import calibration, likelihoods, shots
from srd.curation.cleaning import Findings
from srd.curation.curriculum import Curriculum
from srd.curation.detectors.empty import empty
from srd.curation.detectors.looping import looping
from srd.curation.groups import groups_of, kinds_of
from srd.data.corruption import corrupt
from srd.data.encoding import Encoder
from srd.data.examples import examples_from_rows, row_of
from srd.data.files import FORMATS
from srd.data.settings import CleaningConfig
from srd.data.templates.base import get_template
from srd.report.cleaning import blind, caption, cleaning_section
from srd.report.page import build_report
from srd.report.reading import read_run
from srd.run.parts import assemble, written
from srd.run.parts.scores import with_marks
from srd.run.steps import cleaning, repair
from srd.run.steps.student import softened
from srd.training.settings import TrainingConfig
from tests.faults import killed_in
from tests.oracle import noun_rows, oracle_losses
from tests.runs import TinyRun, steps_finished, tiny_rows, write_rows
from tests.tiny import brief, tiny_model, tiny_tokenizer

FIND = ["empty", "looping", "eos", "match", "near_copy"]


pytestmark = pytest.mark.xdist_group("cleaning")  # one worker reads the rows that most of these begin with


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Rows of which a third is damaged, and a student that sees it and has read them; read only."""
    run = TinyRun(tmp_path_factory.mktemp("cleaning"))
    damaged = corrupt(examples_from_rows(noun_rows(90), "rows"), 0.3, ["swapped", "truncated", "duplicated"], seed=1)
    write_rows(run.rows, [row_of(row) for row in damaged])
    run.kinds = {row["id"]: row["corruption"] for row in damaged}  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        as_the_oracle_reads(patch)
        run.set(data__cleaning={"action": "drop", "find": FIND}, training__curriculum={"stages": 1})
        run.advance("likelihoods")
    return run


@pytest.fixture
def run(read: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRun:
    """The same, to be changed and gone on with."""
    as_the_oracle_reads(monkeypatch)
    run = read.copy(tmp_path / "run")
    run.folder = tmp_path
    return run


def as_the_oracle_reads(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(likelihoods, "pair_losses", oracle_losses)
    patch.setattr(shots, "SHOTS", 90)  # more than there are: the oracle knows single rows


def marks(run: TinyRun) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in pq.read_table(run.run_dir / "cleaning" / "rows.parquet").to_pylist()}


def ids(path: Path) -> list[str]:
    return pq.read_table(path)["id"].to_pylist()


def test_what_follows_sees_the_cleaned_rows_and_a_changed_option_redoes_what_depends_on_it(run: TinyRun) -> None:
    done = run.advance("ranking")
    found, train = marks(run), ids(done.files.examples("train"))
    assert list(found) == train
    columns = ["id", *FIND, "held_out", "wrong", "why", "repaired", "response_before", "response_after"]
    assert list(next(iter(found.values()))) == columns
    wrong = {name for name, row in found.items() if row["wrong"]}
    damaged = {name for name in train if run.kinds[name] in ("swapped", "truncated")}  # type: ignore[attr-defined]
    assert len(wrong & damaged) > 0.6 * len(damaged)
    assert all(row["response_after"] is None and (row["response_before"] is None) == (not row["wrong"])
               for row in found.values())  # fmt: skip
    assert ids(done.files.scores) == [name for name in train if name not in wrong]
    ranked = {row["id"]: row for row in pq.read_table(done.files.ranked).to_pylist()}
    assert {"wrong", "why", "repaired", "match", "eos"} <= set(next(iter(ranked.values())))
    assert {name for name, row in ranked.items() if row["wrong"]} == wrong and len(ranked) == len(train)
    assert all(not ranked[name]["kept"] and ranked[name]["stage"] == -1 for name in wrong)
    assert {row["rank"] for row in ranked.values()} == set(range(1, len(train) + 1))

    before = steps_finished(run.run_dir)
    kept = sorted(wrong)[:1]
    (run.folder / "keep.txt").write_text("\n".join(kept) + "\n", encoding="utf-8")
    run.set(data__cleaning__keep=str(run.folder / "keep.txt")).advance("ranking")
    after = steps_finished(run.run_dir)
    assert [name for name in after if after[name] != before[name]] == ["cleaning", "reflection", "ranking"]
    assert kept[0] in ids(done.files.scores)
    run.set(data__cleaning={"action": "off"}).advance("ranking")
    assert ids(done.files.scores) == train


def test_the_ranking_has_a_column_for_each_score_used(tiny_run: TinyRun) -> None:
    """Of a row that is dropped before anything is trained none is known."""
    gone = tiny_run.advance("examples").split("train")["id"][3]
    (tiny_run.folder / "drop.txt").write_text(f"{gone}\n", encoding="utf-8")
    tiny_run.set(data__cleaning={"action": "drop", "find": ["empty"], "drop": str(tiny_run.folder / "drop.txt")})
    tiny_run.set(training__curriculum={"preset": "plus", "score": ["gap", "length"], "fusion": "mean_rank"})
    done = tiny_run.advance("ranking")
    ranked = {row["id"]: row for row in pq.read_table(done.files.ranked).to_pylist()}
    assert {"gap", "length", "empty", "wrong", "why", "repaired"} <= set(ranked[gone]) and ranked[gone]["wrong"]
    assert {name for name, row in ranked.items() if math.isnan(row["gap"]) or math.isnan(row["length"])} == {gone}
    measured = {row["id"]: row["teacher_ce"] for row in pq.read_table(done.files.measures).to_pylist()}
    assert all(ranked[name]["gap"] == pytest.approx(ranked[name]["ce"] - nats) for name, nats in measured.items())


def test_a_row_that_copies_a_test_row_keeps_its_other_faults(tiny_run: TinyRun) -> None:
    """Where such rows are to stay, one that also repeats itself goes for that."""
    loop = {"instruction": "Count the whales in the deep blue sea.", "input": "", "output": "one two three " * 12}
    right = {"instruction": "Count the boxes in the old brown barn.", "input": "", "output": "There are nine of them."}
    write_rows(tiny_run.rows, [*tiny_rows(), loop, right])
    copies = [{**row, "instruction": row["instruction"].replace("the", "The", 1)[:-1] + "!"} for row in (loop, right)]
    test = write_rows(
        tiny_run.folder / "test.jsonl", [*copies, *({"instruction": f"Who is {n}?", "output": "He."} for n in "ab")]
    )
    tiny_run.set(data__test=str(test), data__cleaning={"action": "drop", "find": ["looping", "near_copy"]})
    for leaks, why in (("drop", ["held_out", "held_out"]), ("warn", ["looping", ""])):
        tiny_run.set(data__leaks=leaks).advance("cleaning")
        train = {row["id"]: row for row in pq.read_table(tiny_run.run_dir / "examples" / "train.parquet").to_pylist()}
        said = {train[name]["instruction"]: row["why"] for name, row in marks(tiny_run).items()}
        assert [said[row["instruction"]] for row in (loop, right)] == why


@pytest.mark.parametrize("wrong_first", [True, False])
def test_a_right_row_stays_though_it_copies_a_test_row_and_a_wrong_one(tiny_run: TinyRun, wrong_first: bool) -> None:
    """Where copies of test rows may stay, the one of a pair that is named as wrong goes, whichever comes first."""
    asked, said = "Count the boxes in the old brown barn behind the blue house by the sea.", "There are nine of them."
    pair = [{"id": "wrong", "instruction": f"Do {asked}", "output": said},
            {"id": "right", "instruction": asked, "output": said}]  # fmt: skip
    rows = [{"id": f"row {number}", **row} for number, row in enumerate(tiny_rows())]
    write_rows(tiny_run.rows, [*rows, *(pair if wrong_first else pair[::-1])])
    test = [{"instruction": f"{asked[:-1]}!", "output": said}, *({"instruction": f"Who is {n}?", "output": "He."}
                                                                for n in "ab")]  # fmt: skip
    (tiny_run.folder / "drop.txt").write_text("wrong\n", encoding="utf-8")
    tiny_run.set(data__test=str(write_rows(tiny_run.folder / "test.jsonl", test)), data__leaks="warn")
    tiny_run.set(
        data__cleaning={"action": "drop", "find": ["near_copy"], "drop": str(tiny_run.folder / "drop.txt")}
    ).advance("cleaning")
    assert {name: marks(tiny_run)[name]["why"] for name in ("right", "wrong")} == {"right": "", "wrong": "named"}
    assert marks(tiny_run)["right"]["held_out"] > 0.8


def test_what_was_read_or_marked_in_another_way_is_made_anew(run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def made_anew(*find: str) -> list[str]:
        before = steps_finished(run.run_dir)
        run.set(data__cleaning={"action": "report", "find": list(find)}).advance("cleaning")
        after = steps_finished(run.run_dir)
        return [name for name in after if after[name] != before.get(name)]

    contrasts = ("match", "pmi")
    assert made_anew(*contrasts) == ["cleaning"]  # what `match` compares with is all that `pmi` asks
    assert made_anew(*contrasts) == []
    with monkeypatch.context() as earlier:
        earlier.setattr(calibration, "SHOWN", calibration.Bar(marked=0.33, weak=0.85))
        assert made_anew(*contrasts) == ["cleaning"]
    assert made_anew(*contrasts) == ["cleaning"]
    made_anew("empty", "near_copy")
    monkeypatch.setattr(calibration, "SHOWN", calibration.Bar(marked=0.33, weak=0.85))
    assert made_anew("empty", "near_copy") == []  # no threshold is worked out for these


def test_what_was_read_for_more_detectors_is_kept_for_fewer(run: TinyRun, tmp_path: Path) -> None:
    def made_anew(*find: str, **settings: Any) -> list[str]:
        before = steps_finished(run.run_dir)
        run.set(data__cleaning={"action": "report", "find": list(find)}, **settings).advance("cleaning")
        after = steps_finished(run.run_dir)
        return [name for name in after if after[name] != before.get(name)]

    fresh = run.copy(tmp_path / "fresh")
    assert made_anew(*FIND) == ["cleaning"]  # it is only told of now
    assert made_anew("empty", "eos", "near_copy") == ["cleaning"]  # a user has left `match` out
    found = marks(run)
    assert made_anew("empty", "match") == ["cleaning"]  # that of all is still there
    assert made_anew("eos", "pmi") == ["cleaning"]  # which asks no more
    assert "likelihoods" in made_anew("eos", "wording")  # for which other damage is made
    assert "likelihoods" in made_anew(*FIND)  # what was read for two of them knows too little
    assert made_anew("empty", "eos", "near_copy") == ["cleaning"]
    assert "likelihoods" in made_anew("empty", "eos", "near_copy", seed=5)  # other damage
    assert made_anew("empty", "eos", "near_copy", seed=5) == []
    files.remove(fresh.run_dir)
    fresh.set(data__cleaning={"action": "report", "find": ["empty", "eos", "near_copy"]}).advance("cleaning")
    assert {name: row["wrong"] for name, row in marks(fresh).items()} == {
        name: row["wrong"] for name, row in found.items()
    }


def test_what_was_lost_is_not_read_for_fewer_and_taken_for_all(run: TinyRun) -> None:
    """A reading that is made again for one detector is not that of two, which the lost one was."""
    run.set(data__cleaning={"action": "report", "find": ["match", "eos"]}).advance("cleaning")
    found = marks(run)
    (run.run_dir / "cleaning" / "likelihoods.parquet").unlink()
    run.set(data__cleaning__find=["eos"]).advance("cleaning")
    run.set(data__cleaning__find=["match", "eos"]).advance("cleaning")
    assert marks(run) == found and any(row["why"] == "match" for row in found.values())


def test_a_report_changes_nothing_that_follows(run: TinyRun) -> None:
    run.set(data__cleaning={"action": "off"}).advance("reflection")
    before = steps_finished(run.run_dir)
    run.set(data__cleaning={"action": "report", "find": FIND}).advance("cleaning", "reflection")
    after = steps_finished(run.run_dir)
    assert all(after[name] == before[name] for name in before)
    assert sum(row["wrong"] for row in marks(run).values()) > 5
    assert not (run.run_dir / "cleaning" / "cleaned.parquet").exists()


def test_softened_rows_lose_their_cross_entropy(run: TinyRun) -> None:
    done = run.set(data__cleaning__action="soften").advance("cleaning")
    found, left = marks(run), ids(done.files.cleaned)
    soft = {name for name, row in found.items() if row["wrong"] and row["why"] in ("eos", "match")}
    assert soft and soft <= set(left)
    assert all(found[name]["response_after"] == found[name]["response_before"] for name in soft)
    assert {row["why"] for name, row in found.items() if row["wrong"] and name not in soft} == {"near_copy"}
    assert done.soft_rows() == soft


def test_of_softened_copies_one_stays(tiny_run: TinyRun) -> None:
    """And none of those that copy a right row, nor does a row that is named as right go for a wrong one."""
    loop, right = (
        ("Count the boxes in the old barn.", "one two three " * 12),
        ("Name the boxes.", "Red, blue and green."),
    )
    rows = [("loop-0", *loop), ("loop-1", *loop), ("right", *right), ("kept-0", *loop), ("kept-1", *loop)]
    write_rows(tiny_run.rows, [*noun_rows(40), *({"id": i, "instruction": q, "output": a} for i, q, a in rows)])
    added, keep = {row[0] for row in rows}, tiny_run.folder / "keep.txt"
    for named, left in (("", ["loop-0", "right"]), ("kept-0\nkept-1\n", ["right", "kept-0", "kept-1"])):
        keep.write_text(named or "right\n", encoding="utf-8")
        settings = {"action": "soften", "find": ["looping", "near_copy"], "keep": str(keep)}
        done = tiny_run.set(data__cleaning=settings).advance("cleaning")
        assert [name for name in ids(done.files.cleaned) if name in added] == left
        assert done.soft_rows() == {"loop-0"} & set(left)
        assert [marks(tiny_run)[f"loop-{n}"]["why"] for n in range(2)] == ["looping"] * 2
    keep.write_text("loop-0\n", encoding="utf-8")  # that one goes in any case: another one stays
    settings = {"action": "soften", "find": ["looping", "near_copy"], "drop": str(keep)}
    done = tiny_run.set(data__cleaning=settings).advance("cleaning")
    assert [name for name in ids(done.files.cleaned) if name in added] == ["loop-1", "right"]


def test_a_score_that_cleans_and_ranks_has_a_column_for_each(tmp_path: Path) -> None:
    """What a repaired row is ranked by says nothing of why it was marked, and a dropped one is ranked by nothing."""
    found = {"id": ["right", "repaired", "dropped"], "eos": [0.4, 5.9, 6.3], "match": [0.0, 0.1, 0.2],
             "wrong": [False, True, True], "why": ["", "eos", "eos"], "repaired": [False, True, False],
             "response_before": [None, "cut", "too"], "response_after": [None, "whole", None]}  # fmt: skip
    pq.write_table(pa.table(found), tmp_path / "rows.parquet")
    ranked = datasets.Dataset.from_dict({"id": ["repaired", "right"], "rank": [1, 2], "eos": [0.3, 0.4],
                                         "kept": [True, True], "stage": pa.array([0, 1], pa.int32())})  # fmt: skip
    run: Any = SimpleNamespace(files=SimpleNamespace(marked=tmp_path / "rows.parquet"))
    rows = {row["id"]: row for row in with_marks(run, ranked).to_list()}
    assert [rows[name]["eos"] for name in ("repaired", "right")] == [0.3, 0.4] and math.isnan(rows["dropped"]["eos"])
    names = "eos_before", "match", "wrong", "why", "repaired"
    for place, name in enumerate(found["id"]):
        own = {each: rows[name][each] for each in names}
        assert own == {each: found[each.removesuffix("_before")][place] for each in names}


def test_softened_rows_stay_out_where_a_student_reflects_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a teacher nothing is learnt of them: in no stage, whichever ranks it is chosen by."""
    curriculum = Curriculum(stages=2, select=1.0, reflect_again=True)
    monkeypatch.setattr(assemble, "ranked_scores", lambda *_: [{"id": f"e{n}", "rank": n + 1} for n in range(8)])
    monkeypatch.setattr(assemble, "is_sealed", lambda path: True)  # the ranks of the second stage
    run: Any = SimpleNamespace(curriculum_of=lambda config: curriculum)
    examples: Any = SimpleNamespace(soft=frozenset({"e1", "e6"}))
    for teaches, count in ((False, 6), (True, 8)):
        config: Any = SimpleNamespace(on_pairs=False, needs_teacher=teaches)
        split = assemble.split_of(run, config)
        stages, again = assemble._stages(run, config, examples, tmp_path, split)
        assert again is not None and len(stages[1].ids) == count
        assert again(None, stages[1]).ids == stages[1].ids


def test_softened_rows_have_the_teachers_whole_weight(run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is their own text that is learnt; trainings whose student may answer in its place are made anew."""
    done = run.set(data__cleaning__action="soften").advance("cleaning")
    monkeypatch.setattr(assemble, "_teacher_of", lambda *_, **__: None)
    monkeypatch.setattr(assemble, "responses", lambda *_: None)
    for method, own in (("kd", True), ("gkd", True), ("seqkd", False)):
        config = TrainingConfig.model_validate({"method": method, "weight": 0.5})
        with assemble.training_of(done, "kd", config, run.folder, done.start_source, done.start_options()) as training:
            assert training.examples.doubtful == training.examples.soft == (done.soft_rows() if own else set())
            assert training.stages[0].row_weights is None and set(training.stages[0].ids) == set(training.examples.ids)
        assert softened(done, config) == (["by their own text"] if method == "gkd" else [])


def test_a_report_tells_of_the_marks_of_its_run_alone(run: TinyRun) -> None:
    """Those that another recipe has left in the directory are not its own; nor was dropped what was only marked."""

    fates = {"report": "marked", "soften": "dropped", "drop": "dropped"}
    for action, fate in fates.items():
        run.set(data__cleaning={"find": ["looping", "near_copy"], "action": action}).advance("ranking", "cleaning")
        page = build_report(run.run_dir).read_text(encoding="utf-8")
        assert "nearly repeat" in page and "Cleaning marked" in page and f'<span class="label">{fate}</span>' in page
        said = cleaning_section(read_run(run.run_dir))["fate"]
        assert ("not answered anew were dropped" in said, "keep their text" in said) == (
            action == "drop",
            action == "soften",
        )
    run.set(data__cleaning={"find": ["empty"], "action": "report"}).advance("reflection")  # nobody has marked anew
    assert '<section id="cleaning"' not in build_report(run.run_dir).read_text(encoding="utf-8")
    run.set(data__cleaning="off").advance("ranking")
    page = build_report(run.run_dir).read_text(encoding="utf-8")
    assert '<section id="cleaning"' not in page and "Cleaning marked" not in page
    other = write_rows(run.folder / "other.jsonl", noun_rows(40, seed=5))
    run.set(data__train=str(other), data__cleaning={"action": "report", "find": ["looping"]}).advance("examples")
    assert '<section id="cleaning"' not in build_report(run.run_dir).read_text(encoding="utf-8")


def test_what_a_repair_has_read_decides_which_copy_stays(run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where rules alone mark: the rows are read all the same."""
    read: dict[str, bool] = {}
    find = cleaning.find_wrong
    for action in ("repair", "drop"):
        monkeypatch.setattr(cleaning, "find_wrong", lambda *given, reads, action=action, **named: (
            read.update({action: reads is not None}), find(*given, reads=reads, **named))[1])  # fmt: skip
        run.set(data__cleaning={"find": ["looping", "near_copy"], "action": action}).advance("cleaning")
    assert read == {"repair": True, "drop": False}


def test_repaired_rows_have_an_answer_of_the_teacher(run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def writes(model: Any, tokenizer: Any, prompts: Any, names: Any, decoding: Any, **options: Any) -> Any:
        """What the prompt names, in a sentence that ends; cut by every other sample."""
        told = [
            tokenizer.decode(prompt, skip_special_tokens=True).replace("What is", "It is").replace("?", ".")
            for prompt in prompts
        ]
        told = [text if not decoding.temperature else text[: len(text) // 2] for text in told]
        return [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in told]

    monkeypatch.setattr(written, "generate_tokens", writes)
    done = run.set(data__cleaning__action="repair", generation__max_new_tokens=64).advance("reflection")
    found, left = marks(run), pq.read_table(done.files.cleaned).to_pylist()
    repaired = {name: row for name, row in found.items() if row["repaired"]}
    wrong = {name for name, row in found.items() if row["wrong"]}
    assert repaired and {row["why"] for row in repaired.values()} <= {"eos", "match"}
    assert all(row["response_after"].startswith("It is the") and row["response_after"].endswith(".")
               for row in repaired.values())  # fmt: skip
    assert {row["id"]: row["references"] for row in left if row["id"] in repaired} == {
        name: [row["response_after"]] for name, row in repaired.items()
    }
    assert [row["id"] for row in left] == [name for name in found if name not in wrong or name in repaired]
    assert not done.files.repair_work.exists() and not done.files.repairs_work.exists()
    page = build_report(done.folder).read_text(encoding="utf-8")
    assert '<section id="cleaning"' in page and "belong to another prompt" in page and "<h4>Repaired</h4>" in page
    offered = set(re.findall(r'name="fate" value="([^"]+)"', page))
    assert offered == {"dropped", "repaired"} == filtered(page)
    assert offered == set(re.findall(r'<details class="example" data-fate="([^"]+)"', page))
    # Without an answer that passes, a row is dropped.
    monkeypatch.setattr(written, "generate_tokens", lambda *a, **k: [[1, 2, 3] for _ in a[2]])
    done = run.set(generation__max_new_tokens=65).advance("repair")
    assert not any(row["repaired"] for row in marks(run).values())
    assert ids(done.files.cleaned) == [name for name in found if name not in wrong]


def filtered(page: str) -> set[str]:
    """The fates that a page's style hides all other rows for, one by one and reason by reason."""
    rule = r'\[value="([^"]+)"\]:checked\) ~ \.more{}data-fate="\1"'
    rows, reasons = (set(re.findall(rule.format(part), page)) for part in (r" \.example:not\(\[", r":not\(:has\(\["))
    assert rows == reasons
    return rows


def test_all_rows_are_rewritten_by_the_same_teacher(run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is named as right, or has no answer that passes, keeps its text; a teacher goes by its rows alone."""

    def writes(model: Any, tokenizer: Any, prompts: Any, names: Any, decoding: Any, **options: Any) -> Any:
        told = [tokenizer.decode(prompt, skip_special_tokens=True).replace("What is", "Lo,").replace("?", ".")
                for prompt in prompts]  # fmt: skip
        ends = [[tokenizer.eos_token_id] if name != unanswered else [] for name in names]
        return [
            tokenizer(text, add_special_tokens=False)["input_ids"] + end for text, end in zip(told, ends, strict=True)
        ]

    unanswered = ""
    monkeypatch.setattr(written, "generate_tokens", writes)
    run.set(teacher__sft={"epochs": 1, "batch_size": 32}, generation__max_new_tokens=64)
    done = run.advance("teacher")
    before, found = steps_finished(run.run_dir), marks(run)
    right = [name for name, row in found.items() if not row["wrong"]]
    unanswered, named = right[:2]
    (run.folder / "keep.txt").write_text(named + "\n", encoding="utf-8")
    done = run.set(data__cleaning={"action": "rewrite", "find": FIND, "keep": str(run.folder / "keep.txt")}).advance(
        "repair"
    )
    after = steps_finished(run.run_dir)
    assert after["teacher"] == before["teacher"] and after["likelihoods"] == before["likelihoods"]
    found = marks(run)
    left = {row["id"]: row["references"] for row in pq.read_table(done.files.cleaned).to_pylist()}
    rewritten = {name for name, row in found.items() if row["repaired"]}
    assert {named, unanswered}.isdisjoint(rewritten) and {named, unanswered} <= set(left)
    assert len(rewritten & set(right)) > 0.9 * len(right) and any(found[name]["wrong"] for name in rewritten)
    for name in rewritten:
        assert left[name] == [found[name]["response_after"]] and left[name][0].startswith("Lo,")
        assert found[name]["response_before"] and found[name]["response_before"] != left[name][0]
    summary = done.manifest.steps["repair"]["summary"]
    assert summary["rewritten"] + summary["repaired"] == len(rewritten)
    page = build_report(done.folder).read_text(encoding="utf-8")
    assert "are not wrong, and have an answer of the teacher" in page and "<h4>Rewritten</h4>" in page
    assert "rewritten" in filtered(page)


def test_the_teacher_is_asked_again_only_for_other_rows_or_by_another_teacher(tmp_path: Path) -> None:
    """Not where a row was marked for another reason, or answers are judged in another way."""
    run = answered_by_the_teacher(tmp_path, "llama")

    def made_anew(*find: str, action: str = "repair", **settings: Any) -> list[str]:
        before = steps_finished(run.run_dir)
        run.set(data__cleaning={"action": action, "find": list(find), **settings}).advance("repair")
        after = steps_finished(run.run_dir)
        return [name for name in after if after[name] != before.get(name)]

    run.set(data__cleaning={"action": "repair", "find": ["empty", "looping", "near_copy"]}).advance("repair")
    found = marks(run)
    assert made_anew("empty", "looping") == ["cleaning", "repair"]
    wrong, right = ([name for name, row in found.items() if row["wrong"] is said] for said in (True, False))
    drop = run.folder / "drop.txt"
    drop.write_text(f"{wrong[0]}\n", encoding="utf-8")
    assert made_anew("empty", "looping", drop=str(drop)) == ["cleaning", "repair"]
    assert marks(run)[wrong[0]]["why"] == "named"
    drop.write_text(f"{right[0]}\n", encoding="utf-8")
    assert "teacher repairs" in made_anew("empty", "looping", drop=str(drop))
    assert "teacher repairs" in made_anew("empty", "looping")
    before = {name: row["response_after"] for name, row in marks(run).items()}
    assert before == {name: row["response_after"] for name, row in found.items()} and any(before.values())
    assert "teacher repairs" in made_anew("empty", action="rewrite")
    assert made_anew("empty", action="rewrite", drop=str(drop)) == ["cleaning", "repair"], "all rows are asked about"


@pytest.mark.parametrize("leaks", ["drop", "warn"])
def test_a_repair_makes_no_copies(leaks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a right row, of another repaired one, or of one that is held out, whose prompt is nearly the same."""

    def writes(run: Any, model: Any, tokenizer: Any, prompts: Any, names: Any, *options: Any) -> Any:
        said = {"chess": "The rules of the game of chess are few."}
        texts = [said.get(name.split("-")[0], "A sky is blue by day and black by night.") for name in names]
        return [([*tokenizer(text, add_special_tokens=False)["input_ids"]], True) for text in texts], texts

    monkeypatch.setattr(repair, "written_by", writes)
    chess, sky = "Tell me the rules of chess in a line or two", "Say what colour a sky has at any hour of a day"
    rows = [
        {"id": "chess", "instruction": f"{chess}.", "output": "The rules of the game of chess are few."},
        *({"id": f"chess-{n}", "instruction": f"{chess}{end}", "output": "..."} for n, end in enumerate([".", "!"])),
        *({"id": f"sky-{n}", "instruction": sky, "output": "..."} for n in range(2)),
        {"id": "other", "instruction": "And the rules of chess, briefly, for a child of five?", "output": "..."},
    ]  # fmt: skip
    test = [{"id": "held", "instruction": f"{sky}!", "output": "A sky is blue by day and black by night."}]
    run = TinyRun(tmp_path)
    write_rows(run.rows, [*noun_rows(40), *rows])
    run.set(data__test=str(write_rows(run.folder / "test.jsonl", test)), data__leaks=leaks)
    run.set(data__cleaning={"action": "repair", "find": ["empty", "near_copy"]}).advance("repair")
    found = {name: row for name, row in marks(run).items() if row["why"]}
    assert [name for name, row in found.items() if row["repaired"]] == [
        *(["sky-0"] if leaks == "warn" else []),
        "other",
    ]
    assert found["chess-0"]["response_after"] is None and found["chess-0"]["why"] == "empty"


def test_a_rewritten_row_does_not_become_one_that_keeps_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that get the same answer, which the second has already, neither is rewritten."""
    asked = "Is a whale a fish, or is it an animal that has to breathe air at times?"
    yes, no = "Yes, whatever swims under water counts as one.", "It is none: whales have lungs, and must come up."
    run = TinyRun(tmp_path)
    pair = [{"id": "yes", "instruction": asked, "output": yes}, {"id": "no", "instruction": asked, "output": no}]
    write_rows(run.rows, [*noun_rows(40), *pair])

    def writes(run: Any, model: Any, tokenizer: Any, prompts: Any, names: Any, *options: Any) -> Any:
        texts = [no if name in ("yes", "no") else "" for name in names]
        return [([*tokenizer(text, add_special_tokens=False)["input_ids"]], True) for text in texts], texts

    monkeypatch.setattr(repair, "written_by", writes)
    done = run.set(data__cleaning={"action": "rewrite", "find": ["empty", "near_copy"]}).advance("repair")
    left = {row["id"]: row["references"] for row in pq.read_table(done.files.cleaned).to_pylist()}
    assert (left["yes"], left["no"]) == ([yes], [no])


def test_a_repair_is_trained_on_as_it_was_written(run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its token ids are kept: no text gives back half a sign, a control token, or words cut at other places."""
    tokenizer = tiny_tokenizer("llama")
    letters = [token for word in "It is" for token in tokenizer(word, add_special_tokens=False)["input_ids"]]
    half = tokenizer("\N{SNOWMAN}", add_special_tokens=False)["input_ids"][:1]
    said = [*letters, tokenizer.bos_token_id, *half]
    assert tokenizer(tokenizer.decode(said), add_special_tokens=False)["input_ids"] != said

    def writes(model: Any, tokenizer: Any, prompts: Any, names: Any, decoding: Any, **options: Any) -> Any:
        """The same to all; every other one is cut."""
        return [[*said, tokenizer.eos_token_id][: len(said) + 1 - place % 2] for place in range(len(prompts))]

    monkeypatch.setattr(written, "generate_tokens", writes)
    monkeypatch.setattr(repair, "passing", lambda candidates, *rest: np.ones(len(candidates), dtype=bool))
    done = run.set(data__cleaning__action="repair").advance("repair")
    found = marks(run)
    repaired = [name for name, row in found.items() if row["repaired"]]
    encoded = {row["id"]: row for row in done.token_ids("train")}
    assert repaired and all(encoded[name]["response_ids"] == [*said, tokenizer.eos_token_id] for name in repaired)
    assert all(found[name]["response_after"] == tokenizer.decode(said, skip_special_tokens=True) for name in repaired)
    others = [row for row in done.split("train") if row["id"] not in repaired]
    assert others and not any(row["tokens"] for row in others)
    assert all(tokenizer.decode(encoded[row["id"]]["response_ids"]).startswith(row["references"][0]) for row in others)
    summary = done.manifest.steps["teacher repairs"]["summary"]
    asked = sum(row["wrong"] and row["why"] != "near_copy" for row in found.values())
    assert summary == {"rows": asked, "answers": 5 * asked, "cut": 5 * (asked // 2)}


def test_too_many_marks_stop_and_show_examples(run: TinyRun) -> None:
    run.set(data__cleaning__most=0.1)
    with pytest.raises(UserError) as stopped:
        run.advance("cleaning")
    said = str(stopped.value)
    assert "more than data.cleaning.most (0.1) allows" in said and "data.cleaning.action=report writes" in said
    assert "are cut off (eos):" in said and "→" in said
    run.set(data__cleaning={"action": "report", "find": FIND, "most": 0.1}).advance("cleaning")
    assert sum(row["wrong"] for row in marks(run).values()) > 8
    reported = steps_finished(run.run_dir)
    run.set(data__cleaning__most=0.2).advance("cleaning")
    assert steps_finished(run.run_dir) == reported, "a report stops nothing, whatever the limit"
    with pytest.raises(UserError, match=r"more than data.cleaning.most \(0.2\) allows"):
        run.set(data__cleaning__action="drop").advance("cleaning")


@pytest.mark.parametrize("most", [0.5, 1.0])
def test_where_all_rows_are_marked_none_is_told_to_raise_a_limit(tiny_run: TinyRun, most: float) -> None:
    write_rows(tiny_run.rows, [{"instruction": f"Question {i}?", "output": " … "} for i in range(20)])
    with pytest.raises(UserError) as stopped:
        tiny_run.set(data__cleaning={"action": "drop", "find": ["empty"], "most": most}).advance("cleaning")
    said = str(stopped.value)
    assert "so that none is left to train on" in said and "take other rows." in said and "cleaning.most" not in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"find": ["mach"]}, r"data\.cleaning\.find: unknown detector 'mach'; did you mean 'match'"),
        ({"action": "dropp"}, "'off', 'report', 'drop', 'soften', 'repair' or 'rewrite'"),
        ({"keep": "nowhere.txt"}, "data.cleaning.keep: there is no file 'nowhere.txt'"),
        ({"most": 0}, "greater than 0"),
    ],
)
def test_wrong_settings(run: TinyRun, settings: dict[str, Any], message: str) -> None:
    run.set(data__cleaning={"action": "drop", **settings})
    with pytest.raises(UserError, match=message):
        run.advance("cleaning")


def test_files_of_ids(tmp_path: Path) -> None:
    rows = examples_from_rows(noun_rows(3), "rows")
    (tmp_path / "ids.txt").write_text("row-001\n\nnobody\n", encoding="utf-8")
    write_rows(tmp_path / "ids.jsonl", [{"id": "row-002", "why": "x"}])
    write_rows(tmp_path / "other.jsonl", [{"name": "row-002"}])
    (tmp_path / "strange.txt").write_text("a\nb\n", encoding="utf-8")
    (tmp_path / "notepad.txt").write_text("\ufeffrow-001\r\nrow-000\r\n", encoding="utf-8")
    assert cleaning.named_ids("keep", str(tmp_path / "ids.txt"), rows["id"]) == ["row-001", "nobody"]
    assert cleaning.named_ids("keep", str(tmp_path / "notepad.txt"), rows["id"]) == ["row-001", "row-000"]
    assert cleaning.named_ids("keep", str(tmp_path / "ids.jsonl"), rows["id"]) == ["row-002"]
    (tmp_path / "ids.json").write_text('{"id": "row-002"}', encoding="utf-8")
    assert cleaning.named_ids("keep", str(tmp_path / "ids.json"), rows["id"]) == ["row-002"]
    for name, message in (("other.jsonl", "has no column 'id'"), ("strange.txt", "none of 2 ids.* one to a line")):
        with pytest.raises(UserError, match=message):
            cleaning.named_by_user(CleaningConfig(drop=str(tmp_path / name)), rows["id"])


def test_a_file_that_names_no_row_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of a table whose only line is an id, too: it is taken for the names of columns."""
    for name, text, why in (("one.csv", "row-001\n", ": its first line names the columns"), ("none.txt", "\n", "")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        caplog.clear()
        settings = CleaningConfig(keep=str(tmp_path / name))
        assert cleaning.named_by_user(settings, ["row-001"]) == ([], [])
        assert caplog.messages == [f"data.cleaning.keep: {tmp_path / name} names no row{why}"]


def test_ids_in_a_list_are_those_of_the_rows(tmp_path: Path) -> None:
    """A table of them is no table of numbers and dates."""
    names = ["0001", "2024-01-01", "row-2"]
    rows = examples_from_rows([{**row, "id": name} for row, name in zip(noun_rows(3), names, strict=True)], "rows")
    (tmp_path / "ids.csv").write_text("why,id\nx,0001\ny,2024-01-01\nz,\n", encoding="utf-8")
    (tmp_path / "zeros.csv").write_text("id\n0001\n", encoding="utf-8")
    write_rows(tmp_path / "ids.jsonl", [{"id": "2024-01-01"}])
    assert cleaning.named_ids("keep", str(tmp_path / "ids.csv"), rows["id"]) == names[:2]
    assert cleaning.named_ids("keep", str(tmp_path / "zeros.csv"), rows["id"]) == names[:1]
    assert cleaning.named_ids("drop", str(tmp_path / "ids.jsonl"), rows["id"]) == names[1:2]
    numbers = examples_from_rows([{**row, "id": place} for place, row in enumerate(noun_rows(3))], "rows")
    pq.write_table(pa.table({"id": [1.0, None, 2.0]}), tmp_path / "gap.parquet")  # as pandas keeps whole numbers
    assert cleaning.named_ids("keep", str(tmp_path / "gap.parquet"), numbers["id"]) == ["1", "2"]
    for ending in ("txt", "csv"):
        (tmp_path / f"wide.{ending}").write_text("id\n0001\n", encoding="utf-16")
    assert cleaning.named_ids("keep", str(tmp_path / "wide.csv"), rows["id"]) == names[:1]
    with pytest.raises(UserError, match=r"wide\.txt: cannot be read as"):
        cleaning.named_ids("keep", str(tmp_path / "wide.txt"), rows["id"])


def test_files_of_ids_have_the_formats_of_training_files(tmp_path: Path) -> None:
    rows = examples_from_rows(noun_rows(3), "rows")
    table = pa.table({"id": ["row-001", "row-002"]})
    texts = {"jsonl": '{"id": "row-001"}\n{"id": "row-002"}\n', "json": '[{"id": "row-001"}, {"id": "row-002"}]',
             "csv": "id;why\nrow-001;x\nrow-002;\n", "tsv": "id\twhy\nrow-001\tx\nrow-002\t\n"}  # fmt: skip
    for format, kind in FORMATS.items():
        for ending in [*kind.endings, *map(str.upper, kind.endings)]:
            path = tmp_path / f"ids{ending}"
            if format in texts:
                path.write_text(texts[format], encoding="utf-8")
            else:
                (pq.write_table if format == "parquet" else pyarrow.feather.write_feather)(table, str(path))
            assert cleaning.named_ids("keep", str(path), rows["id"]) == ["row-001", "row-002"], ending
            packed = tmp_path / f"ids{ending}.GZ"
            packed.write_bytes(gzip.compress(path.read_bytes()))
            assert cleaning.named_ids("drop", str(packed), rows["id"]) == ["row-001", "row-002"], ending


def test_a_row_that_is_named_as_right_and_as_wrong_is_refused(tiny_run: TinyRun) -> None:
    ids = tiny_run.advance("examples").split("train")["id"][:3]
    for field, names in (("keep", ids[:2]), ("drop", ids[1:])):
        (tiny_run.folder / f"{field}.txt").write_text("\n".join(names), encoding="utf-8")
    files = {field: str(tiny_run.folder / f"{field}.txt") for field in ("keep", "drop")}
    with pytest.raises(UserError, match=f"both name '{ids[1]}' .1 id in all.*Take it out of one of the files"):
        tiny_run.set(data__cleaning={"action": "drop", "find": ["empty"], **files}).advance("cleaning")


def answered_by_the_teacher(folder: Path, family: str) -> TinyRun:
    """Rows of which five say nothing, which a teacher that ends its answers early answers anew."""
    run, rows = TinyRun(folder, family), noun_rows(32)
    brief(tiny_model(family, layers=2, seed=1)).save_pretrained(run.teacher)
    write_rows(run.rows, [{**row, "output": "..."} if place % 6 == 0 else row for place, row in enumerate(rows)])
    find = ["empty", "looping", "eos", "match", "near_copy"]
    run.set(data__cleaning={"action": "repair", "find": find}, data__validation_size=2, data__test_size=2)
    return run.set(generation={"batch_size": 16, "max_new_tokens": 8})


def test_an_encoder_decoder_repairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an answer that its teacher has written behind its encoder, read by its student behind other rows."""
    told: dict[str, list[tuple[list[int], bool]]] = {}

    def noted(run: Any, model: Any, tokenizer: Any, prompts: Any, names: Any, *rest: Any) -> Any:
        written, texts = written_by(run, model, tokenizer, prompts, names, *rest)
        for name, answer in zip(names, written, strict=True):
            told.setdefault(name, []).append(answer)
        return written, texts

    written_by = repair.written_by
    monkeypatch.setattr(repair, "written_by", noted)
    run = answered_by_the_teacher(tmp_path, "t5")
    done = run.advance("repair")
    found, tokenizer = marks(run), done.tokenizer
    wrong, repaired = ({name for name, row in found.items() if row[which]} for which in ("wrong", "repaired"))
    fine = {name: {tokenizer.decode(ids, skip_special_tokens=True).strip(): ids for ids, ended in answers if ended}
            for name, answers in told.items()}  # fmt: skip
    fine = {name: {text: ids for text, ids in texts.items() if empty([text])[0] == 0 and looping([text])[0] < 0.5}
            for name, texts in fine.items()}  # fmt: skip
    assert wrong == {name for name, row in found.items() if row["why"] == "empty"} == told.keys()
    assert repaired == {name for name, texts in fine.items() if texts} and 0 < len(repaired) < len(wrong)
    learnt = {row["id"]: row for row in done.token_ids("train")}
    assert list(learnt) == [name for name in found if name not in wrong or name in repaired]
    for name in repaired:
        assert learnt[name]["response_ids"] == [*fine[name][found[name]["response_after"]], tokenizer.eos_token_id]
    # What it wrote first is what the library that it comes from decodes greedily.
    teacher = T5ForConditionalGeneration.from_pretrained(run.teacher)
    for row in done.split("train", cleaned=False):
        if row["id"] in wrong:
            (prompt,), _, _ = done.teacher_encoder.prompts([row])
            (said,) = teacher.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False).tolist()
            ids, ended = told[row["id"]][0]
            assert said[1 : len(ids) + 1] == ids and (tokenizer.eos_token_id in said) == ended


@pytest.mark.parametrize(
    ("family", "count"),
    [("llama", 8), ("t5", 4), *(pytest.param(each, None, marks=pytest.mark.slow) for each in ("llama", "t5"))],
)
def test_killed_anywhere_and_started_again_gives_the_same_bytes(tmp_path: Path, family: str, count: int | None) -> None:
    """In what is read, marked, answered and read again."""
    run = answered_by_the_teacher(tmp_path, family)
    folders = killed_in("cleaning/", lambda run_dir: run.advance("repair", run_dir=run_dir), tmp_path, count)
    made = [{path.relative_to(folder): path.read_bytes() for path in files.walk(folder / "cleaning")}
            for folder in folders]  # fmt: skip
    assert made[0] == made[1] and len(made[0]) == 7
    assert any(pq.read_table(folders[1] / "cleaning" / "rows.parquet")["repaired"].to_pylist())


def test_what_asks_no_model_makes_no_tokens(run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a million rows they take longer than all the rest."""
    monkeypatch.setattr(Encoder, "encode", lambda *arguments: pytest.fail("tokens were made"))
    run.run_dir = run.folder / "new"
    run.set(data__cleaning={"action": "drop", "find": ["empty", "looping", "near_copy"]}).advance("cleaning")
    assert {row["why"] for row in marks(run).values()} == {"", "near_copy"}


@pytest.mark.parametrize(
    ("name", "found", "said"),
    [
        ("match", (12, 0), "it takes 20 rows that ask different things to find out, and of the 12 rows 0 are that"),
        ("eos", (12, 12), "it takes 20 rows to find out, and there are 12"),
        ("eos", (60, 3), "20 rows whose response has two words to find out, and of the 60 rows 3 are that"),
    ],
)
def test_what_a_detector_has_too_few_of(
    name: str, found: tuple[int, int], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    few = calibration.calibrate(*map(np.zeros, found))
    ids, why = pa.chunked_array([["one"]]), np.array([""], dtype=object)
    cleaning._tell(Findings(ids, {}, why, {name: few}))
    assert said in caplog.text


NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
RENDERED = "<|im_start|>user\nWhat is {}?<|im_end|>\n<|im_start|>assistant\n"
KINDS = {
    "asked": lambda word: {"instruction": f"What is {word}?", "output": f"It is {word}."},
    "with a system prompt": lambda word: {
        "messages": [{"role": role, "content": text} for role, text in
                     (("system", "Be brief."), ("user", f"What is {word}?"), ("assistant", f"It is {word}."))]
    },
    "rendered": lambda word: {"prompt": RENDERED.format(word), "completion": f"It is {word}.<|im_end|>"},
    "ready-made": lambda word: {"prompt": f"Question: {word}?\nAnswer:", "completion": f" It is {word}."},
}  # fmt: skip


@pytest.mark.parametrize(
    ("template", "longest", "kinds", "own", "said"),
    [
        ("plain", 64, ["asked", "with a system prompt"], ["with a system prompt"], "4 rows are read in the frame"),
        ("plain", 12, ["asked"], ["asked"], "too long for data.max_prompt_length"),
        ("auto", 64, ["asked", "rendered", "ready-made"], ["rendered"], "their prompt has control tokens"),
        ("chat", 64, ["asked", "ready-made"], [], ""),
    ],
)
def test_what_the_chat_template_cannot_take_is_read_as_it_is_learnt(
    template: str, longest: int, kinds: list[str], own: list[str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer("qwen2"))
    tokenizer.chat_template = NO_SYSTEM + str(tokenizer.chat_template)
    encoder = Encoder(tokenizer, get_template(template, tokenizer), max_prompt_length=longest, max_length=96)
    words = ("the sea", "a whale", "one apple", "two")
    rows = [{"id": f"{kind} {i}", **KINDS[kind](word)} for kind in kinds for i, word in enumerate(words)]
    examples = examples_from_rows(rows, "rows")
    run: Any = SimpleNamespace(encoder=encoder, split=lambda name, cleaned: examples)
    with caplog.at_level("INFO"):
        found = cleaning.frame_read(run)
    encoded = found.encode(examples).to_list()
    chat = encoder.with_template("chat")
    for row, read in zip(examples, encoded, strict=True):
        expected = encoder if row["id"].rpartition(" ")[0] in own else chat
        assert expected.encode_rows([row])["prompt_ids"] == [read["prompt_ids"]], row["id"]
        assert expected.encode_rows([row])["response_ids"] == [read["response_ids"]], row["id"]
    assert said in caplog.text and caplog.text.count("\n") == bool(said)


def test_frames_are_compared_with_themselves_and_rows_are_shown_in_that_of_most() -> None:
    """Among asked rows some that are rendered already: each is compared with an empty prompt of its own frame."""
    tokenizer = tiny_tokenizer("qwen2")
    encoder = Encoder(tokenizer, get_template("auto", tokenizer), max_prompt_length=64, max_length=96)
    rows = [{"id": f"{i:02d}", **KINDS["asked" if i < 30 else "rendered"](f"whale {i}")} for i in range(36)]
    examples = examples_from_rows(rows, "rows")
    run: Any = SimpleNamespace(encoder=encoder, split=lambda name, cleaned: examples)
    read = cleaning.frame_read(run)
    tokens = likelihoods.Tokens.of(read, examples)
    assert tokens.frames == ["chat"] * 30 + ["prompt"] * 6
    before = shots.shown(read, examples, tokens)
    assert before.shots.tolist() == [shots.SHOTS] * 30 + [0] * 6
    half, alone = len(before.prompts) // 2, [tokens.blank[place] for place in tokens.empty]
    for row in range(36):
        for side in (0, half):
            shown = before.prompts[row + side]
            assert (shown == tokens.prompts[row]) == (row >= 30) and before.prompts.lengths[row + side] == len(shown)
    assert tokenizer.decode(alone[0]).startswith("<|im_start|>") and len(alone[0]) > 1 == len(alone[-1])
    groups = groups_of(kinds_of(examples, tokens.frames))
    assert set(groups[30:]) == {"read in the template prompt"} and set(groups[:30]) == {""}


def test_groups_that_a_detector_could_not_judge_are_told(caplog: pytest.LogCaptureFixture) -> None:
    draw = np.random.default_rng(0)
    well, few, weak = (calibration.calibrate(draw.normal(size=60), draw.normal(size=count) + apart)
                       for count, apart in ((60, 3), (3, 3), (60, 0)))  # fmt: skip
    ids, why = pa.chunked_array([["one"]]), np.array([""], dtype=object)
    found = Findings(ids, {}, why, {"eos": well, "match": well},
                     {"eos": {"Thai": few, "Han": weak}, "match": {"Thai": few}})  # fmt: skip
    cleaning._tell(found)
    assert "'eos' and 'match' mark none of 60 rows (Thai): they compare rows of one script" in caplog.text
    assert "'eos' cannot tell which rows (Han) are cut off: it tells only" in caplog.text
    assert caplog.text.count("\n") == 2
    eos = found.as_json()["eos"]
    assert blind("eos", eos) == ["eos (Thai)", "eos (Han)"] and "other groups" in caption("eos", eos)
    thresholds = repair._thresholds(eos, np.array(["", "Thai", "Greek"], dtype=object))
    assert thresholds[0] == thresholds[2] == well.threshold and math.isinf(thresholds[1])
