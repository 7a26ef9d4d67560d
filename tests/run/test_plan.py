"""Plans: the paper's arithmetic, agreement with what runs really do, and no network."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open

from srd.base.errors import UserError
from srd.base.remedies import collecting
from srd.base.text import shown_bytes
from srd.cli import app
from srd.models.loading.adapters import add_lora
from srd.models.loading.loading import load_model
from srd.models.settings import ModelConfig
from srd.recipe.files import shipped_recipes
from srd.recipe.reading import load_recipe, validate_recipe
from srd.recipe.schema import Recipe
from srd.run import flow
from srd.run.checks.recipe import check_cache
from srd.run.checks.warnings import warn_of_memory
from srd.run.context import Run
from srd.run.flow import advance, training_steps
from srd.run.outline.costs import (
    INDEX_BYTES,
    Facts,
    Phase,
    StagePlan,
    inference_memory,
    stages_of,
)
from srd.run.outline.sizes import Size, size_of
from srd.run.plan import counting
from srd.run.plan import plan as plan_module
from srd.run.plan.machines import on_machines
from srd.run.plan.plan import Plan, known_models, make_plan, print_plan, read_config
from srd.run.steps.cards import Cards
from srd.run.steps.evaluation import Evaluation
from srd.run.steps.ranking import Ranking
from srd.run.steps.reflection import Reflection
from srd.run.steps.student import Student
from srd.run.steps.teacher import Cache, Teacher, TeacherText
from srd.run.steps.training import Training
from srd.training.settings import TrainingConfig
from srd.training.tiers.base import TIERS
from tests.marks import needs_bubblewrap
from tests.runs import TinyRun, close
from tests.tiny import save_tiny, tiny_model


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "hub_is_reachable", lambda: False)
    monkeypatch.setattr(plan_module, "cached_config", lambda model: None)


PAPER = [name for name in shipped_recipes() if not name.startswith("demo")]

PARAMETERS = {
    "openai-community/gpt2": 124_439_808,
    "openai-community/gpt2-xl": 1_557_611_200,
    "openlm-research/open_llama_3b_v2": 3_426_473_600,
    "openlm-research/open_llama_7b_v2": 6_738_415_616,
    "Qwen/Qwen2.5-Math-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-Coder-7B-Instruct": 7_615_616_512,
    "google/t5-v1_1-base": 247_577_856,
    "google/t5-v1_1-xl": 2_849_757_184,
    "google/mt5-base": 582_401_280,
    "google/mt5-xl": 3_742_619_648,
}


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_known_models_have_their_published_size(name: str, parameters: int) -> None:
    notes: list[str] = []
    size = size_of(read_config(ModelConfig(model=name), notes), TrainingConfig.model_validate({"lora": {}}))
    assert size.parameters == parameters
    assert size == Size(**known_models()[name]["size"])
    assert name in notes[0]
    assert "hub cannot be reached" in notes[0]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_bubblewrap if "coder" in name else ()) for name in PAPER]
)
def test_shipped_recipes_are_planned_without_a_network(name: str) -> None:
    recipe = load_recipe(name)
    plan = make_plan(recipe)
    assert {phase.name for phase in plan.phases} >= {f"train/{variant}" for variant in recipe.variants}
    assert plan.flops > 1e15
    assert plan.memory > 1e9
    assert {recipe.teacher.model, recipe.student.model} <= set(known_models())
    assert any("is not read" in note for note in plan.notes)


def passes(plan: Plan, phase: str) -> float:
    return next(item.student_passes for item in plan.phases if item.name == phase)


def test_the_papers_arithmetic() -> None:
    """SRD: 8 epochs over 25, 50 and 75 % are 12 epoch equivalents, against plain distillation's 20."""
    plan = make_plan(load_recipe("gpt2"))
    assert passes(plan, "train/srd") == pytest.approx(12, abs=2e-3)
    assert passes(plan, "train/kd") == 20
    srd = next(phase for phase in plan.phases if phase.name == "train/srd")
    assert [round(stage.passes) for stage in srd.stages] == [2, 4, 6]
    teacher = {phase.name: phase.teacher_passes for phase in plan.phases if phase.teacher_passes}
    assert teacher == {"teacher": 10, "cache": 1}


def test_steps_of_stages() -> None:
    training = load_recipe("gpt2").training
    # 1003 examples, 752 kept; stages of 250, 501 and 752; 16 a step, the last one smaller; 8 epochs.
    assert [(stage.examples, stage.steps) for stage in stages_of(training, 1003)] == [
        (250, 128),
        (501, 256),
        (752, 376),
    ]


# ------------------------------------------------------------------------------------------------- against a real run


@pytest.fixture(scope="module")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("plan")
    teacher = save_tiny(folder / "teacher", "llama", layers=3, hidden=16)
    rows = [
        {"instruction": f"Count to {number}.", "output": " ".join(map(str, range(number)))} for number in range(2, 22)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "tiny.yaml"
    file.write_text(
        f"teacher: {teacher}\n"
        "student: {drop_layers: 1}\n"
        f"data: {{train: {folder / 'rows.jsonl'}, validation_size: 2, test_size: 2, template: plain}}\n"
        "generation: {max_new_tokens: 2}\n"
        "training: {epochs: 2, batch_size: 4, select_by: last, curriculum: {stages: 2, select: 0.75}}\n"
        "baselines: {kd: {curriculum: null, epochs: 1.5}}\n"
    )
    return load_recipe(str(file))


def test_tokens_of_much_data_are_counted_on_a_sample(tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_plan(tiny_recipe).data
    monkeypatch.setattr(counting, "SAMPLE", whole.train - 1)
    plan = make_plan(tiny_recipe)
    assert plan.notes == (f"tokens are counted on {whole.train - 1} of {whole.train} training examples",)
    assert (plan.data.train, plan.data.exact) == (whole.train, False)
    assert plan.data.response_tokens == pytest.approx(whole.response_tokens, rel=0.15)


@pytest.fixture(scope="module")
def tiny_run(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tiny_recipe, tmp_path_factory.mktemp("run") / "run")
    advance(run, *training_steps(run.recipe))
    return run


def test_plan_agrees_with_the_run(tiny_recipe: Recipe, tiny_run: Run) -> None:
    plan = make_plan(tiny_recipe)
    steps = tiny_run.manifest.steps
    assert plan.data.exact
    assert plan.notes == ()
    assert plan.data.train == steps["examples"]["summary"]["train"]
    for phase in plan.phases:
        if phase.name.startswith("train/"):
            summary = steps[phase.name]["summary"]
            assert phase.steps == summary["steps"]
            assert phase.student_passes == pytest.approx(summary["passes"], abs=1e-4)
    assert plan.student.parameters == steps["student"]["summary"]["parameters"]
    assert plan.student.parameters == load_model(str(tiny_run.folder / "start")).num_parameters()


def size_of_files(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


CACHES: dict[str, dict[str, Any]] = {
    "exact": {},
    "exact, float32": {"cache__dtype": "float32"},
    "int8": {"cache__tier": "int8"},
    "topk": {"cache__tier": "topk"},
    "likelihood": {"cache__tier": "likelihood"},
}


@pytest.mark.parametrize("case", CACHES)
def test_a_cache_is_as_large_as_planned(case: str, tmp_path: Path) -> None:
    """What is kept of tokens to the byte, which the limit is about; the whole folder to what files have for a head."""
    own = TinyRun(tmp_path).set(cache={"max_kl": 9.0}, training__curriculum=None).set(**CACHES[case]).advance("cache")
    plan, stored = make_plan(own.recipe), 0
    shards = [*(tmp_path / "run/cache").rglob("shard-*.safetensors")]
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            stored += sum((kept := file.get_tensor(name)).numel() * kept.element_size() for name in file.keys())  # noqa: SIM118
    assert plan.cache_bytes == stored == own.manifest.steps["cache"]["summary"]["bytes"] > 0
    planned, heads = plan.cache_bytes + plan.beside_bytes, 1500 + 600 * len(shards)
    assert planned < size_of_files(tmp_path / "run/cache") < planned + heads
    assert plan.tier_bytes[own.recipe.cache.tier] == planned


SERVED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "at temperature 1": ({"training__curriculum": None}, ["exact", "int8", "likelihood", "topk"]),
    "hotter": ({"training__curriculum": None, "training__temperature": 2.0}, ["exact", "int8", "topk"]),
    "reverse KL": ({"training__curriculum": None, "training__objective": "rkl"}, ["exact", "int8", "topk"]),
    "over all tokens": ({"training__curriculum": None, "training__objective": "akl"}, ["exact", "int8"]),
    "a method over all tokens": ({"training__curriculum": None, "training__method": "taid"}, ["exact", "int8"]),
    "text of its own": ({"training__method": {"name": "gkd", "refresh": "epoch"}}, ["exact"]),
}


@pytest.mark.parametrize("case", SERVED)
def test_tiers_that_would_be_refused_are_not_offered(case: str, tmp_path: Path) -> None:
    changes, expected = SERVED[case]
    own = TinyRun(tmp_path).set(baselines={}, training__objective="fkl").set(**changes)
    plan, served = make_plan(validate_recipe(own.recipe, "tiny")), []
    for tier in TIERS.names():
        with contextlib.suppress(UserError):
            check_cache(validate_recipe({**own.recipe, "cache": {"tier": tier}}, "tiny"))
            served.append(tier)
    assert sorted(plan.tier_bytes) == served == expected


def test_flops_by_hand(tiny_recipe: Recipe) -> None:
    plan = make_plan(tiny_recipe)
    kd = next(phase for phase in plan.phases if phase.name == "train/kd")
    prompt, response = plan.data.prompt * plan.data.train, plan.data.response * plan.data.train
    student = 3 * 2 * (plan.student.blocks * (prompt + response) + plan.student.head * response)
    teacher = 2 * plan.teacher.head * response  # only its head: the states come from the cache
    rows = 2 * plan.data.validation  # two validations by the loss: each row is read
    assert rows > 0
    validated = rows * 2 * (plan.student.blocks * (prompt + response) + plan.student.head * response) / plan.data.train
    assert kd.flops == pytest.approx(1.5 * (student + teacher) + validated)


def test_what_takes_less_memory_is_a_setting_of_the_step_that_needs_most(tiny_recipe: Recipe) -> None:
    for stages, setting in (((), "generation.batch_size=1"), ((StagePlan(1, 1, 1),), "training.micro_batch_size=1")):
        with collecting() as said:
            warn_of_memory(tiny_recipe, Phase("the step", stages, memory=1e18))
        (told,) = said.warnings
        assert "in the step" in told.what and setting in told.remedy
        assert ("training" in told.remedy) == bool(stages)
        assert "teacher.offload" not in told.remedy
    with collecting() as said:
        warn_of_memory(tiny_recipe, Phase("cache", memory=1e18))  # all the weights of the teacher
    assert "teacher.offload" in said.warnings[0].remedy and "teacher.load_in_8bit=true" in said.warnings[0].remedy


def test_keys_and_values_of_shared_heads_are_counted_once(tiny_recipe: Recipe) -> None:
    """Qwen2.5-7B has 4 heads of keys for 28 of queries."""
    size = Size(**known_models()["Qwen/Qwen2.5-Math-7B-Instruct"]["size"])
    assert (size.keys, size.hidden_size) == (4 * 128, 28 * 128)
    plan = make_plan(tiny_recipe)
    facts = Facts(tiny_recipe, size, size, plan.data)
    positions = tiny_recipe.generation.batch_size * (plan.data.prompt + tiny_recipe.generation.max_new_tokens)
    assert inference_memory(size, facts) == pytest.approx(2 * size.parameters + positions * 28 * 2 * 4 * 128 * 2)


@pytest.mark.parametrize(
    ("by", "weight", "learnt", "asked", "taught"),
    [
        ("random", 1.0, 0.25, 0, 0.25),
        ("student_entropy", 1.0, 0.25, 1, 0.25),
        ("teacher_gap", 1.0, 0.25, 1, 1.25),
        ("student_entropy", 0.8, 1, 1, 0.25),  # cross-entropy has all positions
    ],
)
def test_flops_of_chosen_positions_by_hand(by: str, weight: float, learnt: float, asked: int, taught: float) -> None:
    """The heads' share of a training: the student's three passes and the one that chooses, the teacher's."""
    tokens = f"training.tokens={{share: 0.25, by: {by}}}"
    recipes = [load_recipe("openllama2-kd", [f"training.weight={weight}", *more]) for more in ([], [tokens])]
    plan, other = map(make_plan, recipes)
    whole, chosen = (next(phase for phase in each.phases if phase.name == "train/kd") for each in (plan, other))
    positions = 2 * whole.student_passes * plan.data.response * plan.data.train
    factor = 2 if recipes[0].training.lora else 3
    spared = plan.student.head * (factor * (1 - learnt) - asked) + plan.teacher.head * (1 - taught)
    assert whole.flops - chosen.flops == pytest.approx(positions * spared, rel=1e-6, abs=whole.flops * 1e-12)


def test_both_texts_of_a_pair_are_read_and_kept() -> None:
    """DistiLLM-2's texts: the teacher reads both, where there is room to keep what it says."""
    given = ["training.objective=fkl", "training.curriculum=null", "baselines={}"]
    plain = make_plan(load_recipe("gpt2-kd", given))
    gigabytes = plain.cache_bytes / 1e9
    one_text, two_texts = gigabytes * 1.5, gigabytes * 2.1
    for limit, kept in ((one_text, False), (two_texts, True)):
        recipe = load_recipe("gpt2-distillm2", ["training.curriculum=null", "baselines={}", f"cache.limit_gb={limit}"])
        plan = make_plan(recipe)
        pairs, training = (next(p for p in plan.phases if p.name.startswith(name)) for name in ("pairs", "train/"))
        assert plan.pairs_bytes == (
            2 * plain.cache_bytes + plain.beside_bytes + INDEX_BYTES * plan.data.train if kept else 0
        )
        assert pairs.teacher_passes == (3 if kept else 1)
        assert bool(training.teacher_passes) != kept


def test_without_a_cache_the_teacher_runs_in_every_pass(tiny_recipe: Recipe) -> None:
    live = tiny_recipe.model_copy(update={"cache": tiny_recipe.cache.model_copy(update={"limit_gb": 1e-9})})
    plan = make_plan(live)
    assert "so the teacher runs live" in plan.notes[0]
    assert plan.cache_bytes == plan.beside_bytes == 0
    kd = next(phase for phase in plan.phases if phase.name == "train/kd")
    assert kd.teacher_passes == kd.student_passes == 1.5
    assert kd.flops > next(phase for phase in make_plan(tiny_recipe).phases if phase.name == "train/kd").flops


def test_a_teacher_that_is_smaller_than_its_student_is_told_of() -> None:
    small, large = "openai-community/gpt2", "openai-community/gpt2-xl"
    told = {}
    for pair in ((large, small), (small, small), (small, large)):
        plan = make_plan(load_recipe("gpt2", [f"teacher={pair[0]}", f"student={pair[1]}"]))
        told[pair] = [note for note in plan.notes if "swapped" in note]
    assert told[large, small] == told[small, small] == []
    sizes = [known_models()[name]["size"]["parameters"] for name in (small, large)]
    asked = "the teacher has fewer parameters ({:,}) than the student ({:,}): are the two swapped?"
    assert told[small, large] == [asked.format(*sizes)]


def test_lora_needs_less() -> None:
    full, lora = (make_plan(load_recipe("openllama2-kd", [f"training.lora={v}"])) for v in ("null", "{r: 16}"))
    assert passes(full, "train/kd") == passes(lora, "train/kd")
    training = [next(phase for phase in plan.phases if phase.name == "train/kd") for plan in (full, lora)]
    assert training[1].flops < training[0].flops
    assert training[1].memory < training[0].memory / 2
    assert lora.checkpoint_bytes < full.checkpoint_bytes / 50


@pytest.mark.parametrize("targets", [None, "all-linear", ["q_proj"], ["mlp.down_proj", "o_proj"]])
def test_an_adapter_is_counted_as_it_is_trained(tiny_recipe: Recipe, targets: Any) -> None:
    """That of a student that loses a layer, of a baseline with targets of its own, and of a fine-tuned teacher."""
    sft = {"method": "sft", "lora": {"r": 5, "targets": targets}}
    other = {"curriculum": None, "lora": {"r": 2, "targets": ["v_proj"]}}
    content = {
        **tiny_recipe.model_dump(mode="json", exclude={"training", "baselines"}),
        "teacher": {"model": tiny_recipe.teacher.model, "sft": sft},
        "training": {"curriculum": None, "lora": {"r": 3, "targets": targets}}, "baselines": {"other": other},
    }  # fmt: skip
    recipe = validate_recipe(content, "tiny")
    plan, sft = make_plan(recipe), recipe.teacher.sft
    assert sft is not None
    trainings = [(plan.teacher, sft, 3), *((plan.student, each, 2) for each in recipe.variants.values())]
    for size, training, layers in trainings:
        assert training.lora is not None
        adapted = add_lora(tiny_model("llama", layers=layers, hidden=16), training.lora)
        assert size.trained(training) == sum(each.numel() for each in adapted.parameters() if each.requires_grad)


def test_rows_are_read_for_the_cleaning_by_the_student_before_it_loses_layers(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    """By its own model, or by the teacher that it is made of."""
    small, large = (str(save_tiny(tmp_path / f"of-{width}", "llama", hidden=width)) for width in (16, 64))
    found = {}
    for name, student in {
        "small": {"model": small}, "small, cut": {"model": small, "drop_layers": 1},
        "large": {"model": large}, "of the teacher": {"drop_layers": 1},
    }.items():  # fmt: skip
        content = tiny_recipe.model_dump(mode="json", exclude={"training", "baselines"})
        content |= {"teacher": large, "student": student, "data": {**content["data"], "cleaning": "repair"}}
        phases = {phase.name: phase for phase in make_plan(validate_recipe(content, "tiny")).phases}
        found[name] = phases["likelihoods"], phases["repair"]
    assert found["small"] == found["small, cut"] and found["large"] == found["of the teacher"]
    assert all(4 * one.flops < other.flops for one, other in zip(found["small"], found["large"], strict=True))


def test_more_devices() -> None:
    one, eight = (make_plan(load_recipe("openllama2"), devices=count, flops_per_second=1e14) for count in (1, 8))
    assert eight.memory < one.memory / 1.5  # smaller micro-batches; weights and optimizer stay whole on each
    assert sum(map(one.seconds, one.phases)) == pytest.approx(8 * sum(map(eight.seconds, eight.phases)))


def test_more_machines() -> None:
    """Shards divide everywhere; training among processes, for what the gradients take, and not at all with Ray."""
    recipe = load_recipe("openllama2")
    found = on_machines(recipe, plan := make_plan(recipe, flops_per_second=1e14), 4)
    kinds = {step.name: step.kind for step in found.steps}
    assert kinds["cache"] == kinds["reflection"] == kinds["evaluation"] == "shards"
    assert kinds["teacher"] == kinds["train/srd"] == "training" and found.memory < plan.memory
    for step in found.steps:
        assert step.torchrun == pytest.approx(step.one / 4)
        assert step.ray == (step.torchrun if step.kind == "shards" else step.one)
    full = next(step for step in found.steps if step.name == "train/srd")
    steps = next(phase.steps for phase in plan.phases if phase.name == "train/srd")
    trained = plan.student.trained(recipe.training)
    assert full.gradients == pytest.approx(steps * 2 * 3 / 4 * 4 * trained / 1.25e9)
    assert found.as_json()["total"]["ray"] == pytest.approx(sum(step.ray for step in found.steps))
    many = on_machines(recipe, make_plan(recipe, devices=4, flops_per_second=1e14), 2)
    assert [step.ray for step in many.steps if step.kind == "shards"] == pytest.approx(
        [step.one / 2 for step in many.steps if step.kind == "shards"]
    )


@pytest.mark.parametrize(
    ("nodes", "remedy"), [(3, "--nodes 2, or a multiple of 3"), (5, "--nodes 4, or a multiple of 5")]
)
def test_a_batch_that_cannot_be_divided(nodes: int, remedy: str) -> None:
    """Torchrun refuses it, Ray does not care."""
    recipe = load_recipe("openllama2")
    found, fine = (on_machines(recipe, make_plan(recipe, flops_per_second=1e14), count) for count in (nodes, nodes - 1))
    assert remedy in found.hindrance and not fine.hindrance
    assert found.total("torchrun") is None and fine.total("torchrun")
    assert found.total("ray") < fine.total("ray")


# ------------------------------------------------------------------------------------------------------------- output


def test_printed_plan() -> None:
    console = Console(width=120, record=True, file=None, quiet=False)
    with console.capture() as captured:
        print_plan(make_plan(load_recipe("gpt2")), console)
    text = captured.get()
    assert "train/srd" in text
    assert "12" in next(line for line in text.splitlines() if line.startswith("train/srd"))
    assert "20" in next(line for line in text.splitlines() if line.startswith("train/kd"))
    assert "'dolly' is not read" in text


def test_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    app(["plan", "gpt2-kd", "training.epochs=4", "--json", "--devices", "2"], standalone_mode=False)
    content = json.loads(capsys.readouterr().out)
    assert content["devices"] == 2
    assert next(p for p in content["phases"] if p["name"] == "train/kd")["student_passes"] == 4
    assert content["total"]["seconds"] > 0
    app(["plan", "gpt2-kd", "--json", "--nodes", "2"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["machines"]["nodes"] == 2


def test_unreadable_configuration() -> None:
    with pytest.raises(UserError, match=r"model 'openai-community/gpt3': .*did you mean 'openai-community/gpt2'"):
        make_plan(load_recipe("gpt2", ["teacher.model=openai-community/gpt3"]))


@pytest.mark.parametrize("asked", ["plan", "doctor", "run"])
def test_a_mistyped_folder_is_no_fault_of_the_network(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("qwen-s", "qwen-t", "other"):
        (tmp_path / "models" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan_module, "hub_is_reachable", lambda: False)
    recipe = validate_recipe({"teacher": "models/qwen-x", "student": "models/qwen-x", "data": "x.jsonl"}, "mine")
    asking: dict[str, Any] = {
        "plan": lambda: read_config(recipe.teacher, []),
        "doctor": lambda: plan_module.check_models_at_hand(recipe),
        "run": lambda: load_model("models/qwen-x"),
    }
    with pytest.raises(UserError) as caught:
        asking[asked]()
    told = str(caught.value)
    assert f"there is no folder {tmp_path}/models/qwen-x; near it: models/qwen-" in told
    assert "models/qwen-s" in told and "models/qwen-t" in told and "other" not in told and "Known" not in told


def test_unknown_size_of_the_data() -> None:
    with pytest.raises(UserError, match=r"data\.train: how large 'someone/rows' is"):
        make_plan(load_recipe("gpt2", ["data.train=someone/rows"]))


def test_too_many_dropped_layers(tiny_recipe: Recipe) -> None:
    student = tiny_recipe.student.model_copy(update={"drop_layers": 3})
    with pytest.raises(UserError, match="drops 3 of 3 layers"):
        make_plan(tiny_recipe.model_copy(update={"student": student}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"drop_layers": [1, 9]}, r"\[9\] cannot be dropped. Layers go from 0 to 2"),
        ({"drop_layers": [0, 1, 2]}, "at least one must remain"),
        ({"attn_implementation": "nope"}, "attn_implementation is 'nope', which 'llama' does not take"),
    ],
)
def test_what_a_model_does_not_have_is_refused_before_any_work(
    changes: dict[str, Any], said: str, tiny_recipe: Recipe
) -> None:
    student = tiny_recipe.student.model_copy(update=changes)
    with pytest.raises(UserError, match=said):
        make_plan(tiny_recipe.model_copy(update={"student": student}))


@pytest.mark.parametrize("name", ["a/b/c", "./x", "../x", "http://x/y", "é/è", "a..b/c", "a--b/c", f"a/{'x' * 200}"])
def test_a_name_that_the_hub_does_not_take(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(plan_module, "hub_is_reachable", lambda: False)
    with pytest.raises(UserError, match=f"model '{re.escape(name)}'"):
        read_config(ModelConfig(model=name), [])


def test_bytes_in_words() -> None:
    assert [shown_bytes(n) for n in (999, 815_616, 3.2e10, 1.5e12)] == ["999 bytes", "815.6 kB", "32.0 GB", "1.5 TB"]


def test_hub_check_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    plan_module.hub_is_reachable.cache_clear()
    assert plan_module.hub_is_reachable() is False
    plan_module.hub_is_reachable.cache_clear()


@pytest.mark.real
@pytest.mark.xdist_group("pydocs")
def test_demo_is_planned_from_the_real_configuration(pydocs_seconds: float) -> None:
    plan = make_plan(load_recipe("demo"))
    assert plan.teacher.parameters == 134_515_008
    assert plan.data.exact
    assert plan.data.train == load_recipe("demo").data.train_limit


def test_paths(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        read_config(ModelConfig(model=str(tmp_path)), [])


# ----------------------------------------------------------------------------------------- the phases are the steps

GKD = {"curriculum": None, "method": {"name": "gkd", "max_new_tokens": 4}}
SEQKD = {"curriculum": None, "method": {"name": "seqkd", "max_new_tokens": 4}}
VARIANTS: dict[str, dict[str, Any]] = {
    "srd": {},
    "warm start kd": {"student__warm_start": {"method": "kd"}},
    "warm start kd, sft": {"student__warm_start": {"method": "kd"}, "training": {"method": "sft", "curriculum": None}},
    "warm start seqkd": {"student__warm_start": {"method": SEQKD["method"]}, "training": GKD},
    "warm start gkd": {"student__warm_start": {"method": GKD["method"]}, "training": SEQKD},
    "fewer layers": {"student": {"drop_layers": 1}, "teacher__sft": {"epochs": 1}},
    "live": {"cache__enabled": False, "baselines": {"kd": {"curriculum": None}}},
    "no room": {"cache__limit_gb": 1e-9},
    "lora": {"training__lora": {"r": 2}, "training__curriculum": None},
}


def test_the_phases_are_the_steps_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every variant: what a run notes as its steps, with nothing computed in any but the first."""
    tiny = TinyRun(tmp_path).set(data__train_limit=8)
    wanted = json.loads(json.dumps(tiny.recipe))

    def tuned(self: Teacher, run: Run) -> dict[str, Any]:
        shutil.copytree(tiny.teacher, run.files.teacher) if run.recipe.teacher.sft else None
        return {}

    for check in ("check_recipe", "look_ahead"):
        monkeypatch.setattr(flow, check, lambda *run: None)
    monkeypatch.setattr(Teacher, "make", tuned)
    for kind in (Ranking, Training):
        monkeypatch.setattr(kind, "work_out", lambda self, run: None)
    for kind in (TeacherText, Cache, Student, Reflection, Ranking, Training, Evaluation):
        monkeypatch.setattr(kind, "make", lambda self, run: {})
    monkeypatch.setattr(Cards, "make", lambda self, run: {"by hand": []})
    for kind in (Teacher, TeacherText, Cache, Student, Reflection, Ranking, Training, Evaluation):
        monkeypatch.setattr(kind, "told", lambda self, run, summary: "nothing")
    for name, changes in VARIANTS.items():
        tiny.recipe = json.loads(json.dumps(wanted))
        run = tiny.set(**changes).open(tmp_path / name)
        try:
            advance(run)
        finally:
            close(run)
        plan = make_plan(run.recipe)
        assert [phase.name for phase in plan.phases if phase.name != "cache" or phase.flops] == list(
            run.manifest.steps
        ), name
        assert bool(plan.cache_bytes) == ("cache" in run.manifest.steps), name
