"""Reflection: what the student answers, how surprised it is, and what a killed reflection keeps."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import srd
from srd.base.errors import UserError
from srd.base.files import discard
from srd.base.tables import write_table
from srd.curation import reflection
from srd.curation.reflection import ranking_warnings, reflect
from srd.data.encoding import Encoder
from srd.data.examples import examples_from_rows
from srd.data.templates.base import get_template
from tests.models.test_generation import plain_scores, theirs
from tests.runs import in_turn
from tests.tiny import tiny_model, tiny_tokenizer

WORDS = [
    "the",
    "sky",
    "sea",
    "box",
    "list",
    "whale",
    "apple",
    "item",
    "number",
    "function",
    "returns",
    "lives",
    "light",
    "blue",
    "red",
    "first",
    "second",
]
ROWS = [
    {
        "id": f"row-{i}",
        "instruction": " ".join(WORDS[i % 7 : i % 7 + 1 + i % 5]),
        "output": " ".join(WORDS[i % 11 :][: 1 + i]),
    }
    for i in range(11)
]


def encoder_for(family: str, tokenizer: Any) -> Encoder:
    return Encoder(tokenizer, get_template("plain", tokenizer), encoder_decoder=family in ("t5", "mt5"))


@pytest.mark.parametrize("family", in_turn(["llama", "gpt2", "gemma2", "t5", "mt5"], "gpt2", "t5"))
def test_scores_by_the_definition(family: str) -> None:
    """Greedy answers by transformers, cross-entropy by a plain pass, ROUGE-L by rouge-score."""
    rouge_score = pytest.importorskip("rouge_score.rouge_scorer")
    model, tokenizer = tiny_model(family, seed=3), tiny_tokenizer(family)
    examples = examples_from_rows(ROWS, "rows")
    scores = srd.reflect(model, tokenizer, examples, template="plain", max_new_tokens=16, batch_size=4)
    assert scores.column_names == ["id", "response", "rouge_l", "ce"]
    assert scores["id"][:] == [row["id"] for row in ROWS]
    encoded = encoder_for(family, tokenizer).encode(examples)
    assert all(ids[-1] == tokenizer.eos_token_id for ids in encoded["response_ids"])
    prompts, references = list(encoded["prompt_ids"]), list(encoded["response_ids"])
    assert scores["ce"][:] == pytest.approx(plain_scores(model, prompts, references)[:, 0], rel=1e-5)
    texts = [
        tokenizer.decode(theirs(model, tokenizer, prompt, [tokenizer.eos_token_id]), skip_special_tokens=True)
        for prompt in prompts
    ]
    assert scores["response"][:] == texts
    scorer = rouge_score.RougeScorer(["rougeL"], use_stemmer=True)
    expected = [scorer.score(row["output"], text)["rougeL"].fmeasure for row, text in zip(ROWS, texts, strict=True)]
    assert scores["rouge_l"][:] == pytest.approx(expected, abs=1e-12)


def test_the_best_reference_counts_for_rouge_and_the_first_for_cross_entropy() -> None:
    model, tokenizer = tiny_model("llama", seed=3), tiny_tokenizer("llama")
    plain = examples_from_rows(ROWS[:3], "rows")
    answers = reflect(model, tokenizer, plain, template="plain", max_new_tokens=8)
    several = plain.map(lambda row, i: {"references": [*row["references"], answers["response"][i]]}, with_indices=True)
    scores = reflect(model, tokenizer, several, template="plain", max_new_tokens=8)
    assert scores["ce"][:] == answers["ce"][:]
    words = [bool(text.strip()) for text in scores["response"]]
    assert any(words)
    for said, score in zip(words, scores["rouge_l"], strict=True):
        assert not said or score == 1.0


def test_neither_batch_size_nor_order_matters() -> None:
    model, tokenizer = tiny_model("t5", seed=3), tiny_tokenizer("t5")
    expected = reflect(model, tokenizer, ROWS, template="plain", max_new_tokens=8, batch_size=32).to_list()
    for size in (1, 3):
        for row, other in zip(
            reflect(model, tokenizer, ROWS, template="plain", max_new_tokens=8, batch_size=size), expected, strict=True
        ):
            assert (row["id"], row["response"], row["rouge_l"]) == (other["id"], other["response"], other["rouge_l"])
            assert row["ce"] == pytest.approx(other["ce"], rel=1e-5)
    backwards = reflect(model, tokenizer, ROWS[::-1], template="plain", max_new_tokens=8, batch_size=4)
    assert backwards["id"][:] == [row["id"] for row in ROWS[::-1]]
    assert backwards["response"][:] == [row["response"] for row in expected[::-1]]


def test_a_killed_reflection_loses_its_last_batches_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last, and those that are not what was written: cut, edited, another batch's, of other settings."""
    model, tokenizer = tiny_model("llama", seed=3), tiny_tokenizer("llama")
    settings: dict[str, Any] = {"template": "plain", "max_new_tokens": 8, "batch_size": 2}
    whole = reflect(model, tokenizer, ROWS, folder=tmp_path / "whole", **settings)
    assert whole.to_list() == reflect(model, tokenizer, ROWS, **settings).to_list()

    calls: list[Any] = []
    original = reflection._reflect_batch

    def spy(*arguments: Any, most: int = 3) -> Any:
        if len(calls) == most:
            raise KeyboardInterrupt
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(reflection, "_reflect_batch", spy)
    with pytest.raises(KeyboardInterrupt):
        reflect(model, tokenizer, ROWS, folder=tmp_path / "killed", **settings)
    written = sorted((tmp_path / "killed").iterdir())
    assert [path.name for path in written] == [f"batch-{i:07d}.json" for i in range(3)]
    written[-1].unlink()
    (tmp_path / "killed" / ".partial-batch-0000003.json-x").write_text("{torn")

    done: list[tuple[int, int]] = []
    monkeypatch.setattr(reflection, "_reflect_batch", lambda *arguments: spy(*arguments, most=99))

    def go_on(folder: Path) -> int:
        calls.clear()
        resumed = reflect(
            model, tokenizer, ROWS, folder=folder, progress=lambda *counts: done.append(counts), **settings
        )
        assert resumed.to_list() == whole.to_list() and done[-1] == (11, 11)
        return len(calls)

    assert go_on(tmp_path / "killed") == 4
    batches = sorted((tmp_path / "killed").glob("batch-*.json"))
    batches[0].write_text(batches[0].read_text()[:40])
    batches[1].write_bytes(b"")
    batches[2].write_text(batches[2].read_text().replace('"rouge_l": [', '"rouge_l": [1.0, '))
    shutil.copy(batches[4], batches[3])
    assert go_on(tmp_path / "killed") == 4
    assert go_on(tmp_path / "killed") == 0
    settings["max_new_tokens"] = 7
    reflect(model, tokenizer, ROWS, folder=tmp_path / "killed", **settings)
    assert len(calls) == 6
    discard(tmp_path / "killed")
    assert not (tmp_path / "killed").exists()


def test_scores_are_written_with_the_agreed_columns(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer("llama")
    scores = reflect(model, tokenizer, ROWS[:4], template="plain", max_new_tokens=4)
    write_table(scores, tmp_path / "scores.parquet")
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.column_names == ["id", "response", "rouge_l", "ce"]
    assert table.to_pylist() == scores.to_list()
    assert srd.rank(scores)["rank"][:] == [1, 2, 3, 4]


PLAIN = [
    {"instruction": f"Name {name}.", "input": None, "output": f"the {name}"} for name in ("sea", "whale", "sky", "box")
]
CONTAINERS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "data set": datasets.Dataset.from_list,
    "after select": lambda rows: datasets.Dataset.from_list([PLAIN[2], *rows, PLAIN[0]]).select(
        range(1, len(rows) + 1)
    ),
    "after filter": lambda rows: datasets.Dataset.from_list([{**PLAIN[2], "output": "no"}, *rows]).filter(
        lambda row: row["output"] != "no"
    ),
    "examples after select": lambda rows: examples_from_rows([PLAIN[0] | {"output": "no"}, *rows], "examples").select(
        range(1, len(rows) + 1)
    ),
    "frame": pd.DataFrame,
    "arrow": pa.Table.from_pylist,
    "iterator": iter,
}


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("kind", CONTAINERS)
def test_rows_are_taken_in_any_container(kind: str, count: int) -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer("gpt2")
    settings: dict[str, Any] = {"template": "plain", "max_new_tokens": 3}
    expected = reflect(model, tokenizer, PLAIN[:count], **settings).remove_columns("id").to_list()
    rows = CONTAINERS[kind](PLAIN[:count])
    scores = reflect(model, tokenizer, rows, **settings).remove_columns("id").to_list()
    assert [pytest.approx(row) for row in expected] == scores


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        (datasets.Dataset.from_list(PLAIN).select([]), "no rows"),
        (examples_from_rows(PLAIN, "x").select([]), "no rows"),
        (pd.DataFrame(PLAIN).head(0), "no rows"),
        (datasets.Dataset.from_list(PLAIN).rename_column("output", "result"), "row 1, .*: no question with an answer"),
        (datasets.concatenate_datasets([examples_from_rows(PLAIN[:1], "x")] * 2), "1 id occurs more than once"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_list(PLAIN)}), "Choose one split"),
        (PLAIN[0], "Put a single row into a list"),
        ("rows.jsonl", "cannot take a str"),
    ],
)
def test_rows_that_are_no_examples(rows: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        reflect(tiny_model("gpt2"), tiny_tokenizer("gpt2"), rows)
    with pytest.raises(UserError, match="batch_size is 0"):
        reflect(tiny_model("gpt2"), tiny_tokenizer("gpt2"), PLAIN, batch_size=0)


def test_the_mode_of_the_model_is_restored_and_dropout_is_off() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer("gpt2")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    expected = reflect(model, tokenizer, ROWS[:3], template="plain", max_new_tokens=4).to_list()
    model.train()
    assert reflect(model, tokenizer, ROWS[:3], template="plain", max_new_tokens=4).to_list() == expected
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def scores_of(rouge: list[float], ce: float = 1.0) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {"id": [str(i) for i in range(len(rouge))], "rouge_l": rouge, "ce": [ce] * len(rouge)}
    )


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (scores_of([0.0, 0.01, 0.02]), "mean ROUGE-L of 1.0.*student.warm_start"),
        (scores_of([0.0, 0.0, 0.0, 0.9]), "75 % of the examples share one ROUGE-L value"),
        (scores_of([0.2, 0.3], math.nan), "cross-entropies are not finite"),
    ],
)
def test_ranks_that_mean_nothing_are_said_so(scores: datasets.Dataset, message: str) -> None:
    import re

    assert any(re.search(message, warning) for warning in ranking_warnings(scores))


def test_ranks_that_mean_something_pass() -> None:
    assert ranking_warnings(scores_of([0.1, 0.2, 0.3, 0.1])) == []
    with pytest.raises(UserError, match="no training examples"):
        ranking_warnings(scores_of([]))
