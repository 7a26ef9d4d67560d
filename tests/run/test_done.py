"""Done means: these bytes, made from that content. What is changed, damaged, missing or somebody else's is noticed."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

import srd
from srd.base import files
from srd.base.errors import UserError
from srd.base.files import file_digest, read_json
from srd.base.text import visible
from srd.curation.curriculum import Curriculum
from srd.evaluation import answers
from srd.export.base import export
from srd.export.push import prepared
from srd.recipe.reading import validate_recipe
from srd.report.closing import next_steps
from srd.report.comparison import models_of
from srd.report.reading import read_run
from srd.run import context
from srd.run.card import Card, how_it_was_learnt
from srd.run.chat import chat_models
from srd.run.flow import check_written, planned_steps
from srd.run.manifest import Manifest
from srd.run.steps.base import key_of
from srd.tasks.base import TASKS, Scores
from srd.tasks.instruction import INSTRUCTION
from tests.runs import TinyRun, close, steps_finished, tiny_rows, write_rows
from tests.tiny import save_tiny

pytestmark = pytest.mark.xdist_group("done")  # one worker makes what all of these compare with

SRD = {"epochs": 1, "batch_size": 8, "learning_rate": 3e-3, "curriculum": {"stages": 2}}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A finished run; read only."""
    tiny = TinyRun(tmp_path_factory.mktemp("done"))
    tiny.set(training=SRD, data__train_limit=16).run()
    return tiny


@pytest.fixture
def again(done: TinyRun, tmp_path: Path) -> TinyRun:
    """The same run with inputs of its own, to be changed and run again."""
    return done.copy(tmp_path / "run")


def redone(tiny: TinyRun, *wanted: str) -> set[str]:
    """Go through these steps again, or through all of them; those that were made, but for the cards of their models."""
    steps = read_json(tiny.run_dir / "manifest.json")["steps"]
    for step in steps.values():
        step["finished"] = "before"
    run = tiny.open()
    run.manifest.content["steps"] = steps
    run.manifest.save()
    run.close()
    tiny.advance(*wanted)
    made = {name for name, said in steps_finished(tiny.run_dir).items() if not said.startswith("before")}
    return made - {"cards"}


def contents(folder: Path) -> dict[str, str]:
    """Digests of all that a run promises, without what tells of time."""
    kept = ("student", "stages", "examples", "reflection", "curriculum", "evaluation/metrics.json",
            "evaluation/predictions", "evaluation/train_samples.jsonl")  # fmt: skip
    files = [file for name in kept for file in [folder / name, *(folder / name).rglob("*")] if file.is_file()]
    return {str(file.relative_to(folder)): file_digest(file) for file in files if file.name != "metrics.json"}


# ------------------------------------------------------------------------------------------------------------ damage

DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "other bytes": lambda path: path.write_bytes(bytes(255 - byte for byte in path.read_bytes())),
}
DAMAGED = {
    "examples/train.parquet": "examples",
    "examples/test.parquet": "examples",
    "reflection/scores.parquet": "reflection",
    "reflection/endings.parquet": "reflection",
    "curriculum/ranked.parquet": "ranking",
    "student/model.safetensors": "train/srd",
    "student/config.json": "train/srd",
    "student/tokenizer.json": "train/srd",
    "stages/0/metrics.json": "train/srd",
    "stages/1/model/model.safetensors": "train/srd",
    "logs/srd.jsonl": "train/srd",
    "evaluation/metrics.json": "evaluation",
    "evaluation/predictions/srd.test.1.jsonl": "evaluation",
    "evaluation/predictions/teacher.test.1.scores.json": "evaluation",
    "evaluation/train_samples.jsonl": "evaluation",
    "evaluation/details.json": "evaluation",
}


def test_damage_is_noticed(again: TinyRun) -> None:
    """Of each file in each way, which takes no run."""
    manifest = Manifest(again.run_dir)
    for (name, step), (kind, damage) in itertools.product(DAMAGED.items(), DAMAGES.items()):
        path = again.run_dir / name
        intact = path.read_bytes()
        damage(path)
        assert manifest.damaged(step) == [path], kind
        path.write_bytes(intact)
        assert manifest.damaged(step) == []


def test_damage_is_made_good(done: TinyRun, again: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    """One file of each kind at a time costs a run each; all of them at once, in turn, cost one, and are all named."""
    for name, damage in zip(DAMAGED, itertools.cycle(DAMAGES.values())):
        damage(again.run_dir / name)
    shutil.rmtree(again.run_dir / "reflection")
    assert redone(again) == set(DAMAGED.values())
    told = " ".join(capsys.readouterr().err.split())
    for step in set(DAMAGED.values()):
        assert f"! {step}: " in told and "not what this step wrote. It is made again." in told
    assert contents(again.run_dir) == contents(done.run_dir)


@pytest.mark.parametrize("name", ["student/model.safetensors", "stages/1/model/config.json"])
def test_no_more_is_made_again_than_needs_be(again: TinyRun, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from srd.training.trainer import DistillTrainer

    taken: list[str] = []
    step = DistillTrainer.training_step
    monkeypatch.setattr(DistillTrainer, "training_step", lambda self, *a, **n: (taken.append(self.args.output_dir),
                                                                               step(self, *a, **n))[1])  # fmt: skip
    (again.run_dir / name).write_bytes(b"damaged")
    assert redone(again, "train/srd") == {"train/srd"}
    assert {Path(folder).name for folder in taken} == ({"1"} if name.startswith("stages") else set())


def test_what_is_no_steps_is_written_again(again: TinyRun) -> None:
    files = [again.run_dir / name for name in ("metrics.jsonl", "recipe.yaml")]
    before = [path.read_bytes() for path in files]
    for path in files:
        path.write_bytes(path.read_bytes()[:40] + b"\xff")
    assert redone(again) == set()
    assert [path.read_bytes() for path in files] == before


def test_a_recipe_that_is_gone_is_written_again(again: TinyRun) -> None:
    """The manifest says whose directory it is."""
    path = again.run_dir / "recipe.yaml"
    before = path.read_bytes()
    close(again.open())
    path.unlink()
    with pytest.raises(UserError, match=r"is the run directory of the recipe '.+', not of 'other'"):
        again.twin().set(name="other").open()
    assert not path.exists()
    close(again.open())
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"[]", b'{"srd": {}}', b"\xff"])
@pytest.mark.parametrize(
    ("name", "step"),
    [("evaluation/metrics.json", "evaluation"), ("curriculum/ranked.parquet", "ranking"),
     ("logs/srd.jsonl", "train/srd"), ("examples/train.parquet", "examples"),
     ("evaluation/train_samples.jsonl", "evaluation")],
)  # fmt: skip
def test_no_report_of_what_no_step_wrote(again: TinyRun, name: str, step: str, content: bytes) -> None:
    (again.run_dir / name).write_bytes(content)
    run = again.open()
    try:
        with pytest.raises(UserError, match=f"{name} is not what the step {step} wrote"):
            check_written(run)
    finally:
        run.close()


#: All that take a run's student.
USES: tuple[Callable[[Path], Any], ...] = (
    lambda run: chat_models(str(run)),
    lambda run: chat_models(str(run), compare=True),
    lambda run: export(run, "lm-eval", run.with_name("exported")),
    lambda run: prepared(str(run), "me/mine", data=False).__enter__(),
    lambda run: srd.Result(run, "srd").student,
)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json", "config.json"])
def test_no_student_is_used_that_no_step_wrote(again: TinyRun, name: str) -> None:
    """Damaged by one bit it may still load."""
    path = again.run_dir / "student" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    for use in USES:
        with pytest.raises(UserError, match=f"student/{name} is not what the step train/srd wrote"):
            use(again.run_dir)


def test_a_student_is_not_taken_for_that_of_other_settings(again: TinyRun) -> None:
    """Test rows that it was trained on, another frame: a command that does a part brings them, and says nothing of it.

    Both that the message names help: the former recipe, which trains nothing again, and the one that lies there.
    """

    def taken() -> bool:
        for use in USES:
            use(again.run_dir)
        return bool(next_steps(read_run(again.run_dir)))

    def refused() -> None:
        for use in USES:
            with pytest.raises(
                UserError, match=r"is not known to be the student of .*: srd run .*yaml --run-dir .*/run\."
            ):
                use(again.run_dir)
        assert next_steps(read_run(again.run_dir)) == []
        chat_models(str(again.run_dir / "student"))

    again.twin().set(data__cleaning={"action": "report", "find": ["empty"]}).advance("cleaning")  # as srd clean does
    assert taken()
    beside = {"evaluation__seeds": [2], "description": "mine", "baselines": {"kd": {"curriculum": None}}}
    again.twin().set(**beside).advance("ranking")  # none of which decides it
    assert taken()
    again.twin().set(**beside, training__epochs=2).advance("ranking")
    refused()
    for changes in ({"data__test_size": 6}, {"training__curriculum": None}):
        other = again.twin().set(**changes)
        other.advance("student")
        refused()
        assert redone(again) <= {"examples"} and taken()
    other.advance("student")
    assert other.run() and taken()
    run = other.open()
    run.manifest.begin("train/kd", "another", [run.files.student("kd")])  # killed before it is noted as finished
    close(run)
    refused()


def test_a_refused_change_leaves_the_recipe_of_what_is_there(again: TinyRun) -> None:
    """Whoever reads it next, such as srd chat, would take it for that of the student beside it."""
    before = (again.run_dir / "recipe.yaml").read_bytes()
    with pytest.raises(UserError, match="there is no"):
        again.twin().set(student="/nowhere").advance("examples")
    assert (again.run_dir / "recipe.yaml").read_bytes() == before
    again.twin().set(training__epochs=7).advance("examples")
    assert b"epochs: 7" in (again.run_dir / "recipe.yaml").read_bytes()


def held(folder: Path) -> tuple[dict[str, str], Any]:
    """All that lies in a run directory, and what its manifest says of steps; without notes of what was looked at."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith((".", "manifest"))]
    return {str(file): file_digest(file) for file in files}, read_json(folder / "manifest.json")["steps"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "ids that are no rows": ({"data__cleaning": {"action": "drop", "find": ["empty"], "drop": "strange.txt"}},
                              "none of 1 id "),
    "more rows than can be wrong": ({"data__cleaning": {"action": "drop", "find": ["empty"], "drop": "some.txt",
                                                        "most": 0.01}}, "more than data.cleaning.most"),
    "rows to test with among those to train on": ({"data__test": "rows.jsonl", "data__leaks": "error"}, "data.leaks"),
    "a score that is none": ({"training__curriculum": {"score": "nothing"}}, "not finite: .*score nothing nan"),
    "more stages than a baseline has rows": ({"baselines": {"short": {"curriculum": {"stages": 13}}}}, "the 13 stages"),
}  # fmt: skip


@pytest.mark.usefixtures("own_names")
@pytest.mark.parametrize("what", REFUSED)
def test_a_refused_command_leaves_what_was_there(
    again: TinyRun, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of ids, rows, limits: what the user has to mend takes nothing away that was made before."""
    monkeypatch.chdir(tmp_path)
    names = again.open().split("train")["id"]
    (tmp_path / "some.txt").write_text("\n".join(names[:3]))
    (tmp_path / "strange.txt").write_text("nobody")
    write_rows(tmp_path / "rows.jsonl", tiny_rows())
    srd.register_score("nothing", needs=["losses"])(lambda inputs: inputs["ce"] * float("nan"))
    if "cleaning" in str(settings := REFUSED[what][0]):
        again.set(data__cleaning={"action": "drop", "find": ["empty"], "drop": "some.txt"})
    if "baselines" in settings:
        again.set(baselines={"short": {"curriculum": {"stages": 1}}})
    again.train()
    before = held(again.run_dir)
    with pytest.raises(UserError, match=REFUSED[what][1]):
        again.twin().set(**settings).train()
    assert held(again.run_dir) == before


def test_all_that_an_evaluation_waits_for_has_a_bar(again: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers to the training rows of the report, too: with few test rows they take as long as the others."""
    bars: list[tuple[str, float, float | None]] = []

    @contextlib.contextmanager
    def bar(title: str, *_: object) -> Iterator[Callable[..., None]]:
        yield lambda done, total, note="": bars.append((title, done, total))

    monkeypatch.setattr(context, "progress_bar", bar)
    (again.run_dir / "evaluation" / "train_samples.jsonl").unlink()
    assert redone(again) == {"evaluation"}
    assert ("training answers", 12, 12) in bars


@pytest.mark.slow  # one of them is missing among the other damage
def test_missing_folders_are_made_again(done: TinyRun, again: TinyRun) -> None:
    for name in ("examples", "reflection", "curriculum", "stages", "student", "evaluation"):
        shutil.rmtree(again.run_dir / name)
    assert redone(again) == {"examples", "reflection", "ranking", "train/srd", "evaluation"}
    assert contents(again.run_dir) == contents(done.run_dir)


# ------------------------------------------------------------------------------------- what lies beside the student


RANKED = "the examples were ranked by `rouge_l` and `ce`"


@pytest.mark.parametrize(("settings", "said"), [
    ({}, f"{RANKED}, the hardest were left out, and the rest was learnt from easy to hard in 3 stages"),
    ({"preset": "plus"}, "all examples were learnt, in 1 stage; the ranks decided nothing"),
    ({"select": 1.0, "order": "random"}, "all examples were learnt, in 3 stages; the ranks decided nothing"),
    ({"select": 1.0, "stages": 1, "row_weights": "paced"},
     "all examples were learnt, in 1 stage; what it half knew counted most"),
    ({"select": 1.0, "order": "hard_to_easy", "score": ["eos", "ce"]},
     "the examples were ranked by `eos` and `ce`, and they were learnt from hard to easy in 3 stages"),
    ({"stages": 1}, f"{RANKED}, the hardest were left out, and the rest was learnt in 1 stage"),
    ({"order": "fresh"}, "every pass learnt examples that were drawn anew from all of them"),
])  # fmt: skip
def test_the_card_says_what_was_done(settings: dict[str, Any], said: str) -> None:
    assert how_it_was_learnt(Curriculum(**settings)) == said


def test_the_card_acts_on_no_terminal(again: TinyRun) -> None:
    run = again.open()
    try:
        made = Card(run, run.recipe.training.label)
        made.title = "odd\x1b[31m\u202e"
        text = made.text()
    finally:
        close(run)
    assert r"# odd\x1b[31m\u202e" in text and visible(text) == text


def test_the_card_tells_of_the_run_and_is_written_again_with_its_results(again: TinyRun) -> None:
    student = again.run_dir / "student"
    card, settings = student / "README.md", student / "generation_config.json"
    first = card.read_text(encoding="utf-8")
    front, text = first.removeprefix("---\n").split("---\n", 1)
    told = yaml.safe_load(front)
    results = read_json(again.run_dir / "evaluation" / "metrics.json")
    (entry,) = model_index_to_eval_results(told["model-index"])[1][:1]
    assert (entry.metric_name, entry.metric_value) == ("ROUGE-L", round(results["srd"]["test"]["rouge_l"]["mean"], 4))
    assert {"interval_95", "seeds", "std_over_seeds"} == set(entry.metric_args)
    assert told["library_name"] == "transformers" and "license" not in told and "**not stated by" in text
    assert str(again.folder) not in first  # nobody's folders are published
    assert validate_recipe(yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]), "card").training.epochs == 1
    decoding = read_json(settings)
    assert (decoding["do_sample"], decoding["temperature"], decoding["max_new_tokens"]) == (True, 1.0, 4)
    before = keys_of(again)
    again.set(evaluation__temperature=0.0)
    # And no training, though the student's folder has changed: a step is made again if what stands for it changes.
    assert changed(again, before) == {"evaluation"} == redone(again)
    assert read_json(settings)["do_sample"] is False and "decoding of the test split: greedy" in card.read_text()
    again.set(evaluation__temperature=1.0)
    assert redone(again) == {"evaluation"}
    assert card.read_text(encoding="utf-8") == first


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_card(
    done: TinyRun, again: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """At every write of what lies beside the student: before it, when it is whole, under its name."""
    wanted, made = contents(done.run_dir), steps_finished(done.run_dir)
    for kill in itertools.count(1):
        for name in ("README.md", "generation_config.json"):
            (again.run_dir / "student" / name).unlink(missing_ok=True)
        seen = 0

        def kill_at(moment: str, path: Path, last: int = kill) -> None:
            nonlocal seen
            seen += path.name in ("README.md", "generation_config.json", ".cards.json", "manifest.json")
            if seen == last:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(files, "seam", kill_at)
            try:
                again.advance("cards")
                break
            except KeyboardInterrupt:
                pass
        again.advance()
        now = steps_finished(again.run_dir)
        # Within the second in which it was first made, it is told by nothing that it was made again.
        assert {name for name in now if now[name] != made[name]} <= {"cards"}, kill
        assert contents(again.run_dir) == wanted, kill
    assert kill > 10


def test_a_card_that_was_changed_by_hand_is_kept(again: TinyRun) -> None:
    card = again.run_dir / "student" / "README.md"
    card.write_text("mine", encoding="utf-8")
    assert redone(again) == set()
    assert card.read_text(encoding="utf-8") == "mine"
    run = again.open()
    check_written(run)  # a report can be written
    run.close()
    with pytest.raises(UserError, match=r"README\.md was not written by this run, but train/srd is to be made again"):
        again.twin().set(training__epochs=2).advance("train/srd")
    card.unlink()
    assert redone(again) == set()
    assert "model-index" in card.read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------ inputs


BEFORE = {"examples", "teacher", "teacher text", "cache", "student", "reflection", "ranking"}
TRAININGS = {"train/srd", "train/seqkd", "train/gkd"}
#: Changes to a recipe, and the steps that are to be made again, the evaluation left out: it comes after all of them.
DECIDES: list[tuple[dict[str, Any], set[str]]] = [
    ({"name": "other"}, set()),
    ({"training__log_to": []}, set()),
    ({"cache__limit_gb": 50.0}, set()),
    ({"evaluation__limit": 2}, set()),
    ({"training__epochs": 2}, TRAININGS),  # the baselines start from its settings
    ({"baselines__gkd__epochs": 2}, {"train/gkd"}),
    ({"training__curriculum__select": 0.5}, {"ranking", "train/srd"}),
    ({"training__curriculum__weight": [0.5, 1.0]}, {"train/srd"}),
    ({"training__seed": 3}, {"ranking", *TRAININGS}),
    ({"cache__dtype": "bfloat16"}, {"cache", "train/srd"}),
    ({"reflection__max_new_tokens": 7}, {"reflection", "ranking", "train/srd"}),
    ({"baselines__seqkd__method__max_new_tokens": 5}, {"teacher text", "train/seqkd"}),
    ({"generation__batch_size": 4}, {"teacher", "teacher text", "cache", "reflection", "ranking", *TRAININGS}),
    ({"generation__max_new_tokens": 7}, {"teacher", "teacher text", "cache", "reflection", "ranking", *TRAININGS}),
    ({"teacher__sft__epochs": 2}, {"teacher", "teacher text", "cache", *TRAININGS}),
    ({"student__dtype": "bfloat16"}, {"student", "reflection", "ranking", *TRAININGS}),
    ({"data__template": "Say: {instruction}"}, {*BEFORE, *TRAININGS} - {"examples", "student"}),
    ({"data__test_size": 5}, {*BEFORE, *TRAININGS} - {"student"}),
    ({"data__bad_rows": "drop"}, {*BEFORE, *TRAININGS} - {"examples", "student"}),
]


def keys_of(tiny: TinyRun, folder: Path | None = None) -> dict[str, str]:
    """What stands for every step of a run, without making one; in a folder where nothing is made yet, as if it were."""
    run = tiny.open(folder)
    if folder is not None:
        shutil.copytree(tiny.teacher, run.files.teacher)  # as if it were tuned
        shutil.copytree(tiny.run_dir / "examples", run.files.examples("train").parent)
    try:
        for step in planned_steps(run.recipe):
            run.keys[step.name] = key_of(run, step)
        return dict(run.keys)
    finally:
        close(run)


def changed(tiny: TinyRun, before: dict[str, str]) -> set[str]:
    """The steps that are to be made again, but for the cards of the models."""
    after = keys_of(tiny)
    return {name for name in after if after[name] != before.get(name)} - {"cards"}


def test_every_setting_makes_again_what_it_decides_and_no_more(done: TinyRun, tmp_path: Path) -> None:
    tiny = TinyRun.__new__(TinyRun)
    recipe = {
        **json.loads(json.dumps(done.recipe)),
        "teacher": {"model": str(done.teacher), "sft": {"epochs": 1, "method": "sft"}},
        "baselines": {"seqkd": {"curriculum": None, "method": {"name": "seqkd", "max_new_tokens": 4}},
                      "gkd": {"curriculum": None, "method": {"name": "gkd", "max_new_tokens": 4}}},
    }  # fmt: skip
    tiny.__dict__.update(done.__dict__, recipe=recipe)
    before = keys_of(tiny, tmp_path / "before")
    last = {"evaluation", "cards"}  # come after all of them
    assert set(before) == {*BEFORE, *TRAININGS, *last}
    wrong = []
    for number, (change, expected) in enumerate(DECIDES):
        tiny.recipe = json.loads(json.dumps(recipe))
        after = keys_of(tiny.set(**change), tmp_path / str(number))
        other = {name for name in after if after[name] != before[name]} - last
        wrong += [(change, other)] if other != expected else []
    assert not wrong, wrong


def edit_rows(tiny: TinyRun, path: Path) -> Path:
    write_rows(path, [{**row, "output": row["output"] + " Yes."} for row in tiny_rows()])
    return path


def test_a_folder_a_pattern_and_home_are_read_as_content(
    again: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    shutil.copy(again.rows, home / "data" / "train.jsonl")
    for name in ("~/data", "~/data/train.jsonl"):
        shutil.copy(again.rows, home / "data" / "train.jsonl")
        before = keys_of(again.set(data__train=name))
        assert changed(again, before) == set()
        edit_rows(again, home / "data" / "train.jsonl")
        assert changed(again, before) == {*before} - {"teacher", "student", "cards"}, name


def test_an_edited_benchmark_is_answered_again(again: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TASKS.get("gsm8k")
    short = dataclasses.replace(task, decoding=dataclasses.replace(task.decoding, max_new_tokens=4))
    monkeypatch.setitem(TASKS._registered, "gsm8k", short)
    row = {"question": "How many apples?", "answer": "12 in all.\n#### 12"}
    path = write_rows(tmp_path / "gsm8k.jsonl", [row] * 2)
    before = keys_of(again.set(evaluation__tasks=[{"name": "gsm8k", "path": str(path)}]))
    assert changed(again, before) == set()
    write_rows(path, [row] * 3)
    assert changed(again, before) == {"evaluation"} == redone(again)
    details = read_json(again.run_dir / "evaluation/details.json")
    assert details["tasks"]["gsm8k"]["examples"] == 3
    assert details["templates"]["gsm8k"] == dict.fromkeys(("teacher", "student", "srd"), "plain")


def test_every_file_of_a_model_counts(again: TinyRun, tmp_path: Path) -> None:
    student = tmp_path / "student"
    shutil.copytree(again.student, student)
    (student / "modeling_x.py").write_text("A = 1")
    before = keys_of(again.set(student=str(student)))
    (student / "README.md").write_text("about it")
    assert changed(again, before) == set()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "modeling_x.py"):
        text = (student / name).read_text(encoding="utf-8")
        (student / name).write_text(text + "\n# changed" if name.endswith(".py") else text.rstrip()[:-1] + " \n}")
        assert {"student", "reflection", "train/srd"} <= changed(again, before), name
        before = keys_of(again)


def test_a_changed_chat_template_makes_everything_again(make_tiny_run: Callable[..., TinyRun]) -> None:
    tiny = make_tiny_run("qwen2")
    tiny.set(data__template="chat", training=SRD).advance("examples")
    before = keys_of(tiny)
    for folder in (tiny.teacher, tiny.student):
        path = folder / "chat_template.jinja"
        path.write_text(path.read_text(encoding="utf-8").replace("<|im_start|>", "<|im_start|> "), encoding="utf-8")
    made = {"teacher", "cache", "student", "reflection", "ranking", "train/srd", "evaluation"}
    assert changed(tiny, before) == made


def test_what_a_script_has_registered_makes_trainings_again_where_it_is_changed(again: TinyRun) -> None:
    """It stands in no file that the recipe names: its code counts, where the recipe names it."""
    cell = (
        "import srd\n@srd.register_divergence('of_a_script')\ndef of_a_script(p, q): return {} * (p - q).pow(2).sum(-1)"
    )
    exec(cell.format(1), {"__name__": "__main__"})
    unused = keys_of(again.set(training__objective="srkl"))
    before = keys_of(again.set(training__objective="of_a_script"))
    exec(cell.format(1) + "\n\nprint", {"__name__": "__main__"})
    assert changed(again, before) == set()
    exec(cell.format(2), {"__name__": "__main__"})
    assert changed(again, before) == {"train/srd", "evaluation"}
    assert keys_of(again.set(training__objective="srkl")) == unused


def test_a_changed_plugin_makes_trainings_again(again: TinyRun, tmp_path: Path) -> None:
    from srd.base import plugins

    plugin, beside = tmp_path / "mine.py", tmp_path / "mine_too.py"
    beside.write_text("X = 1\n")
    plugin.write_text("import sys\nsys.path.insert(0, __file__.rpartition('/')[0])\nimport mine_too\n")
    before = keys_of(again.set(plugins=[str(plugin)]))
    assert changed(again, before) == set()
    beside.write_text("X = 2\n")
    assert changed(again, before) == {"train/srd", "evaluation"}
    before = keys_of(again)
    plugin.write_text(plugin.read_text() + "Y = 1\n")
    assert changed(again, before) == {"train/srd", "evaluation"}
    assert plugins.plugin_files(str(plugin)) == [plugin, beside]


PLUGINS = {  # a plugin with a number in it, the settings that use it, and what is made anew where the number changes
    "rule": (
        "@register_rule('long', 'are long', least={}.0)\ndef long(responses): return [len(each) for each in responses]",
        {"data__cleaning": {"action": "report", "find": ["long"]}}, {"cleaning", "ranking"},
    ),
    "contrast": (
        "@srd.register_score('mine', needs=['losses'])\ndef mine(inputs): return {} * inputs['ce']\n"
        "register_contrast('mine', 'are mine', damage='cut')",
        {"data__cleaning": {"action": "report", "find": ["mine"]}}, {"cleaning", "ranking"},
    ),
    "score": (
        "@srd.register_score('ours', needs=['losses'])\ndef ours(inputs): return {} * inputs['ce']",
        {"training__curriculum__score": "ours"}, {"ranking"},
    ),
    "template": (
        "@srd.register_template('framed')\ndef framed(tokenizer):\n    "
        "return srd.FormatTemplate('framed', '{0} {{instruction}} {{input}}', '{0} {{instruction}}')",
        {"data__template": "framed"}, {"cache", "reflection", "ranking"},
    ),
}  # fmt: skip


@pytest.mark.usefixtures("own_names")
@pytest.mark.parametrize("kind", ["rule", "contrast", "score", "template"])
def test_a_changed_plugin_makes_again_what_uses_it(again: TinyRun, tmp_path: Path, kind: str) -> None:
    """And nothing else: it may register a divergence beside, which no reflection knows of."""
    code, settings, made = PLUGINS[kind]
    imports = "import srd\nfrom srd.curation.detectors.base import register_contrast, register_rule\n"
    plugin = tmp_path / f"of_{kind}.py"
    plugin.write_text(imports + code.format(1))
    again.set(plugins=[str(plugin)], **settings)
    before = keys_of(again)
    assert changed(again, before) == set()
    plugin.write_text(imports + code.format(2))
    assert changed(again, before) == {*made, "train/srd", "evaluation"}
    again.set(data__cleaning="off", data__template="plain", training__curriculum__score="fused")
    before = keys_of(again)
    plugin.write_text(imports + code.format(3))
    assert changed(again, before) == {"train/srd", "evaluation"}


SCORER = (
    "from dataclasses import dataclass\nimport srd\n@dataclass(frozen=True)\nclass Short(srd.Task):\n"
    "    def score(self, predictions, examples, *, allow_code_execution=False):\n"
    "        values = [{} / 8] * len(predictions)\n"
    "        return srd.Scores({{'short': values[0]}}, {{'short': values}}, 'short')\n"
    "few = srd.Decoding(max_new_tokens=2)\n"
    "srd.register_task('short')(Short('short', 'S', 'mine', 'a file', 'short', decoding=few))\n"
)


def scores_of_all(tiny: TinyRun, task: str) -> set[float]:
    """What the models of a run have got on a task."""
    found = read_json(tiny.run_dir / "evaluation/metrics.json").values()
    return {each["mean"] for tasks in found for each in tasks[task].values()}


@pytest.mark.usefixtures("own_names")
def test_a_changed_scorer_scores_again_and_trains_nothing(
    again: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All models are scored by one rule, from the answers that are there."""
    plugin = tmp_path / "of_task.py"
    plugin.write_text(SCORER.format(1))
    rows = write_rows(tmp_path / "asked.jsonl", [{"instruction": "How many?", "output": "12."}] * 2)
    again.set(plugins=[str(plugin)], evaluation__tasks=[{"name": "short", "path": str(rows)}])
    assert redone(again) == {"evaluation"}
    monkeypatch.setattr(answers, "_answer", None)  # nothing is answered again
    before = keys_of(again)
    for number in (2, 4):
        plugin.write_text(SCORER.format(number))
        assert changed(again, before) == {"evaluation"} == redone(again)
        assert scores_of_all(again, "short") == {100 * number / 8}


@pytest.mark.usefixtures("own_names")
def test_a_scorer_of_a_script_or_of_another_version_scores_again(
    again: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exec(SCORER.format(1), {"__name__": "__main__"})
    rows = write_rows(tmp_path / "asked.jsonl", [{"instruction": "How many?", "output": "12."}] * 2)
    assert redone(again.set(evaluation__tasks=[{"name": "short", "path": str(rows)}])) == {"evaluation"}
    monkeypatch.setattr(answers, "_answer", None)
    exec(SCORER.format(3), {"__name__": "__main__"})
    assert redone(again) == {"evaluation"} and scores_of_all(again, "short") == {37.5}
    monkeypatch.setattr(answers, "VERSION", "another")
    assert redone(again) == set()  # a whole result stays
    monkeypatch.setattr(INSTRUCTION.__class__, "score", lambda *_, **__: Scores({"rouge_l": 0.5}, {}, "rouge_l"))
    assert redone(again.set(evaluation__models=["teacher", "srd"])) == {"evaluation"}
    assert scores_of_all(again, "test") == {50.0}


@pytest.mark.usefixtures("own_names")
def test_a_rule_of_a_script_counts_with_its_threshold(again: TinyRun) -> None:
    """And its cell may be run again, with a contrast of a score of srd's in it."""
    cell = (
        "from srd.curation.detectors.base import register_contrast, register_rule\n"
        "register_contrast('ifd', 'do not follow', damage='swapped')\n"
        "@register_rule('of_a_cell', 'are long', least={})\ndef of_a_cell(responses): return [0.0] * len(responses)"
    )
    exec(cell.format(1.0), {"__name__": "__main__"})
    again.set(data__cleaning={"action": "report", "find": ["of_a_cell", "ifd"]})
    before = keys_of(again)
    exec(cell.format(1.0), {"__name__": "__main__"})  # the same once more
    assert changed(again, before) == set()
    exec(cell.format(2.0), {"__name__": "__main__"})
    assert changed(again, before) == {"cleaning", "ranking", "train/srd", "evaluation"}


@pytest.mark.usefixtures("own_names")
def test_what_is_said_of_a_score_or_a_divergence_counts_with_its_code(again: TinyRun) -> None:
    """Which end of a score is hard, and whether a divergence is multiplied by the temperature squared."""
    cell = (
        "import srd\n@srd.register_score('of_a_cell', harder='{}')\ndef of_a_cell(inputs): return inputs['ce']\n"
        "@srd.register_divergence('away', squared={})\ndef away(p, q): return (p - q).pow(2).sum(-1)"
    )
    exec(cell.format("low", True), {"__name__": "__main__"})
    again.set(training__curriculum__score="of_a_cell", training__objective="away")
    before = keys_of(again)
    exec(cell.format("low", True), {"__name__": "__main__"})
    assert changed(again, before) == set()
    exec(cell.format("high", True), {"__name__": "__main__"})
    assert changed(again, before) == {"ranking", "train/srd", "evaluation"}
    before = keys_of(again)
    exec(cell.format("high", False), {"__name__": "__main__"})
    assert changed(again, before) == {"train/srd", "evaluation"}


# ------------------------------------------------------------------------------------- whose a file or folder is


def test_two_main_trainings_take_turns_in_one_directory(again: TinyRun) -> None:
    """Each finds its own student again; neither is trained twice."""
    student, srd = again.run_dir / "student" / "model.safetensors", dict(SRD)
    first = file_digest(student)
    again.set(training={**SRD, "curriculum": None})
    assert redone(again) == {"train/kd", "evaluation"}
    plain = file_digest(student)
    assert plain != first
    again.set(training=srd)
    assert redone(again) == {"evaluation"}
    assert file_digest(student) == first
    assert set(read_json(again.run_dir / "evaluation/metrics.json")) == {"teacher", "student", "srd"}
    again.set(training=srd, baselines={"kd": {"curriculum": None}})
    assert redone(again) == {"evaluation"}
    assert file_digest(again.run_dir / "baselines/kd/student/model.safetensors") == plain


@pytest.mark.parametrize(
    ("field", "name"),
    [("student", "student"), ("data__train", "examples/train.parquet"), ("teacher", "stages/0/model")],
)
def test_an_input_in_the_run_directory_is_refused(again: TinyRun, field: str, name: str) -> None:
    before = contents(again.run_dir)
    again.set(**{field: str(again.run_dir / name)})
    with pytest.raises(UserError, match="lies in the run directory"):
        again.run()
    assert contents(again.run_dir) == before


def test_a_run_directory_within_the_data_is_refused(again: TinyRun, tmp_path: Path) -> None:
    shutil.copy(again.rows, tmp_path / "train.jsonl")
    with pytest.raises(UserError, match=r"lies in the folder .* which is read"):
        again.set(data__train=str(tmp_path)).run(tmp_path / "run")


def test_files_of_the_user_are_neither_removed_nor_read(again: TinyRun) -> None:
    notes = again.run_dir / "student" / "notes.txt"
    notes.write_text("mine")
    again.run()
    assert notes.read_text() == "mine"
    with pytest.raises(UserError, match=r"notes\.txt was not written by this run, but train/srd is to be made again"):
        again.set(training__learning_rate=1e-3).run()
    assert notes.read_text() == "mine" and (again.run_dir / "student" / "model.safetensors").exists()
    os.replace(notes, again.run_dir / "notes.txt")
    again.run()
    assert (again.run_dir / "notes.txt").read_text() == "mine"


def test_a_model_changed_in_place_is_another_model(again: TinyRun, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    save_tiny(teacher, "llama", seed=1)
    before = keys_of(again.set(teacher=str(teacher)))
    assert changed(again, before) == set()
    save_tiny(teacher, "llama", seed=3)
    assert changed(again, before) == {"teacher", "cache", "train/srd", "evaluation"}


# ----------------------------------------------------------------------------------- what tells of the run as it is


def test_scores_of_an_earlier_training_are_not_those_of_the_new_one(again: TinyRun) -> None:
    """Neither on the page nor in Python, until the new student is evaluated; also while it is being trained."""

    def told() -> tuple[bool, bool]:
        run = read_run(again.run_dir)
        shown = any(model.scores for model in models_of(run)) or bool(run.comparisons or run.train_samples)
        return shown, bool(srd.Result(again.run_dir, "srd").metrics)

    again.run()
    assert told() == (True, True)
    again.set(training__epochs=2).train()
    assert told() == (False, False)
    again.run()
    assert told() == (True, True)
    run = again.open()
    run.manifest.begin("train/srd", "another", [again.run_dir / "student"])
    close(run)
    assert told() == (False, False)


def test_a_cache_is_made_where_it_is_wanted_now(again: TinyRun, tmp_path: Path) -> None:
    """Another place changes no result, but a training that is made again reads it there."""
    again.set(cache__dir=str(tmp_path / "elsewhere"))
    assert redone(again) == {"cache"}
    assert redone(again.set(training__learning_rate=1e-3)) == {"train/srd", "evaluation"}


@pytest.mark.parametrize("command", [("ranking",), ("examples",), ("reflection", "student")])
def test_scores_are_not_told_under_a_recipe_that_they_are_not_of(again: TinyRun, command: tuple[str, ...]) -> None:
    """A command that does a part, with other settings of the training; nothing is lost by it."""

    def told() -> tuple[bool, bool, bool]:
        run = read_run(again.run_dir)
        return (
            bool(run.metrics),
            any(model.scores for model in models_of(run)),
            bool(srd.Result(run.run_dir, "srd").metrics),
        )

    again.run()
    again.advance(*command)
    again.twin().set(data__cleaning={"action": "report", "find": ["empty"]}).advance("cleaning")  # as srd clean does
    assert told() == (True, True, True)
    rate = again.recipe["training"]["learning_rate"]
    again.set(training__learning_rate=rate / 2).advance(*command)
    assert told() == (False, False, False)
    again.set(training__learning_rate=rate)
    assert redone(again) == set()
    assert told() == (True, True, True)


def test_a_report_tells_nothing_of_steps_that_the_recipe_has_no_more(again: TinyRun) -> None:
    again.run()
    assert len(read_run(again.run_dir).ranked)
    again.set(training__curriculum=None).run()
    run = read_run(again.run_dir)
    assert [model.key for model in models_of(run)] == ["teacher", "student", "kd"]
    assert not len(run.ranked) and {row["arm"] for row in run.metrics} == {"kd"}
    assert run.former == {"reflection", "ranking", "train/srd"}
