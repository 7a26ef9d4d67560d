"""Recipes: three lines suffice, every mistake is named at once, and what is written back reads the same."""

from __future__ import annotations

import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from srd.base.errors import UserError
from srd.recipe.files import find_recipe, parse_overrides, shipped_recipes
from srd.recipe.merging import merge
from srd.recipe.mistakes import describe_mistake, known_keys
from srd.recipe.reading import load_recipe, recipe_yaml, validate_recipe, write_recipe
from srd.recipe.schema import Recipe

SMALLEST = "teacher: big\nstudent: small\ndata: rows.jsonl\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    """Write a recipe and load it with overrides."""

    def load(text: str = SMALLEST, *overrides: str) -> Recipe:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(str(path), overrides)

    return load


def message_of(recipe: Any, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        recipe(text, *overrides)
    return str(caught.value)


def test_three_lines_are_a_recipe(recipe: Any) -> None:
    loaded = recipe()
    assert loaded.name == "mine"
    assert (loaded.teacher.model, loaded.student.model, loaded.data.train.path) == ("big", "small", "rows.jsonl")
    training = loaded.training
    assert training.label == "srd" and training.method.name == "kd" and training.objective.name == "fkl"
    assert training.curriculum is not None
    assert (training.curriculum.stages, training.curriculum.select) == (3, 0.75)
    assert (training.batch_size, training.epochs, training.learning_rate) == (16, 8, 1e-4)
    assert (loaded.data.max_length, loaded.data.max_prompt_length) == (512, 256)
    assert loaded.evaluation.seeds == [10, 20, 30, 40, 50]


def test_short_forms(recipe: Any) -> None:
    text = SMALLEST + (
        "data: {train: [a.jsonl, b.jsonl], test: t.csv}\n"
        "training: {method: gkd, objective: tsrkl, curriculum: true, learning_rate: 1e0}\n"
        "evaluation: {tasks: [dolly, {name: gsm8k, limit: 5}]}\n"
    ).replace("data: rows.jsonl\n", "")
    loaded = recipe(text.replace("data: rows.jsonl\n", ""))
    assert loaded.data.train.path == ["a.jsonl", "b.jsonl"] and loaded.data.test.path == "t.csv"
    assert loaded.training.method.name == "gkd" and loaded.training.method.student_share == 0.5
    assert loaded.training.objective.name == "srkl"
    assert [task.name for task in loaded.evaluation.tasks] == ["dolly", "gsm8k"]


CLEANING = "{action: report, keep: right.txt, most: 0.9}"
SECTIONED = SMALLEST.replace("rows.jsonl", f"{{train: rows.jsonl, cleaning: {CLEANING}}}")


def test_a_short_form_leaves_the_rest_of_a_cleaning(recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(SECTIONED)
    extended = f"extends: {tmp_path / 'base.yaml'}\ndata: {{cleaning: drop}}\n"
    ways = [recipe(SECTIONED, "data.cleaning=drop"), recipe(extended), recipe(SECTIONED, "data={cleaning: drop}")]
    ways += [recipe(SMALLEST, "data.cleaning.keep=right.txt", "data.cleaning.most=0.9", "data.cleaning=drop")]
    for cleaning in (each.data.cleaning for each in ways):
        assert (cleaning.action, cleaning.keep, cleaning.most) == ("drop", "right.txt", 0.9)
    off = recipe(SECTIONED, "data.cleaning=off").data.cleaning  # which YAML reads as false
    assert (off.action, off.keep) == ("off", "right.txt")
    plus = recipe(SECTIONED, "data.cleaning=drop", "training.curriculum.preset=plus").data.cleaning
    assert (plus.action, plus.keep) == ("drop", "right.txt")


PAPER = "select: 0.75, stages: 3, weight: [0.8, 1.0], temperature: [1.0, 2.0]"


@pytest.mark.parametrize(
    ("theirs", "main", "fields"),
    [
        ("plus", "{preset: paper}", "select: 1.0, stages: 1, weight: 1.0, temperature: 1.0"),
        ("plus", "{stages: 5}", "select: 1.0, stages: 1, weight: 1.0, temperature: 1.0"),
        ("plus", "null", "select: 1.0, stages: 1, weight: 1.0, temperature: 1.0"),
        ("paper", "{preset: plus}", PAPER),
    ],
)
def test_a_preset_is_of_a_whole_run(recipe: Any, theirs: str, main: str, fields: str) -> None:
    """In a baseline it would be a name without effect: what cleans and reflects does so before all trainings."""
    curriculum = f"training.curriculum={main}"
    told = message_of(recipe, SMALLEST, curriculum, f"baselines.b.curriculum.preset={theirs}")
    assert f"baselines.b.curriculum.preset is {theirs}" in told and f"({fields})" in told
    mended = recipe(SMALLEST, curriculum, f"baselines.b.curriculum={{{fields}}}").variants["b"].curriculum
    assert mended.stages == (1 if theirs == "plus" else 3) and len(mended.schedule("weight")) == mended.stages
    recipe(SMALLEST, f"training.curriculum.preset={theirs}", f"baselines.b.curriculum.preset={theirs}")
    recipe(SMALLEST, curriculum, "baselines.b.curriculum=null")


@pytest.mark.parametrize("method", ["sft", "seqkd", "kd", "gkd", "distillm"])
def test_every_method_by_name(recipe: Any, method: str) -> None:
    training = recipe(SMALLEST, f"training.method={method}").training
    assert training.method.name == method
    assert training.needs_teacher == (method in ("kd", "gkd", "distillm"))
    assert training.on_policy == (method in ("gkd", "distillm"))
    assert recipe(SMALLEST, f"training.method={method}", "training.curriculum=false").training.label == method


def test_a_number_in_quotes_is_a_name(recipe: Any) -> None:
    """As the message about one without them says, behind what a shell leaves of it."""
    assert recipe(SMALLEST, 'teacher={model: a, revision: "2"}').teacher.revision == "2"
    assert recipe(SMALLEST, 'teacher.revision="2"').teacher.revision == "2"


def test_all_mistakes_come_in_one_message(recipe: Any) -> None:
    text = SMALLEST + (
        "trainin: {}\n"
        "training: {epoch: 3, learning_rate: -1, method: gdk, objective: skrl, curriculum: {stage: 2}}\n"
        "evaluation: {seeds: []}\n"
    )
    message = message_of(recipe, text)
    head, *lines = message.splitlines()
    assert head.endswith("mine.yaml has 7 mistakes:") and len(lines) == 7
    for part in (
        "trainin: unknown key; did you mean 'training'?",
        "training.epoch: unknown key; did you mean 'epochs'?",
        "training.learning_rate: input should be greater than 0 (is -1)",
        "training.method: unknown method 'gdk'; did you mean 'gkd'?",
        "training.objective: unknown objective 'skrl'; did you mean 'srkl'?",
        "training.curriculum.stage: unknown key; did you mean 'stages'?",
        "evaluation.seeds: list should have at least 1 item",
    ):
        assert sum(line.strip().startswith(part) for line in lines) == 1, part


def test_what_the_command_line_sets_is_named_beside_the_file() -> None:
    """A user whose own setting is wrong is not sent to look for it in a file of the package."""
    with pytest.raises(UserError, match=r"demo-tiny\.yaml with training\.epoch=3 seed=1 has 1 mistake:"):
        load_recipe("demo-tiny", ["training.epoch=3", "seed=1"])
    with pytest.raises(UserError, match=r"^.{,400} x \[\.\.\.\] has 1 mistake:"):
        load_recipe("demo-tiny", ["training.epoch=" + "x " * 300])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.curriculum.stages=abc"], "training.curriculum.stages: input should be a valid integer"),
        (["training.method=taid", "training.compile=loss"], "training: compile is loss, but the loss of taid changes"),
        (["training.learning_rate=.inf"], "training.learning_rate: input should be a finite number (is inf)"),
        (["training.temperature=.nan"], "training.temperature: input should be a finite number (is nan)"),
        (["training.weight=1.5"], "training.weight: input should be less than or equal to 1 (is 1.5)"),
        (
            ["training.curriculum={preset: plus}", "training.weight=1.5", "baselines.kd.curriculum=null"],
            "training.weight: input should be less than or equal to 1 (is 1.5)",
        ),
        (["training.epoch=5", "baselines.kd.curriculum=null"], "training.epoch: unknown key; did you mean 'epochs'?"),
        (["epochs=5"], "epochs: unknown key; did you mean training.epochs? Known: baselines, "),
        (["lr=0.1"], "lr: unknown key; did you mean training.learning_rate?"),
        (["temperature=2"], "did you mean training.temperature or evaluation.temperature?"),
        (["data.columns={}"], "data.test.columns (`data: {train: {path: …, columns: …}}`)? Known: bad_rows, "),
        (
            ["max_length=5"],
            "max_length: unknown key; did you mean data.max_length (`data: {train: …, max_length: …}`)?",
        ),
        (
            ["training.max_length=5", "baselines.kd.curriculum=null"],
            "training.max_length: unknown key; did you mean data",
        ),
        (["evaluation.model=[kd]"], "evaluation.model: unknown key; did you mean 'models'? Known: "),
        (["training.curriculum.weight=[0.5, 2]"], "training.curriculum: weight must be within 0 and 1"),
        (["training.curriculum.temperature=[1,2,3,4]"], "temperature has 4 values for 3 stages"),
        (["training.objective.lambda=3"], "training.objective: the objective 'fkl' has no parameter 'lambda'"),
        (["training.objective={name: jsd, lam: 2}"], "lam is 2, but it must be within 0 and 1"),
        (["training.method.capacity=3"], "training.method.capacity: unknown key; Known: name"),
        (["training.method={name: gkd, student_sahre: 1}"], "did you mean 'student_share'?"),
        (["training.batch_size=16", "training.micro_batch_size=3"], "batch_size (16) is no multiple of"),
        (["training=5"], "training: give a mapping (is 5). Known: alignment, "),
        (["baselines.kd.epoch=5"], "baselines.kd.epoch: unknown key; did you mean 'epochs'?"),
        (["baselines.kd=5"], "baselines.kd: give a mapping (is 5). Known: "),
        (["baselines.srd.epochs=5"], "baselines.srd: choose another name"),
        (["baselines.a/b.epochs=5"], "baselines.a/b: choose another name"),
        (["student.model=null"], "student: names no student: give `model`, or `drop_layers`"),
        (["data.train.path=null"], "data.train: names no data: give `path`"),
        (["data.max_length=100"], "max_prompt_length (256) leaves no room for a response in max_length (100)"),
        (["data.test_size=-3"], "data.test_size"),
        (["cache.enabled=true", "training.method=gkd"], "cache.enabled is true, but gkd trains on text"),
        (["evaluation.top_p=0"], "evaluation.top_p: input should be greater than 0"),
        (["evaluation.tasks=[doly]"], "did you mean 'dolly'?"),
        (["seed=-1"], "seed: input should be greater than or equal to 0"),
        (["teacher=null"], "teacher"),
        (["training.log_to=tensorboard"], "In brackets it is one: log_to: [tensorboard], or on the command line "),
        (["teacher.revision=2"], """string (is 2). In quotes it is one: revision: "2", or """),
        (["teacher.revision=2"], """on the command line teacher.revision='"2"'"""),
    ],
)
def test_a_mistake_names_its_key_and_the_remedy(recipe: Any, overrides: list[str], message: str) -> None:
    said = message_of(recipe, SMALLEST, *overrides)
    assert re.search(r"mine\.yaml( with .*)? has 1 mistake:", said)
    assert message in said


def test_what_is_missing_is_explained(recipe: Any) -> None:
    message = message_of(recipe, "")
    assert "3 mistakes" in message
    assert "teacher: missing. the large model" in message and "data: missing. the examples" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- a\n- b\n", "a recipe is a mapping of settings, but this is a list"),
        (
            b"# mine\nteacher:a/b\nstudent:a/c\n",
            "this is a text. line 2: no space behind the colon. Write teacher: a/b",
        ),
        (b"teacher: [\n", "mine.yaml is not YAML: .*line 2"),
        (b"\xff\xfe\x00", "mine.yaml is not YAML"),
    ],
)
def test_files_that_are_no_recipe(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_recipe(str(path))


def test_unknown_recipes() -> None:
    with pytest.raises(UserError, match="unknown recipe 'demo-tiyn'; did you mean 'demo-tiny'"):
        load_recipe("demo-tiyn")
    with pytest.raises(
        UserError, match=r"no recipe file 'nowhere/x.yaml'. Give .* shipped name. `srd recipes`.*`srd init`"
    ):
        load_recipe("nowhere/x.yaml")


def test_a_file_that_is_meant_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in (Path("runs/x/recipe.yaml"), Path("mine.yaml")):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(SMALLEST)
    for name, meant in (("runs/x", "runs/x/recipe.yaml"), ("runs/x/", "runs/x/recipe.yaml"), ("mine", "mine.yaml")):
        with pytest.raises(UserError, match=f"'{name}' is no recipe file; did you mean '{meant}'"):
            load_recipe(name)
        load_recipe(meant)
    below = tmp_path / "below" / "base.yaml"
    below.parent.mkdir()
    below.write_text(SMALLEST)
    below.with_name("child.yaml").write_text("extends: base")
    with pytest.raises(UserError, match=r"'base' is no recipe file; did you mean 'base\.yaml'"):
        load_recipe("below/child.yaml")


def test_overrides(recipe: Any) -> None:
    loaded = recipe(
        SMALLEST, "training.learning_rate=1e-3", "training.curriculum.stages=4", "training.objective=srkl",
        "training.objective.alpha=0.2", "data.train.limit=7", "student.drop_layers=[1, 2]", "teacher.sft.epochs=2",
        "evaluation.seeds=[1]", "evaluation.tasks=[{name: dolly}]", "name=a=b",
    )  # fmt: skip
    assert loaded.training.learning_rate == 1e-3
    assert loaded.training.curriculum.stages == 4 and loaded.training.curriculum.select == 0.75
    assert (loaded.training.objective.name, loaded.training.objective.parameters) == ("srkl", {"alpha": 0.2})
    assert loaded.data.train.path == "rows.jsonl" and loaded.data.train.limit == 7
    assert loaded.student.model == "small" and loaded.student.drop_layers == [1, 2]
    assert loaded.teacher.sft.method.name == "sft" and loaded.teacher.sft.select_by == "loss"
    assert loaded.evaluation.seeds == [1] and loaded.name == "a=b"


@pytest.mark.parametrize("text", ["training", "=3", " =3"])
def test_no_override(text: str) -> None:
    with pytest.raises(UserError, match=r"is no override\. Write key\.path=value"):
        parse_overrides([text])


def test_override_whose_value_is_not_yaml() -> None:
    with pytest.raises(UserError, match=r"'a.b=\[1': the value is not YAML"):
        parse_overrides(["a.b=[1"])


def test_another_name_replaces_a_section_whole() -> None:
    """The parameters of another objective or method would mean something else."""
    base = {"objective": {"name": "jsd", "lam": 0.5}, "method": {"name": "gkd", "student_share": 1}, "epochs": 2}
    assert merge(base, {"objective": "srkl"})["objective"] in ("srkl", {"name": "srkl"})
    assert merge(base, {"objective": {"name": "srkl"}})["objective"] == {"name": "srkl"}
    assert merge(base, {"objective": {"lam": 0.1}})["objective"] == {"name": "jsd", "lam": 0.1}
    assert merge(base, {"objective": {"name": "jsd", "lam": 0.1}})["objective"] == {"name": "jsd", "lam": 0.1}
    assert merge(base, {"method": {"name": "distillm"}})["method"] == {"name": "distillm"}
    assert merge({"objective": "jsd"}, {"objective": {"lam": 0.1}})["objective"] == {"name": "jsd", "lam": 0.1}
    assert merge({"a": {"b": [1, 2]}}, {"a": {"b": [3]}}) == {"a": {"b": [3]}}
    assert base["objective"] == {"name": "jsd", "lam": 0.5}  # the base is not touched


def test_extends(tmp_path: Path) -> None:
    """A recipe beside, a shipped one, several; the nearest word counts."""
    (tmp_path / "base.yaml").write_text(
        SMALLEST + "training: {epochs: 2, objective: {name: jsd, lam: 0.5}}\nname: base\n"
    )
    (tmp_path / "more.yaml").write_text("training: {epochs: 3, batch_size: 4}\n")
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: [base.yaml, more.yaml]\ntraining: {batch_size: 8, objective: srkl}\nstudent: other\n")
    loaded = load_recipe(str(mine), ["seed=3"])
    assert (loaded.name, loaded.seed, loaded.student.model, loaded.teacher.model) == ("mine", 3, "other", "big")
    assert (loaded.training.epochs, loaded.training.batch_size) == (3, 8)
    assert (loaded.training.objective.name, loaded.training.objective.parameters) == ("srkl", {})
    mine.write_text("extends: demo-tiny\nseed: 7\n")
    assert load_recipe(str(mine)).seed == 7
    assert load_recipe(str(mine)).data == load_recipe("demo-tiny").data


@pytest.mark.parametrize("chain", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_a_recipe_that_extends_itself(chain: list[str], tmp_path: Path) -> None:
    for name, parent in zip(chain, [*chain[1:], chain[0]], strict=True):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {parent}.yaml\n")
    shown = " -> ".join(f"{name}.yaml" for name in [*chain, chain[0]])
    with pytest.raises(UserError, match=rf"the recipe extends itself \({shown}\). Remove one `extends:`"):
        load_recipe(str(tmp_path / "a.yaml"))


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: gone.yaml\n")
    with pytest.raises(UserError, match=r"no recipe file 'gone\.yaml'"):
        load_recipe(str(tmp_path / "a.yaml"))


FULL = SMALLEST + (
    "training: {method: {name: distillm, capacity: 9}, objective: {name: jsd, lam: 0.3}, lora: {r: 4},"
    " curriculum: {stages: 2, temperature: [1, 1.33], order: random}, learning_rate: 1e-4}\n"
    "baselines: {kd: {curriculum: null, method: kd, epochs: 3}, sft: {method: sft, curriculum: false, lora: null},"
    " other: {objective: srkl}}\n"
    "evaluation: {tasks: [dolly]}\ncache: {dtype: bfloat16}\n"
)


@pytest.mark.parametrize("source", ["smallest", "full", "demo-tiny", "gpt2-srd", "t5-gkd"])
def test_the_resolved_recipe_reads_the_same(source: str, recipe: Any, tmp_path: Path) -> None:
    if source in ("smallest", "full"):
        loaded = recipe({"smallest": SMALLEST, "full": FULL}[source])
    elif source in shipped_recipes():
        loaded = load_recipe(source)
    else:
        pytest.skip(f"{source} is not shipped")
    path = tmp_path / "run" / "recipe.yaml"
    write_recipe(loaded, path)
    again = load_recipe(str(path))
    assert again == loaded
    assert recipe_yaml(again) == path.read_text(encoding="utf-8")
    assert "#" not in recipe_yaml(recipe())
    written = yaml.safe_load(recipe_yaml(recipe()))
    assert written["training"]["curriculum"]["k"] == 60 and written["cache"]["limit_gb"] == 100.0


def test_baselines_say_what_they_change(recipe: Any) -> None:
    loaded = recipe(FULL)
    assert list(loaded.variants) == ["kd", "sft", "other", "srd"]
    kd, other, main = loaded.variants["kd"], loaded.variants["other"], loaded.variants["srd"]
    assert kd.curriculum is None and kd.epochs == 3 and kd.method.name == "kd" and kd.lora.r == 4
    assert kd.objective == main.objective and loaded.variants["sft"].lora is None
    assert other.curriculum == main.curriculum and other.objective.parameters == {}
    assert other.model_copy(update={"objective": main.objective}).model_dump(exclude={"cleaning"}) == main.model_dump()


@pytest.mark.parametrize("key", ["temperature", "weight"])
def test_a_value_that_the_curriculum_replaces_is_refused(key: str, recipe: Any) -> None:
    """What a plain training uses has no effect where every training has a schedule of its own."""
    told = f"training.{key} (0.5) has no effect"
    assert told in message_of(recipe, SMALLEST, f"training.{key}=0.5")
    assert told in message_of(recipe, SMALLEST + f"training: {{{key}: 0.5}}\n")
    for remedy in (f"training.curriculum.{key}=0.5", "training.curriculum=null"):
        recipe(SMALLEST, remedy)
    for used in ("training.curriculum=null", "baselines.kd.curriculum=null"):
        loaded = recipe(SMALLEST, f"training.{key}=0.5", used)
        assert getattr(loaded.variants["kd"], key) == 0.5
        recipe(recipe_yaml(loaded))
    other = f"baselines: {{kd: {{curriculum: null, {key}: 0.6}}}}\n"  # plain, and with a value of its own
    assert told in message_of(recipe, SMALLEST + other, f"training.{key}=0.5")
    for stages in ("{}", "{stages: 2}"):  # a curriculum beside it that says something else
        assert told in message_of(recipe, SMALLEST + f"training: {{{key}: 0.5, curriculum: {stages}}}\n")
    recipe(SMALLEST + f"training: {{{key}: 0.5, curriculum: {{{key}: 1.0}}}}\n")  # as what a run has written says both
    plus = recipe(SMALLEST, "training.curriculum={preset: plus}", f"training.{key}=0.5")  # whose curriculum takes it
    assert plus.training.curriculum.schedule(key) == [0.5]


@pytest.mark.parametrize("key", ["drop", "keep", "find"])
def test_what_a_cleaning_goes_by_is_refused_where_there_is_none(key: str, recipe: Any) -> None:
    """Rows that a user had named as wrong were trained on."""
    said = {"drop": "ids.txt", "keep": "ids.txt", "find": ["match"]}[key]
    change, told = f"data.cleaning.{key}={said}".replace("'", ""), f"data.cleaning.{key} has no effect"
    assert told in message_of(recipe, SMALLEST, change)
    assert told in message_of(recipe, SMALLEST.replace("data: rows.jsonl\n", "") + (
        f"data: {{train: rows.jsonl, cleaning: {{{key}: {said}}}}}\n"))  # fmt: skip
    for action in ("report", "drop"):
        loaded = recipe(SMALLEST, change, f"data.cleaning.action={action}")
        assert told in message_of(recipe, recipe_yaml(recipe(SMALLEST)), change)
        recipe(recipe_yaml(loaded), "data.cleaning.action=off")  # to leave it out once is no fault
    plus = "training.curriculum.preset=plus"
    assert recipe(SMALLEST, change, plus).data.cleaning.action == "repair"
    recipe(SMALLEST, change, plus, "data.cleaning.action=off")
    off = SMALLEST.replace("data: rows.jsonl\n", "data: {train: rows.jsonl, cleaning: off}\n")
    for loaded in (recipe(off, "data.cleaning.most=0.9", plus), recipe(SMALLEST, plus, "data.cleaning=off", change)):
        assert loaded.data.cleaning.action == "off", "it was said"
    assert told in message_of(recipe, off, change, plus)


def test_what_a_cleaning_goes_by_is_refused_in_what_a_recipe_extends(recipe: Any, tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("data: {train: rows.jsonl, cleaning: {drop: ids.txt}}\n", encoding="utf-8")
    child = f"extends: {base}\nteacher: big\nstudent: small\n"
    assert "data.cleaning.drop has no effect" in message_of(recipe, child)
    assert recipe(child, "data.cleaning.action=drop").data.cleaning.drop == "ids.txt"


def test_the_recipe_of_a_plain_run_takes_a_curriculum(recipe: Any) -> None:
    """It says all defaults, which nobody has asked for."""
    plain = SMALLEST + "baselines: {plain: {curriculum: null}}\n"
    own = recipe_yaml(recipe(plain, "training.curriculum=null"))
    for change in ("training.curriculum.stages=2", "training.curriculum={}", "baselines.plain.curriculum.stages=2"):
        recipe(own, change)


@pytest.mark.parametrize("key", ["temperature", "weight"])
def test_a_value_of_a_baseline_reaches_its_curriculum_or_is_refused(key: str, recipe: Any) -> None:
    """It trained the very same student as SRD, and nobody said so."""
    told, half = f"baselines.half.{key} (0.5) has no effect", f"baselines.half.{key}=0.5"
    assert told in message_of(recipe, SMALLEST, half)
    assert told in message_of(recipe, SMALLEST + f"baselines: {{half: {{{key}: 0.5}}}}\n")
    others = f"baselines: {{other: {{{key}: 0.6, curriculum: {{{key}: 0.6}}}}}}\n"  # has another value, and says where
    assert f"training.{key} (0.5) has no effect" in message_of(recipe, SMALLEST + others, f"training.{key}=0.5")
    for remedy in (f"baselines.half.curriculum.{key}=0.5", "baselines.half.curriculum=null"):
        recipe(SMALLEST, remedy)
    assert recipe(SMALLEST, half, "baselines.half.curriculum=null").baselines["half"].curriculum is None
    plus = recipe(SMALLEST, "training.curriculum={preset: plus}", f"training.{key}=0.8", half)
    again = recipe(recipe_yaml(plus))
    for loaded in (plus, again):
        assert loaded.training.curriculum.schedule(key) == [0.8]
        assert loaded.baselines["half"].curriculum.schedule(key) == [0.5]
    file = SMALLEST + f"training: {{curriculum: {{preset: plus}}, {key}: 0.4}}\nbaselines: {{half: {{{key}: 0.3}}}}\n"
    changed = recipe(file, half, f"training.{key}=0.6")  # what a change replaces is no fault of the file
    assert changed.baselines["half"].curriculum.schedule(key) == [0.5]
    assert changed.training.curriculum.schedule(key) == [0.6]
    for curriculum in ("training", "baselines.half"):  # what a curriculum itself says wins, so that this is nothing
        changes = [f"{curriculum}.curriculum.{key}=0.7", "training.curriculum.preset=plus", half]
        assert told in message_of(recipe, SMALLEST, *changes)


def test_a_recipe_without_curriculum_is_its_method(recipe: Any) -> None:
    loaded = recipe(SMALLEST, "training.curriculum=false", "training.method=gkd")
    assert loaded.training.label == "gkd" and list(loaded.variants) == ["gkd"]


def test_preparing_trainings_default_to_fine_tuning(recipe: Any) -> None:
    loaded = recipe(SMALLEST, "teacher.sft.epochs=1", "student.warm_start.epochs=1")
    for training in (loaded.teacher.sft, loaded.student.warm_start):
        assert training.method.name == "sft" and training.select_by == "loss" and training.curriculum is None
    assert recipe(SMALLEST, "student.warm_start.method=kd").student.warm_start.method.name == "kd"


def sections(model: type[BaseModel], seen: set[type[BaseModel]] | None = None) -> set[type[BaseModel]]:
    """Every section of the recipe."""
    seen = set() if seen is None else seen
    if model in seen:
        return seen
    seen.add(model)

    def inside(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            sections(annotation, seen)
        for part in typing.get_args(annotation):
            inside(part)

    for field in model.model_fields.values():
        inside(field.annotation)
    return seen


def test_every_field_is_described_in_one_line() -> None:
    found = sections(Recipe)
    assert len(found) > 15
    for section in found:
        assert section.__doc__
        for name, field in section.model_fields.items():
            if typing.get_origin(field.annotation) is typing.Literal and len(typing.get_args(field.annotation)) == 1:
                continue  # the tag of a method
            assert field.description and "\n" not in field.description, f"{section.__name__}.{name}"


def test_the_schema_for_editors_is_json() -> None:
    schema = json.loads(json.dumps(Recipe.model_json_schema()))
    assert set(schema["required"]) == {"teacher", "student", "data"}
    assert schema["additionalProperties"] is False
    curriculum = schema["$defs"]["CurriculumConfig"]["properties"]
    assert curriculum["select"]["maximum"] == 1 and curriculum["stages"]["description"]


def test_keys_at_a_place() -> None:
    assert known_keys([]) == set(Recipe.model_fields)
    assert "stages" in known_keys(["training", "curriculum"])
    assert known_keys(["training", "method", "gkd"]) == {
        "name", "student_share", "temperature", "max_new_tokens", "refresh",
    }  # fmt: skip
    assert known_keys(["baselines", "kd"]) == known_keys(["training"]) | {"cleaning"}
    described = describe_mistake(
        {"loc": ("baselines", "gkd", "method", "gkd", "x"), "type": "extra_forbidden", "msg": ""}
    )
    assert described.startswith("baselines.gkd.method.x: unknown key")


def test_shipped_recipes_are_found_by_name() -> None:
    shipped = shipped_recipes()
    assert "demo-tiny" in shipped and find_recipe("demo-tiny") == shipped["demo-tiny"]
    assert not any(name.startswith("_") for name in shipped)


def test_plain_data_is_validated_with_its_origin() -> None:
    with pytest.raises(UserError, match=r"^here has 1 mistake:\n  data: missing"):
        validate_recipe({"teacher": "a", "student": "b"}, "here")


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_a_rate_that_only_a_cosine_ends_at_is_refused_with_another_schedule(recipe: Any, schedule: str) -> None:
    """But not the usual one, which a recipe that is written out says."""
    loaded = recipe(SMALLEST, f"training.schedule={schedule}")
    assert recipe(recipe_yaml(loaded)).training == loaded.training
    message = message_of(recipe, SMALLEST, f"training.schedule={schedule}", "training.min_learning_rate=1e-6")
    assert f"min_learning_rate (1e-06) is where a cosine ends, but schedule is {schedule}" in message
    changes = ["training.schedule=cosine", "training.min_learning_rate=1e-6"]
    assert recipe(SMALLEST, *changes).training.min_learning_rate == 1e-6
    assert recipe(SMALLEST, *changes, f"training.schedule={schedule}", "training.min_learning_rate=1e-7")


def test_a_preset_that_would_change_nothing_is_refused(tmp_path: Path) -> None:
    """What is set beside a preset wins, and a run's own recipe sets everything; its remedy works."""
    short, whole = tmp_path / "short.yaml", tmp_path / "recipe.yaml"
    content = {"teacher": "t", "student": "s", "data": "rows.jsonl"}
    short.write_text(yaml.safe_dump(content))
    write_recipe(load_recipe(str(short)), whole)
    plus, paper = (f"training.curriculum.preset={name}" for name in ("plus", "paper"))
    assert load_recipe(str(short), [plus]).training.curriculum.stages == 1  # type: ignore[union-attr]
    assert load_recipe(str(whole), [paper]) == load_recipe(str(short))  # it is that already
    with pytest.raises(
        UserError, match=r"preset=plus changes nothing: .*recipe\.yaml.* a copy of it without"
    ) as refused:
        load_recipe(str(whole), [plus])
    copy: Any = yaml.safe_load(whole.read_text())
    for field in str(refused.value).rpartition("without ")[2].split(", "):
        *sections, last = field.split(".")
        section = copy
        for each in sections:
            section = section[each]
        del section[last]
    whole.write_text(yaml.safe_dump(copy))
    assert load_recipe(str(whole), [plus]) == load_recipe(str(short), [plus]).model_copy(update={"name": "short"})
