"""A task of the user's own as a data set to train on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from srd.base.errors import UserError
from srd.data.settings import SourceConfig
from srd.tasks.base import TASKS, Task, load_source, register_task


@pytest.fixture
def mine() -> Iterator[str]:
    """One with splits and a file of the user's own: neither on the hub nor made on the spot."""
    register_task("mine")(Task("mine", "Mine", "the user's own", "any file", splits=("train", "test")))
    yield "mine"
    TASKS._registered.pop("mine")


def test_a_task_without_a_home_reads_the_file_that_is_given(mine: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "What is 2?", "output": "A number."}\n', encoding="utf-8")
    assert len(load_source(SourceConfig(dataset=mine, path=str(path)))) == 1


def test_a_task_without_a_home_or_a_file_is_refused_with_the_way_to_name_one(mine: str) -> None:
    with pytest.raises(
        UserError, match=r"dataset 'mine' is read from a file: give its path, as in `\{dataset: mine, p"
    ):
        load_source(SourceConfig(dataset=mine))
