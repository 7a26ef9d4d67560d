"""Every shipped recipe is valid, says what the paper says, and runs its whole flow with tiny stand-in models."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from srd.base.errors import UserError
from srd.base.files import read_json
from srd.base.yaml_text import parse_yaml
from srd.recipe.comments import commented
from srd.recipe.files import shipped_recipes
from srd.recipe.reading import load_recipe, validate_recipe
from srd.run.context import Run
from srd.run.flow import advance
from srd.run.plan.plan import make_plan
from srd.tasks.base import TASKS, benchmarks
from srd.training.divergences.base import DIVERGENCES, loss_scale
from tests.runs import close, write_rows
from tests.tiny import save_tiny

FAMILIES = {
    "gpt2": ("gpt2", "dolly"),
    "openllama2": ("llama", "dolly"),
    "qwen2.5-math": ("qwen2", "gsm8k"),
    "qwen2.5-coder": ("qwen2", "mbpp"),
    "t5": ("t5", "xsum"),
    "mt5": ("mt5", "iwslt2017"),
}
METHODS = ("teacher", "sft", "seqkd", "gkd", "kd", "srd")
PAPER = {family: [*(f"{family}-{method}" for method in METHODS), family] for family in FAMILIES}

ANIMALS = ("whale", "dolphin", "octopus", "crab", "seal", "otter", "shark", "ray", "squid", "eel", "clam", "cod")


def test_the_paper_is_complete() -> None:
    assert {name for names in PAPER.values() for name in names} <= set(shipped_recipes())


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_recipe_is_valid_and_described(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert 20 < len(recipe.description) < 140


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_a_recipe_with_comments_reads_as_it_does_without(name: str) -> None:
    recipe = load_recipe(name)
    text = commented(recipe)
    assert validate_recipe(parse_yaml(text, name), name) == recipe
    for line in ("# the small model", "# softmax temperature in the divergence", "# fixes every random choice"):
        assert line in text


def test_gpt2_has_the_papers_settings() -> None:
    recipe = load_recipe("gpt2")
    srd, kd, teacher = recipe.training, recipe.baselines["kd"], recipe.teacher.sft
    assert (srd.learning_rate, srd.min_learning_rate, srd.warmup, srd.schedule) == (1e-4, 1e-7, 0, "cosine")
    assert (srd.batch_size, srd.epochs, srd.weight_decay, srd.max_grad_norm) == (16, 8, 1e-2, 1.0)
    assert srd.curriculum is not None
    assert (srd.curriculum.stages, srd.curriculum.select, srd.curriculum.k) == (3, 0.75, 60)
    assert srd.curriculum.schedule("temperature") == [1.0, 1.5, 2.0]
    assert srd.curriculum.schedule("weight") == [0.8, 0.9, 1.0]
    assert (kd.learning_rate, kd.batch_size, kd.epochs, kd.weight, kd.curriculum) == (5e-4, 8, 20, 1.0, None)
    assert teacher is not None
    assert (teacher.learning_rate, teacher.batch_size, teacher.epochs) == (5e-5, 32, 10)
    assert (recipe.data.max_length, recipe.data.max_prompt_length, recipe.data.template) == (512, 256, "alpaca")
    assert recipe.evaluation.seeds == [10, 20, 30, 40, 50]
    assert [task.name for task in recipe.evaluation.tasks] == ["dolly", "self_inst", "vicuna", "sinst", "uinst"]


def test_openllama2_has_the_papers_settings() -> None:
    recipe = load_recipe("openllama2")
    srd, kd, teacher = recipe.training, recipe.baselines["kd"], recipe.teacher.sft
    assert srd.curriculum is not None
    assert srd.curriculum.schedule("temperature") == [1.0, 1.33, 1.67]
    assert srd.curriculum.schedule("weight") == [0.7, 0.8, 0.9]
    assert (srd.batch_size, srd.epochs) == (32, 4)
    assert (kd.learning_rate, kd.batch_size, kd.epochs, kd.weight) == (5e-4, 32, 10, 0.5)
    assert teacher is not None
    assert (teacher.learning_rate, teacher.batch_size, teacher.epochs) == (5e-4, 32, 20)
    for training in (srd, kd, teacher):
        assert training.lora is not None
        assert (training.lora.r, training.lora.alpha, training.lora.dropout) == (16, 64, 0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_says_each_number_alike(family: str) -> None:
    """The baseline beside SRD is the recipe of its own, and so is the teacher's fine-tuning."""
    beside, alone = load_recipe(family).baselines["kd"], load_recipe(f"{family}-kd").training
    assert beside.model_dump(exclude={"cleaning"}) == alone.model_dump()
    assert load_recipe(family).training == load_recipe(f"{family}-srd").training
    tuned = load_recipe(f"{family}-srd").teacher.sft
    if tuned is not None:
        own = load_recipe(f"{family}-teacher").training
        for name in ("learning_rate", "batch_size", "micro_batch_size", "epochs", "lora"):
            assert getattr(own, name) == getattr(tuned, name), name


def test_methods_are_what_they_are_called() -> None:
    for family in FAMILIES:
        trainings = {method: load_recipe(f"{family}-{method}").training for method in METHODS}
        names = {method: training.method.name for method, training in trainings.items()}
        expected = {"teacher": "sft", "sft": "sft", "seqkd": "seqkd", "gkd": "gkd", "kd": "kd", "srd": "kd"}
        assert names == expected
        assert [method for method, training in trainings.items() if training.curriculum] == ["srd"]


PAPER_NAMES = {"kd": "fkl", "rkl": "rkl", "jsd": "jsd", "tvd": "tvd", "sfkl": "sfkl", "srkl": "srkl"}
PAPER_NAMES |= {"tfkl": "fkl", "trkl": "rkl", "tjsd": "jsd", "ttvd": "tvd", "tsfkl": "sfkl", "tsrkl": "srkl"}


@pytest.mark.parametrize(("paper", "ours"), PAPER_NAMES.items())
def test_paper_type_names_are_objectives(paper: str, ours: str) -> None:
    training = load_recipe("gpt2-srd", [f"training.objective={paper}"]).training
    assert training.objective.name == ours
    assert training.temperature_scaling == "paper"
    # T squared where the paper's scripts have it: forward KL, JSD and skew reverse KL.
    scaled = loss_scale(training.objective.name, 2.0, training.temperature_scaling)
    assert scaled == (4.0 if ours in ("fkl", "jsd", "srkl") else 1.0)
    assert DIVERGENCES.get(ours).squared is (scaled == 4.0)


def test_recipe_that_extends_itself(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: [demo-tiny, a.yaml]\n")
    with pytest.raises(UserError, match=r"extends itself \(a.yaml -> b.yaml -> a.yaml\)"):
        load_recipe(str(tmp_path / "a.yaml"))


# ------------------------------------------------------------------------------------------------------ the whole flow


def original_rows(dataset: str, start: int, count: int) -> list[dict[str, Any]]:
    """Rows in the format in which a data set is published."""
    rows: list[dict[str, Any]] = []
    for number in range(start, start + count):
        animal = ANIMALS[number % len(ANIMALS)]
        if dataset == "dolly":
            text = {"instruction": f"Where does the {animal} {number} live?", "context": "", "category": "open_qa"}
            rows.append({**text, "response": f"The {animal} lives in the sea."})
        elif dataset == "gsm8k":
            rows.append(
                {"question": f"There are {number} {animal}s and one more. How many?", "answer": f"#### {number + 1}"}
            )
        elif dataset == "mbpp":
            code = f"def plus(x):\r\n  return x + {number}"
            tests = [f"assert plus(1) == {number + 1}"]
            task = {"task_id": 601 + number, "text": f"Add {number}.", "code": code, "test_list": tests}
            rows.append({**task, "test_setup_code": "", "challenge_test_list": []})
        elif dataset == "xsum":
            rows.append({"document": f"A {animal} was seen {number} times.", "summary": animal, "id": str(number)})
        else:
            rows.append({"translation": {"en": f"The {animal} {number}.", "de": f"Das Tier {number}."}})
    return rows


TASK_ROWS: dict[str, list[dict[str, Any]]] = {
    "dolly": [{"instruction": "Name an animal.", "input": "", "output": "The whale."}],
    "gsm8k": [{"question": "What is 1 + 1?", "answer": "It is 2.\n#### 2"}],
    "mbpp": [
        {
            "task_id": 11, "text": "Add one.", "code": "def plus(x):\n  return x + 1", "test_setup_code": "",
            "test_list": ["assert plus(1) == 2"], "challenge_test_list": [],
        }
    ],
    "xsum": [{"document": "A whale was seen.", "summary": "whale", "id": "0"}],
    "iwslt2017": [{"translation": {"en": "The whale.", "de": "Der Wal."}}],
}  # fmt: skip


@pytest.fixture
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tasks ask for two tokens once instead of 256 five times."""
    for name, task in benchmarks().items():
        decoding = dataclasses.replace(task.decoding, max_new_tokens=2, seeds=task.decoding.seeds[:1])
        monkeypatch.setitem(TASKS._registered, name, dataclasses.replace(task, decoding=decoding))


def stand_ins(name: str, family: str, folder: Path) -> list[str]:
    """Overrides that put tiny models and a few rows in the place of the real ones, and change no method."""
    dataset = FAMILIES[family][1]
    pair = ", language_pair: en-de" if dataset == "iwslt2017" else ""
    student = "teacher" if name.endswith("-teacher") else "student"
    overrides = [
        f"name={family}",
        f"teacher.model={folder / 'teacher'}",
        f"student.model={folder / student}",
        f"data.train={{dataset: {dataset}, path: {folder / 'data'}{pair}}}",
        f"evaluation.tasks=[{{name: '{TASKS.get(dataset).name}', path: {folder / 'task.jsonl'}}}]",
        "evaluation.seeds=[10]", "generation.max_new_tokens=2", "training.epochs=1", "training.batch_size=4",
        "training.micro_batch_size=null",
    ]  # fmt: skip
    recipe = load_recipe(name)
    overrides += (
        ["teacher.sft.epochs=1", "teacher.sft.batch_size=6", "teacher.sft.micro_batch_size=null"]
        if recipe.teacher.sft
        else []
    )
    overrides += (
        ["baselines.kd.epochs=1", "baselines.kd.batch_size=4", "baselines.kd.micro_batch_size=null"]
        if recipe.baselines
        else []
    )
    if recipe.training.method.name in ("gkd", "seqkd"):
        overrides.append("training.method.max_new_tokens=2")
    return overrides


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("qwen2.5-math", PAPER["qwen2.5-math"][-1:]),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in PAPER.items()),
    ],
)
def test_whole_flow(family: str, names: list[str], tmp_path: Path, short_answers: None) -> None:
    """The recipes of a family take turns in one directory: what they have in common is made once."""
    kind, dataset = FAMILIES[family]
    for seed, model in enumerate(("teacher", "student")):
        save_tiny(tmp_path / model, kind, layers=1, hidden=16, seed=seed)
    (tmp_path / "data").mkdir()
    for split, start, count in (("train", 0, 12), ("validation", 100, 2), ("test", 200, 2)):
        write_rows(tmp_path / "data" / f"{split}.jsonl", original_rows(dataset, start, count))
    write_rows(tmp_path / "task.jsonl", TASK_ROWS[dataset])
    trained: dict[str, str] = {}
    for name in names:
        recipe = load_recipe(name, stand_ins(name, family, tmp_path))
        run = Run(recipe, tmp_path / "run")
        try:
            advance(run)
        finally:
            close(run)
        metrics = read_json(run.folder / "evaluation/metrics.json")
        label = recipe.training.label
        expected = {"student", *recipe.variants} | ({"teacher"} if recipe.evaluation.models is None else set())
        assert set(metrics) == expected, name
        task = recipe.evaluation.tasks[0].name
        assert set(metrics[label]) == {"test", task}, name
        assert TASKS.get(task).primary in metrics[label][task], name
        steps = read_json(run.folder / "manifest.json")["steps"]
        for variant in recipe.variants:
            stages, passes = (3, 1.5) if variant == "srd" else (1, 1.0)
            summary = steps[f"train/{variant}"]["summary"]
            assert (summary["stages"], summary["passes"]) == (stages, passes), (name, variant)
            # A method that two recipes of a family name is one and the same training.
            finished = steps[f"train/{variant}"]["finished"]
            assert name.endswith(("-teacher", "-sft")) or trained.setdefault(variant, finished) == finished, (
                name,
                variant,
            )
        assert ("reflection" in steps) == (label == "srd"), name
        assert load_file(run.folder / "student/model.safetensors"), name


def test_the_tutorial_on_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2-xl", "gpt2"):
        save_tiny(tmp_path / "models" / name, "gpt2", layers=1, hidden=16)
    write_rows(tmp_path / "databricks-dolly-15k.jsonl", original_rows("dolly", 0, 1200))
    for name in ("dolly", "self_inst"):
        write_rows(tmp_path / f"{name}_eval.jsonl", TASK_ROWS["dolly"])
    page = Path(__file__).resolve().parents[2] / "docs/tutorials/paper.md"
    command = page.read_text(encoding="utf-8").split("```bash\nsrd plan gpt2 data.train.path=")[1].split("```")[0]
    words = shlex.split(f"data.train.path={command}".replace("\\\n", " "))
    planned = make_plan(load_recipe("gpt2", words), flops_per_second=1e12).data
    assert (planned.exact, planned.train, planned.validation, planned.test) == (True, 100, 1000, 100)
