"""What the page says of text that a student wrote ahead of its training."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from srd.report.answers import evenly
from srd.report.page import page
from srd.report.reading import read_run
from srd.report.refreshes import ROWS, TEXTS, refreshes_of, refreshes_section
from srd.training.student_text.written import ABOUT, SCHEMA
from tests.report.fake_run import write_lines, write_run


def write_refresh(
    run_dir: Path, number: int, texts: dict[str, str], ended: int, *, end: int | None = None, stage: int = 0
) -> None:
    folder = run_dir / f"stages/{stage}/rollouts"
    folder.mkdir(parents=True, exist_ok=True)
    count = len(texts)
    columns = {"id": list(texts), "response": list(texts.values()), "tokens": [[7] * 4] * count,
               "log_likelihood": [[-1.0] * 4] * count, "ended": [i < ended for i in range(count)]}  # fmt: skip
    about = f'{{"start": {3 * number}, "end": {end or 3 * number + 3}}}'.encode()
    pq.write_table(pa.table(columns, schema=SCHEMA.with_metadata({ABOUT: about})), folder / f"{number}.parquet")


def test_texts_from_refresh_to_refresh(tmp_path: Path) -> None:
    """Shares, likeness to the reference and to the text before, and the prompts that were answered most often."""
    run_dir = write_run(tmp_path / "run", examples=40)
    assert refreshes_section(read_run(run_dir)) == (None, None)
    examples = pq.read_table(run_dir / "examples/train.parquet", columns=["id", "references"]).to_pylist()[:4]
    right = {row["id"]: row["references"][0] for row in examples}
    write_refresh(run_dir, 0, dict.fromkeys(right, "nothing of it"), ended=1)
    write_refresh(run_dir, 1, {**right, examples[3]["id"]: " "}, ended=4)
    run = read_run(run_dir)
    table, group = refreshes_section(run)
    assert [each.step for each in refreshes_of(run, run.main_variant)] == [0, 3]
    assert table is not None and group is not None
    titles = [column.title for column in table.columns]
    first, second = (dict(zip(titles, row, strict=True)) for row in table.rows)
    assert (first["Answers"], first["End by themselves"], first["Empty"]) == (4, 0.25, 0)
    assert (second["End by themselves"], second["Empty"]) == (1, 0.25)
    assert second["ROUGE-L with the reference"] == 75 and first["ROUGE-L with the text before"] is None
    assert float(str(second["ROUGE-L with the text before"])) < 30
    assert [len(card.answers) for card in group.cards] == [3, 3, 3]  # the reference, and either text
    html = page(run)
    assert "Text that the student wrote to train on" in html and "nothing of it" in html


def test_drift_is_that_of_the_text_itself(tmp_path: Path) -> None:
    """A text that gives way before its planned end has no drift of the text after it; another stage's cuts nothing."""
    run_dir = write_run(tmp_path / "run", examples=40)
    (name,) = pq.read_table(run_dir / "examples/train.parquet", columns=["id"])["id"].to_pylist()[:1]
    for number, stage in ((0, 0), (1, 0), (0, 1)):
        write_refresh(run_dir, number, {name: f"text {number}"}, ended=1, end=9, stage=stage)
    drifts = {(0, 2): 0.2, (0, 3): 0.3, (0, 4): 0.01, (0, 9): 0.6, (1, 1): 0.02, (1, 8): 0.5}
    write_lines(
        run_dir / "metrics.jsonl",
        [{"arm": "srd", "stage": stage, "step": step, "drift": drift} for (stage, step), drift in drifts.items()],
    )
    table, _ = refreshes_section(read_run(run_dir))
    assert table is not None
    assert [row[-1] for row in table.rows] == [0.3, 0.6, 0.5]


def test_many_refreshes_are_shown_by_some_of_them(tmp_path: Path) -> None:
    """The first, the last, and what lies between: a run may refresh its text a thousand times."""
    assert evenly("abc", 4) == ["a", "b", "c"] and evenly(range(101), 5) == [0, 25, 50, 75, 100]
    run_dir = write_run(tmp_path / "run", examples=40)
    (name,) = pq.read_table(run_dir / "examples/train.parquet", columns=["id"])["id"].to_pylist()[:1]
    for number in range(30):
        write_refresh(run_dir, number, {name: f"text {number}"}, ended=1)
    table, group = refreshes_section(read_run(run_dir))
    assert table is not None and group is not None
    titles = [row[1] for row in table.rows]
    assert len(titles) == ROWS and (titles[0], titles[-1]) == ("Stage 1, step 0", "Stage 1, step 87")
    (card,) = group.cards
    assert card.label == "Answered 30 times" and len(card.answers) == 1 + TEXTS
    assert card.answers[-1].text == "text 29"
