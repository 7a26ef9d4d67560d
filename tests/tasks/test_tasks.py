"""The registry, the original formats, and the scoring of text tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset

from srd.base.errors import UserError
from srd.base.plugins import import_plugin
from srd.data.examples import EXAMPLE_FEATURES, example_from_row
from srd.data.settings import SourceConfig
from srd.data.shapes import recognised
from srd.evaluation.scoring import score_files
from srd.metrics.rouge import rouge_l, rouge_n
from srd.metrics.text import bleu
from srd.run.identity import source_identity
from srd.tasks.base import benchmarks, data_set_of, get_task, load_source
from tests.runs import TinyRun, write_rows

MINILLM = [
    {
        "instruction": "Name a colour.",
        "input": "",
        "prompt": "Below is ...",
        "output": ["Red", "Blue it is"],
        "topic": "t",
    },
    {"instruction": "Repeat.", "input": "a b", "prompt": "Below is ...", "output": "a b"},
]
GSM8K = [{"question": "1+1?", "answer": "1+1=<<1+1=2>>2\n#### 2"}]
XSUM = [
    {"document": "A long article.", "summary": "Short.", "id": "1"},
    {"document": "", "summary": "Nothing.", "id": "2"},
]
IWSLT = [{"translation": {"en": "Hello", "de": "Hallo", "fr": "Bonjour"}}]
IWSLT_PAIR = [{"translation": {"en": "Hello", "de": "Hallo"}}]


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_registry_has_every_benchmark_under_its_name() -> None:
    assert set(benchmarks()) == {
        "dolly", "self_inst", "vicuna", "sinst", "uinst", "gsm8k", "mbpp", "xsum", "iwslt2017", "pydocs",
        "instruction",
    }  # fmt: skip
    assert all(name == task.name and task.licence and task.source for name, task in benchmarks().items())


def test_unknown_task_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no task 'gms8k'; did you mean 'gsm8k'\?"):
        get_task("gms8k")
    with pytest.raises(UserError, match="no task 'dolly:en-de'"):
        get_task("dolly:en-de")
    with pytest.raises(UserError, match="xx"):
        get_task("iwslt2017:en-xx")
    with pytest.raises(UserError, match="'alpaca' is a data set to train on"):
        get_task("alpaca")


def test_names_are_listed_and_found_without_heavy_libraries() -> None:
    code = (
        "import sys, srd; from srd.tasks.base import TASKS, register_task; assert 'alpaca' in TASKS.names()\n"
        "assert srd.register_task is register_task\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


PLUGIN = """
import dataclasses, srd
from srd.tasks.base import Task
from srd.tasks.xsum import XSUM

class Riddles(Task):
    def convert(self, row, place):
        return {"instruction": self.field(row, "riddle", place), "output": row["answer"]}
    def split_of(self, number, row, place):
        return "train" if number else "test"

srd.register_task("riddles")(Riddles("riddles", "Riddles", "MIT", "here", hub=XSUM.hub, splits=("train", "test")))
srd.register_task("sums")(dataclasses.replace(XSUM, name="sums", splits=()))
"""


def test_a_plugin_adds_a_data_set_and_a_benchmark(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(PLUGIN)
    rows = written(tmp_path, [{"riddle": f"What is {n}?", "answer": str(n)} for n in range(3)])
    import_plugin(str(tmp_path / "plugin.py"))
    splits = load_source(SourceConfig(path=str(rows), dataset="riddles"))
    assert splits["test"]["instruction"][:] == ["What is 0?"]
    assert splits["train"]["references"][:] == [["1"], ["2"]]
    rows.write_text('{"question": "?"}\n')
    with pytest.raises(UserError, match=":1: field 'riddle' is missing, found question; this is"):
        load_source(SourceConfig(path=str(rows), dataset="riddles"))
    reference = Dataset.from_list([{"references": ["A dog."]}])
    assert get_task("sums").score(["A dog."], reference).metrics["rouge_l"] == 1
    with pytest.raises(UserError, match="'riddles' is a data set to train on"):
        get_task("riddles")


def test_decoding_is_the_published_one() -> None:
    for name in ("dolly", "self_inst", "vicuna", "sinst", "uinst"):
        decoding = get_task(name).decoding
        assert (decoding.temperature, decoding.top_p, decoding.max_new_tokens) == (1.0, 1.0, 256)
        assert decoding.seeds == (10, 20, 30, 40, 50)
    assert all(get_task(name).decoding.temperature == 0 for name in ("gsm8k", "mbpp", "xsum", "iwslt2017"))


@pytest.mark.parametrize(
    ("name", "rows", "instruction", "references"),
    [
        ("sinst", MINILLM, "Name a colour.", ["Red", "Blue it is"]),
        ("dolly", MINILLM, "Name a colour.", ["Red", "Blue it is"]),
        ("gsm8k", GSM8K, "1+1?", [GSM8K[0]["answer"]]),
        ("xsum", XSUM, "Summarize the following article in one sentence.", ["Short."]),
        ("iwslt2017", IWSLT_PAIR, "Translate from English to German.", ["Hallo"]),
        ("iwslt2017:en-de", IWSLT, "Translate from English to German.", ["Hallo"]),
        ("iwslt2017:fr-en", IWSLT, "Translate from French to English.", ["Hello"]),
    ],
)
def test_original_formats(
    name: str, rows: list[dict[str, Any]], instruction: str, references: list[str], tmp_path: Path
) -> None:
    examples = get_task(name).examples(written(tmp_path, rows))
    assert set(EXAMPLE_FEATURES) <= set(examples.column_names)
    assert (examples[0]["instruction"], examples[0]["references"]) == (instruction, references)
    assert len(examples) == (1 if name == "xsum" else len(rows))


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("self_inst", {"id": "task_0", "instruction": "Why?", "instances": [{"input": "", "output": "So."}]}),
        ("vicuna", {"question_id": 1, "category": "generic", "text": "Why?"}),
        ("xsum", {"article": "a", "highlights": "b"}),
        ("gsm8k", {"problem_text": "Why?", "answer": "#### 3"}),
        ("instruction", {"article": "a", "highlights": "b"}),
    ],
)
def test_a_row_of_another_format_is_refused_with_what_to_write(task: str, row: dict[str, Any], tmp_path: Path) -> None:
    """A task has no `columns`."""
    with pytest.raises(UserError, match=r":1: no question .*`instruction`, .*`output`\.$") as caught:
        get_task(task).examples(written(tmp_path, [row]))
    assert "columns" not in str(caught.value)
    assert len(get_task(task).examples(written(tmp_path, [{"instruction": "Why?", "output": "#### 3"}]))) == 1


def test_a_file_of_no_known_format_is_refused_with_what_a_task_can_follow(tmp_path: Path) -> None:
    for name, content in (("test.xml", "<mteval/>"), ("t.de", "Hallo\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=r"let its name end so .*write its rows as JSON lines"):
            get_task("iwslt2017:en-de").examples(tmp_path / name)


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Why?", "response": "So.", "answer": "No."},
        {"prompt": "Why?", "completion": "So.", "output": "No."},
        {"question": "Why?", "answer": "So.", "output": "No."},
        {"query": "Why?", "response": "So.", "answer": "No."},
        {"problem": "Why?", "solution": "So.", "answer": "No."},
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}], "answer": "No."},
        {"Question": "Why?", "Answer": "So.", "output": "No."},
        {"references": ["So."], "instruction": "Why?", "output": "No."},
        {"summary": "So."},
    ],
)
def test_a_row_is_scored_by_what_a_run_learns_of_it(row: dict[str, Any]) -> None:
    """Whatever else it has that may hold an answer."""
    assert get_task("instruction").scoring_columns(row, "here") == {"references": ["So."]}
    if "summary" not in row and "references" not in row:
        assert example_from_row(recognised(row, "here")[1], "here")["references"] == ["So."]


def test_instructions_may_have_any_shape_that_a_run_takes(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    for row in ({"messages": talk}, {"conversations": turns}, {"problem": "Why?", "solution": "So."}):
        path = written(tmp_path, [row])
        examples = get_task("instruction").examples(path)
        assert (examples[0]["instruction"], examples[0]["references"]) == ("Why?", ["So."])
        answers = tmp_path / "answers.jsonl"
        answers.write_text('{"text": "So."}', encoding="utf-8")
        assert score_files(answers, path)["exact_match"] == 100
    with pytest.raises(UserError, match="no reference"):
        get_task("instruction").scoring_columns({"text": "Why?"}, "here")


@pytest.mark.xdist_group("pydocs")
def test_pydocs_needs_no_file() -> None:
    examples = get_task("pydocs").examples(limit=3)
    assert len(examples) == 3 and all(references for references in examples["references"])


def test_file_without_test_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no test examples of the task 'xsum'"):
        get_task("xsum").examples(written(tmp_path, XSUM[1:]))


def test_unreachable_hub_says_how_to_give_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"'MiniLLM/Vicuna' from the hub: no route to host\. .*path: vicuna\.jsonl"):
        get_task("vicuna").examples()


def test_translation_row_without_the_language_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows\.jsonl:1: field 'translation'.*'en-it'"):
        get_task("iwslt2017:en-it").examples(written(tmp_path, IWSLT))


def test_a_pair_is_not_chosen_among_several_languages(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows\.jsonl:1: .*3 languages \(de, en, fr\).*iwslt2017:en-de"):
        get_task("iwslt2017").examples(written(tmp_path, IWSLT))
    with pytest.raises(UserError, match="3 languages"):
        get_task("iwslt2017").scoring_columns(IWSLT[0], "here")
    assert get_task("iwslt2017:fr-en").scoring_columns(IWSLT[0], "here") == {"references": ["Hello"]}


def test_text_metrics() -> None:
    examples = Dataset.from_list([{"references": ["the cat sat here now"]}, {"references": ["a dog", "a cat"]}])
    answers = ["the cat sat there now", "a cat"]
    expected = [("the cat sat here now", answers[0]), (["a dog", "a cat"], answers[1])]
    instruction = get_task("sinst").score(answers, examples)
    mean = sum(rouge_l(answer, references) for references, answer in expected) / 2
    assert instruction.metrics == pytest.approx({"rouge_l": mean, "exact_match": 0.5})
    summary = get_task("xsum").score(answers, examples).metrics
    assert list(summary) == ["rouge_1", "rouge_2", "rouge_l"]
    assert summary["rouge_2"] == pytest.approx(sum(rouge_n(a, r, 2) for r, a in expected) / 2)
    translation = get_task("iwslt2017").score(answers, examples)
    assert translation.metrics["bleu"] == bleu(answers, [references for references, _ in expected]).score
    assert "tok:13a" in translation.details["signatures"]["bleu"]
    assert translation.per_example["sentence_chrf"].shape == (2,)
    with pytest.raises(UserError, match="1 prediction for 2 examples"):
        get_task("dolly").score(["one"], examples)
    with pytest.raises(UserError, match="not several samples"):
        get_task("dolly").score([["one"], ["two"]], examples)


@pytest.mark.parametrize("named", [{"path": "rows.jsonl"}, {"dataset": "dolly"}])
def test_languages_of_what_does_not_translate(named: dict[str, str], tiny_run: TinyRun) -> None:
    """Refused before a row is read, as `srd plan` does too."""
    with pytest.raises(UserError, match=r"language_pair \('en-de'\) is for data sets that translate"):
        data_set_of(SourceConfig(**named, language_pair="en-de"))
    with pytest.raises(UserError, match="language_pair"):
        tiny_run.set(data__test={"path": str(tiny_run.rows), "language_pair": "en-de"}).run()
    assert not (tiny_run.run_dir / "examples").exists()
    known = data_set_of(SourceConfig(dataset="iwslt2017", language_pair="en-de"))
    assert known is not None and known.name == "iwslt2017"


def test_a_folder_called_as_a_benchmark_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a benchmark there is nothing to train on: other rows in the folder are other rows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vicuna").mkdir()
    found = []
    for answer in ("one", "two"):
        write_rows(tmp_path / "vicuna" / "train.jsonl", [{"instruction": "Say it.", "output": answer}])
        source = SourceConfig(path="vicuna")
        assert data_set_of(source) is None
        found.append((source_identity(source), load_source(source)["train"]["references"][:]))
    assert found[0][0] != found[1][0] and found[1][1] == [["two"]]
