"""Curated files: what is written is read back as the same examples, and nothing of anybody else's is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from srd.base.errors import UserError
from srd.base.locks import held
from srd.base.remedies import collecting
from srd.curation.curriculum import Curriculum, Stage
from srd.data.batching import LengthBatches
from srd.data.encoding import Encoder
from srd.data.examples import examples_from_rows
from srd.data.settings import SourceConfig
from srd.data.templates.base import get_template
from srd.run import curate as curation
from srd.run.curate import curate, curated
from srd.run.flow import advance
from srd.tasks.base import load_source
from tests.runs import TinyRun, close, tiny_rows, write_rows
from tests.tiny import tiny_tokenizer

pytestmark = pytest.mark.xdist_group("ranked")  # one worker makes the run that many of these look at

STAGE = Stage(0, [], 1.5, 0.9)
TALK = [("system", "Be brief."), ("user", "Name it."), ("assistant", "whale"), ("user", " Why? "), ("assistant", "So.")]


def talk(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


ROWS: list[dict[str, Any]] = [
    {"instruction": "Name it.", "output": "whale"},
    {"instruction": "Name it.", "input": "in the sea", "output": "whale\n"},
    {"question": "How many?", "answer": "12"},
    {"instruction": "Name it.", "output": ["whale", "dolphin"]},
    {"prompt": "Question: Why?\nAnswer:", "completion": " Because."},
    {"prompt": " raw ", "completion": [" one", " two"]},
    {"instruction": "Name it.", "prompt": "### Name it", "output": "whale"},
    talk(*TALK),
    talk(*TALK[1:3]),
    talk(*TALK, ("user", "a turn without an answer")),
    {"prompt": [{"role": "user", "content": "Name it."}], "completion": [{"role": "assistant", "content": "whale"}]},
    {"instruction": "é日本 🐋 \u2028 \" \\ <|im_end|>", "output": "\t<|im_start|>"},
]  # fmt: skip
text = st.text(min_size=1, max_size=20).filter(str.strip)
shapes = st.one_of(
    st.fixed_dictionaries({"instruction": text, "output": text | st.lists(text, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"instruction": text, "input": text, "output": text}),
    st.fixed_dictionaries({"prompt": text, "completion": text | st.lists(text, min_size=1, max_size=3)}),
    st.lists(text, min_size=2, max_size=6).map(
        lambda texts: (
            talk(("system", texts[0]), *zip(("user", "assistant") * 3, texts, strict=False))
            if len(texts) % 2 == 0
            else talk(*zip(("system", *("user", "assistant") * 3), texts, strict=False))
        )
    ),
)


def round_trip(rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Examples, written as a stage and read by srd's own reader; both are compared, and what was written is given."""
    examples = examples_from_rows(rows, "rows")
    score = {"rank": 1, "rouge_l": 0.5, "ce": 2.0}
    written = [curated(row, score, STAGE) for row in examples]
    path = folder / "stage_0.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in written), encoding="utf-8")
    again = load_source(SourceConfig(path=str(path)))
    assert again.to_list() == examples.to_list()
    return written


@pytest.mark.parametrize("template", ["auto", "chat"])
def test_what_is_written_is_read_back_as_the_same_examples(template: str, tmp_path: Path) -> None:
    written = round_trip(ROWS, tmp_path)
    tokenizer = tiny_tokenizer("qwen2")
    coder = Encoder(tokenizer, get_template(template, tokenizer), max_length=400, max_prompt_length=300)
    before = coder.encode(examples_from_rows(ROWS, "rows"))
    after = coder.encode(load_source(SourceConfig(path=str(tmp_path / "stage_0.jsonl"))))
    assert after.to_list() == before.to_list()
    assert written[7]["messages"] == [{"role": role, "content": content} for role, content in TALK]
    assert not {"instruction", "output", "prompt"} & set(written[7])
    assert {"prompt", "completion"} <= set(written[4]) and "instruction" not in written[4]
    assert written[3]["output"] == "whale" and written[3]["references"] == ["whale", "dolphin"]
    assert "references" not in written[0]


@given(rows=st.lists(shapes, min_size=1, max_size=4))
def test_any_rows_come_back(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        examples_from_rows(rows, "rows")
    except UserError:  # a conversation without a question, say
        return
    round_trip(rows, tmp_path_factory.mktemp("rows"))


def test_references_of_another_kind_stay_out_of_it() -> None:
    row = {"question": "Why?", "answer": "So.", "references": ["https://a", "https://b"]}
    assert examples_from_rows([row], "rows")[0]["references"] == ["So."]


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A run that has been ranked: curating it again takes no model."""
    tiny = TinyRun(tmp_path_factory.mktemp("ranked"))
    tiny.set(generation__max_new_tokens=2)
    run = tiny.open()
    advance(run, "ranking")
    close(run)
    return tiny


def curate_into(tiny: TinyRun, folder: Path, **curriculum: Any) -> list[list[dict[str, Any]]]:
    tiny.set(training__curriculum=curriculum or {"stages": 3})
    run = tiny.open()
    try:
        paths = curate(run, folder)
    finally:
        close(run)
    return [[json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in paths]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_fresh_order_writes_what_the_first_pass_of_each_stage_draws(ranked: TinyRun, tmp_path: Path) -> None:
    stages = curate_into(ranked, tmp_path, order="fresh", stages=2)
    assert [len(stage) for stage in stages] == [12, 24]
    assert all(len({row["id"] for row in stage}) == len(stage) for stage in stages)
    everything = sorted(row["id"] for row in pq.read_table(ranked.run_dir / "curriculum/ranked.parquet").to_pylist())
    for index, stage in enumerate(stages):  # the trainer's own draw: seed 0 and the stage's number
        batches = LengthBatches([1] * len(everything), 4, seed=index, subset=len(stage)).batches()
        assert {everything[i] for batch in batches for i in batch} == {row["id"] for row in stage}
    assert curate_into(ranked, tmp_path, order="fresh", stages=2) == stages


def test_a_recipe_without_a_curriculum_is_told_which_it_gets(tmp_path: Path) -> None:
    run = TinyRun(tmp_path).set(training__curriculum=None).open()
    with collecting() as told:
        assert curation.curriculum_of(run) == Curriculum()
    close(run)
    (warning,) = told.warnings
    assert "trains without a curriculum; its rows are put into 3 stages, of the easiest 75%" in warning.what


@pytest.mark.parametrize("order", ["easy_to_hard", "fresh"])
def test_softened_rows_stay_out_of_the_files(tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads the files would learn their text, which the recipe's own training does not."""
    tiny = TinyRun(tmp_path)
    loops = [{"instruction": f"Count to {n}.", "output": f"{n} one two " * 8} for n in range(9)]
    write_rows(tiny.rows, [*tiny_rows(), *loops])
    tiny.set(data__cleaning={"action": "soften", "find": ["looping"]})
    told: list[str] = []
    monkeypatch.setattr(curation, "warn", lambda logger, what, remedy: told.append(what))
    stages = curate_into(tiny, tmp_path / "curated", stages=2, select=1, order=order)
    written = {row["id"] for stage in stages for row in stage}
    marks = pq.read_table(tiny.run_dir / "cleaning/rows.parquet").to_pylist()
    soft = {row["id"] for row in marks if row["wrong"]}
    assert len(soft) > 1 and not written & soft and len(written) == len(marks) - len(soft)
    assert any(f"{len(soft)} rows in doubt" in what for what in told)


def test_a_second_call_leaves_nothing_of_the_first_and_all_that_is_others(ranked: TinyRun, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "stage_7.jsonl").write_text("mine too")
    curate_into(ranked, tmp_path, stages=4)
    assert {"stage_0.jsonl", "stage_3.jsonl", "stages.json"} <= set(contents(tmp_path))
    (tmp_path / "stage_1.jsonl").unlink()  # what is gone is written again
    assert [len(stage) for stage in curate_into(ranked, tmp_path, stages=2)] == [12, 24]
    left = contents(tmp_path)
    assert set(left) - {".lock"} == {"notes.txt", "stage_7.jsonl", "stage_0.jsonl", "stage_1.jsonl", "stages.json"}
    assert left["notes.txt"] == b"mine" and left["stage_7.jsonl"] == b"mine too"


def test_an_interrupted_call_goes_on(ranked: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    expected = curate_into(ranked, whole, stages=3)
    written = 0

    def killed(*arguments: Any) -> dict[str, Any]:
        nonlocal written
        written += 1
        if written == 20:  # within the second stage
            raise KeyboardInterrupt
        return curated(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(curation, "curated", killed)
        with pytest.raises(KeyboardInterrupt):
            curate_into(ranked, cut, stages=3)
    assert {"stage_0.jsonl", "stages.json"} == set(contents(cut)) - {".lock"}
    assert curate_into(ranked, cut, stages=3) == expected
    assert {**contents(whole), ".lock": b""} == {**contents(cut), ".lock": b""}


def in_the_way(name: str) -> Any:
    def folder(target: Path) -> None:
        (target / name).mkdir()
        (target / name / "part-0").write_text("mine")

    def file(target: Path) -> None:
        (target / name).write_text("mine")

    def link(target: Path) -> None:
        (target / "mine").write_text("mine")
        (target / name).symlink_to(target / "mine")

    return folder, file, link


OBSTACLES = {
    "a folder": (in_the_way("stage_0.jsonl")[0], "stage_0.jsonl is in the way: it is no plain file"),
    "a file": (in_the_way("stage_1.jsonl")[1], "stage_1.jsonl was not written by srd curate"),
    "a link": (in_the_way("stage_1.jsonl")[2], "stage_1.jsonl is in the way"),
    "a list of somebody's": (in_the_way("stages.json")[1], "stages.json is not what srd curate writes"),
    "a list that names others": (
        lambda target: (target / "stages.json").write_text('{"files": {"../rows.jsonl": null}}'),
        "stages.json is not what srd curate writes",
    ),
}


@pytest.mark.parametrize("kind", OBSTACLES)
def test_what_is_in_the_way_is_refused_before_anything_is_computed(
    ranked: TinyRun, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, message = OBSTACLES[kind]
    make(tmp_path)
    before = sorted(str(path) for path in tmp_path.rglob("*") if path.name != ".lock")
    monkeypatch.setattr(curation, "advance", lambda *_: pytest.fail("it has begun to work"))
    with pytest.raises(UserError, match=message):
        curate_into(ranked, tmp_path)
    assert sorted(str(path) for path in tmp_path.rglob("*") if path.name != ".lock") == before


def test_a_stage_that_somebody_has_changed_is_kept(ranked: TinyRun, tmp_path: Path) -> None:
    curate_into(ranked, tmp_path)
    with open(tmp_path / "stage_2.jsonl", "a") as file:
        file.write("my own row\n")
    for stages in (3, 2):
        with pytest.raises(UserError, match=r"stage_2\.jsonl has been changed since and would be lost"):
            curate_into(ranked, tmp_path, stages=stages)


def test_one_command_at_a_time(ranked: TinyRun, tmp_path: Path) -> None:
    with held(tmp_path, "-o"), pytest.raises(UserError, match="another srd command works in"):
        curate_into(ranked, tmp_path)
    with pytest.raises(UserError, match=r"-o .*run is the run directory"):
        curate_into(ranked, ranked.run_dir)
