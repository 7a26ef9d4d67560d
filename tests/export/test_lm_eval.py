"""The task for lm-evaluation-harness: whole prompts, our stops, and a scorer that gives our figures."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import srd
from srd.base.errors import UserError
from srd.export.base import export
from srd.metrics.text import exact_match
from tests.runs import TinyRun

pytestmark = pytest.mark.xdist_group("lm eval")  # one worker makes the task that all of these look at

ANSWERS = ["The whale lives in the sea!", "It returns", "", "12 boxes."]
REFERENCES = [["the whale lives in the sea"], ["It returns the box.", "returns"], ["So."], ["There are 12 boxes"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyRun, Path]:
    tiny = TinyRun(tmp_path_factory.mktemp("task"))
    tiny.advance("examples")
    out = tiny.folder / "out"
    for source, message in ((tiny.run_dir, "student is not there"), (tiny.teacher, "is a model alone")):
        with pytest.raises(UserError, match=message):
            export(Path(source), "lm-eval", out / "deep")
        assert not out.exists()
    (tiny.run_dir / "student").mkdir()  # the task only says where it is
    paths, then = export(tiny.run_dir, "lm-eval", out)
    assert [path.name for path in paths] == ["srd_tiny.yaml", "test.jsonl", "srd_metrics.py"]
    assert f"pretrained={tiny.run_dir / 'student'}" in then and "add_bos_token=False" in then
    return tiny, out


def scorer(out: Path) -> Any:
    spec = importlib.util.spec_from_file_location("srd_metrics", out / "srd_metrics.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_task_names_rows_stops_and_scorer(folder: tuple[TinyRun, Path]) -> None:
    tiny, out = folder
    text = (out / "srd_tiny.yaml").read_text()
    assert text.splitlines()[-1] == "process_results: !function srd_metrics.process_results"
    task = yaml.safe_load("\n".join(text.splitlines()[:-1]))
    assert task["dataset_kwargs"] == {"data_files": {"test": str(out / "test.jsonl")}}
    assert task["generation_kwargs"] == {"until": ["</s>"], "do_sample": False, "max_gen_toks": 4}
    run = tiny.open()
    run.close()
    rows = [json.loads(line) for line in (out / "test.jsonl").read_text().splitlines()]
    encoded = run.encoder.encode(run.split("test")).to_list()
    assert [run.tokenizer(row["prompt"], add_special_tokens=False)["input_ids"] for row in rows] == [
        row["prompt_ids"] for row in encoded
    ]
    assert [row["references"] for row in rows] == list(run.split("test")["references"])


@pytest.mark.parametrize("package", ["srd", "rouge_score"])
def test_the_scorer_gives_our_figures(
    package: str, folder: tuple[TinyRun, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if package != "srd":
        monkeypatch.setitem(sys.modules, "srd", type(sys)("srd"))  # another project's package
    score = scorer(folder[1]).process_results
    for answer, references in zip(ANSWERS, REFERENCES, strict=True):
        found = score({"references": references}, [answer])
        assert found["rouge_l"] == pytest.approx(100 * srd.rouge_l(answer, references), abs=1e-9)
        assert found["exact_match"] == 100 * exact_match(answer, references)
