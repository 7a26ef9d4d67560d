"""The whole flow on tiny models: exact files, counts and columns, and what a changed input redoes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, AutoTokenizer, dynamic_module_utils

from srd.base.errors import RunError, UserError
from srd.base.files import read_json, write_json
from srd.curation.curriculum import Curriculum
from srd.data.encoding import Encoder
from srd.evaluation.models import evaluate_models, read_benchmarks
from srd.export.base import Exported, Settings
from srd.models.loading.architecture import count_parameters
from srd.models.loading.loading import load_config
from srd.run.chat import chat_models
from srd.run.curate import curate
from srd.run.parts.scores import ranked_scores, reflect_on
from srd.run.steps.evaluation import Evaluation, benchmarks
from srd.run.steps.ranking import Ranking
from srd.run.steps.reflection import Reflection
from srd.run.steps.training import Training
from srd.tasks.base import TASKS
from tests.runs import TinyRun, close, logged, steps_finished, write_rows
from tests.tiny import save_tiny

pytestmark = pytest.mark.xdist_group("flow")  # one worker makes what all of these compare with

MODEL_FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
SCORES = [("id", "string"), ("response", "string"), ("rouge_l", "double"), ("ce", "double")]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A finished run with a baseline; read only."""
    tiny = TinyRun(tmp_path_factory.mktemp("done"))
    tiny.set(baselines={"kd": {"curriculum": None, "epochs": 2}}, evaluation__seeds=[1, 2])
    tiny.run()
    return tiny


@pytest.fixture
def again(done: TinyRun, tmp_path: Path) -> TinyRun:
    """The same run, to be changed and run again."""
    return done.copy(tmp_path / "run")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def redone(run_dir: Path, before: dict[str, str]) -> set[str]:
    after = steps_finished(run_dir)
    return {name for name in after if after[name] != before.get(name)}


def columns(path: Path) -> list[tuple[str, str]]:
    return [(field.name, str(field.type)) for field in pq.read_schema(path)]


def test_run_directory_holds_exactly_the_contract(done: TinyRun) -> None:
    predictions = {
        f"evaluation/predictions/{model}.test.{seed}.{ending}"
        for model in ("teacher", "student", "kd", "srd")
        for seed in (1, 2)
        for ending in ("jsonl", "scores.json")
    }
    stages = {f"stages/{stage}/{name}" for stage in range(3) for name in ("metrics.json", "validation.jsonl")}
    stages |= {f"stages/{stage}/model/{name}" for stage in range(3) for name in MODEL_FILES}
    baseline = {f"baselines/kd/stages/0/{name}" for name in ("metrics.json", "validation.jsonl")}
    baseline |= {f"baselines/kd/stages/0/model/{name}" for name in MODEL_FILES}
    student = {*MODEL_FILES, "README.md", "chat_template.jinja"}
    baseline |= {f"baselines/kd/student/{name}" for name in student}
    (cache,) = (done.run_dir / "cache").iterdir()
    cached = {path.name for path in cache.iterdir()}
    expected = {
        ".lock", ".bad_rows.json", ".cards.json", "manifest.json", ".manifest.json", "metrics.jsonl",
        "logs/kd.jsonl", "logs/srd.jsonl", "recipe.yaml", "report/index.html",
        *(f"examples/{name}.parquet" for name in ("train", "validation", "test")),
        "reflection/scores.parquet", "reflection/endings.parquet", "curriculum/ranked.parquet",
        *(f"evaluation/{name}" for name in ("metrics.json", "comparisons.json", "details.json", "train_samples.jsonl",
          "predictions/index.json")),
        *(f"student/{name}" for name in student),
    }  # fmt: skip
    found = {name for name in files(done.run_dir) if not name.startswith("cache/")}
    assert found ^ (expected | predictions | stages | baseline) == set()
    assert {"meta.json", "head.safetensors"} <= cached
    assert sorted({name.split("-")[0].split(".")[0] for name in cached}) == ["head", "meta", "plan", "shard"]


def test_counts_and_columns(done: TinyRun) -> None:
    folder = done.run_dir
    sizes = {name: pq.read_table(folder / "examples" / f"{name}.parquet").num_rows for name in
             ("train", "validation", "test")}  # fmt: skip
    assert sizes == {"train": 32, "validation": 4, "test": 4}
    assert columns(folder / "reflection/scores.parquet") == SCORES
    assert [name for name, _ in columns(folder / "curriculum/ranked.parquet")] == [
        "id", "rouge_l", "ce", "rank_rouge", "rank_ce", "rrf", "rank", "kept", "stage",
    ]  # fmt: skip
    ranked = pq.read_table(folder / "curriculum/ranked.parquet").to_pydict()
    assert ranked["rank"] == list(range(1, 33))
    assert ranked["kept"] == [True] * 24 + [False] * 8
    assert ranked["stage"] == [0] * 8 + [1] * 8 + [2] * 8 + [-1] * 8
    assert set(ranked["id"]) == set(pq.read_table(folder / "examples/train.parquet")["id"].to_pylist())
    for stage, size in enumerate((8, 16, 24)):
        metrics = read_json(folder / f"stages/{stage}/metrics.json")
        assert (metrics["examples"], metrics["steps"]) == (size, size // 8)
        assert metrics["temperature"] == 1 + stage / 2
        assert metrics["weight"] == pytest.approx(0.8 + stage / 10)


def test_every_step_of_every_variant_is_logged_once(done: TinyRun) -> None:
    rows = logged(done.run_dir)
    assert {(row["arm"], row["stage"]) for row in rows} == {("kd", 0), ("srd", 0), ("srd", 1), ("srd", 2)}
    losses = [(row["arm"], row["stage"], row["step"]) for row in rows if "loss" in row]
    assert len(losses) == len(set(losses))
    assert [row["step"] for row in rows if row["arm"] == "kd" and "eval_rouge_l" in row] == [4, 8]
    last = max((row for row in rows if row["arm"] == "srd"), key=lambda row: row["passes"])
    assert last["passes"] == pytest.approx((8 + 16 + 24) / 32)


def test_metrics_are_percent_with_mean_and_spread_of_the_seeds(done: TinyRun) -> None:
    metrics = read_json(done.run_dir / "evaluation/metrics.json")
    assert list(metrics) == ["teacher", "student", "kd", "srd"]
    for model in metrics.values():
        rouge = model["test"]["rouge_l"]
        first, second = rouge["seeds"]["1"], rouge["seeds"]["2"]
        assert rouge["mean"] == pytest.approx((first + second) / 2)
        assert rouge["std"] == pytest.approx(abs(first - second) / 2**0.5)
        assert 0 <= rouge["mean"] <= 100
    lines = (done.run_dir / "evaluation/predictions/srd.test.1.jsonl").read_text().splitlines()
    test_ids = pq.read_table(done.run_dir / "examples/test.parquet")["id"].to_pylist()
    assert [json.loads(line)["id"] for line in lines] == test_ids


def test_recipe_is_written_back_with_every_default(done: TinyRun) -> None:
    written = yaml.safe_load((done.run_dir / "recipe.yaml").read_text())
    assert written["training"]["weight_decay"] == 0.01
    assert written["training"]["curriculum"]["stages"] == 3
    assert written["baselines"]["kd"]["epochs"] == 2
    assert written["baselines"]["kd"]["learning_rate"] == 1e-3  # what the main training says holds for baselines too


def test_student_is_a_plain_transformers_model(done: TinyRun) -> None:
    model = AutoModelForCausalLM.from_pretrained(done.run_dir / "student")
    tokenizer = AutoTokenizer.from_pretrained(done.run_dir / "student")
    prompt = tokenizer("Name the whale that lives in the sea.", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > prompt["input_ids"].shape[1]
    start = AutoModelForCausalLM.from_pretrained(done.student)
    changed = [name for name, weight in model.state_dict().items() if not torch.equal(weight, start.state_dict()[name])]
    assert len(changed) == len(model.state_dict())
    assert model.num_parameters() == start.num_parameters()


def test_running_again_keeps_every_step(again: TinyRun) -> None:
    before = steps_finished(again.run_dir)
    log = (again.run_dir / "metrics.jsonl").read_bytes()
    again.run()
    assert steps_finished(again.run_dir) == before
    assert (again.run_dir / "metrics.jsonl").read_bytes() == log
    assert set(before) == {"examples", "teacher", "student", "reflection", "ranking", "cache", "train/kd", "train/srd",
                           "evaluation", "cards"}  # fmt: skip


def test_another_teacher_has_a_cache_of_its_own(again: TinyRun, tmp_path: Path) -> None:
    before, folders = steps_finished(again.run_dir), set((again.run_dir / "cache").iterdir())
    again.set(teacher=str(save_tiny(tmp_path / "other", "llama", seed=9))).advance("cache")
    assert redone(again.run_dir, before) == {"teacher", "cache"}
    assert len(set((again.run_dir / "cache").iterdir()) - folders) == 1


@pytest.mark.slow  # test_done.py: what a template decides
def test_another_template_asks_the_teacher_again(tiny_run: TinyRun) -> None:
    tiny_run.set(evaluation__models=["teacher"], data__train_limit=8, training__curriculum=None).advance()
    path = tiny_run.run_dir / "evaluation/predictions/teacher.test.1.scores.json"
    before = read_json(path)["fingerprint"]
    tiny_run.set(data__template="Q: {instruction} {input}\nA:").advance()
    assert read_json(path)["fingerprint"] != before


def test_lost_file_is_made_again(again: TinyRun) -> None:
    before = steps_finished(again.run_dir)
    old = (again.run_dir / "curriculum/ranked.parquet").read_bytes()
    (again.run_dir / "curriculum/ranked.parquet").unlink()
    again.train()
    assert redone(again.run_dir, before) in ({"ranking"}, set())  # the same second may be noted again
    assert (again.run_dir / "curriculum/ranked.parquet").read_bytes() == old


def test_a_damaged_or_lost_cache_shard_is_built_again(again: TinyRun) -> None:
    (shard,) = (again.run_dir / "cache").glob("*/shard-*.safetensors")
    intact, before = shard.read_bytes(), steps_finished(again.run_dir)
    shard.write_bytes(intact[:-8] + b"\0\0\xc0\x7f\0\0\xc0\x7f")
    again.advance("cache")
    assert shard.read_bytes() == intact
    assert any("damaged" in warning for warning in read_json(again.run_dir / "manifest.json")["warnings"])
    shard.unlink()
    shard.with_suffix(".json").unlink()
    again.advance("cache")
    assert shard.read_bytes() == intact
    assert redone(again.run_dir, before) <= {"cache"}  # the same second may be noted again


def test_moved_run_directory_keeps_its_steps(again: TinyRun, tmp_path: Path) -> None:
    before = steps_finished(again.run_dir)
    again.run_dir = again.run_dir.rename(tmp_path / "elsewhere")
    again.advance()
    assert steps_finished(again.run_dir) == before


def test_relative_names_from_another_folder_are_told_where_they_led(
    again: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not looked for on the hub; whole names, or going back, help."""
    monkeypatch.chdir(again.folder)
    again.set(teacher=again.teacher.name, data__train=again.rows.name).advance("examples")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    told = rf"data.train is '{again.rows.name}', .* from {again.folder}, where the run was begun. Go there, or give"
    with pytest.raises(UserError, match=told):
        again.open()
    with pytest.raises(UserError, match=rf"give teacher.model={again.teacher}$"):
        again.set(data__train=str(again.rows)).open()
    close(again.set(teacher=str(again.teacher)).open())


@pytest.mark.slow  # killed runs are compared with undisturbed ones in the same way
def test_two_runs_give_the_same_bytes(done: TinyRun, tmp_path: Path) -> None:
    run_dir = tmp_path / "second"
    done.advance(run_dir=run_dir)
    for name in ("student/model.safetensors", "baselines/kd/student/model.safetensors", "curriculum/ranked.parquet",
                 "evaluation/metrics.json", "reflection/scores.parquet"):  # fmt: skip
        assert (run_dir / name).read_bytes() == (done.run_dir / name).read_bytes(), name


def test_run_directory_is_for_one_command_at_a_time(again: TinyRun) -> None:
    run = again.open()
    try:
        with pytest.raises(UserError, match="another srd command works in"):
            again.open()
    finally:
        close(run)


def test_teacher_sft_shortened_student_and_warm_start(tiny_run: TinyRun) -> None:
    quick = {"epochs": 1, "batch_size": 8}
    tiny_run.set(data__train_limit=16)
    tiny_run.set(teacher={"model": str(tiny_run.teacher), "sft": quick})
    tiny_run.set(student={"drop_layers": 1, "warm_start": {**quick, "method": "kd"}})
    run = tiny_run.set(training__curriculum={"stages": 1}).train()
    folder = run.folder
    assert {"start", "student", "teacher"} <= {path.name for path in folder.iterdir() if path.is_dir()}
    assert not (folder / "teacher-sft").exists() and not (folder / "warm-start").exists()
    config = read_json(folder / "student/config.json")
    assert config["num_hidden_layers"] == 1
    assert {row["arm"] for row in logged(folder)} == {"teacher_sft", "warm_start", "srd"}
    before = steps_finished(folder)
    tiny_run.train()
    assert steps_finished(folder) == before
    assert run.manifest.steps["student"]["summary"]["dropped_layers"]


def test_shared_cache_serves_a_second_run(tiny_run: TinyRun, tmp_path: Path) -> None:
    tiny_run.set(cache__dir=str(tmp_path / "shared"), training__curriculum=None, data__train_limit=16)
    tiny_run.advance("cache")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").rglob("shard-*")}
    tiny_run.set(seed=0, training__objective="rkl").train(tmp_path / "second")
    assert kept and {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").rglob("shard-*")} == kept
    assert not (tmp_path / "second" / "cache").exists()


def test_live_teacher_gives_the_losses_of_the_cache(done: TinyRun, tmp_path: Path) -> None:
    done.twin().set(cache__enabled=False).advance("train/srd", run_dir=tmp_path / "live")
    assert not (tmp_path / "live/cache").exists()

    def losses(folder: Path) -> list[float]:
        return [row["loss"] for row in logged(folder) if "loss" in row and row["arm"] == "srd"]

    assert losses(tmp_path / "live") == pytest.approx(losses(done.run_dir), abs=1e-4)  # the cache is in float16


def test_training_texts_are_tokenised_once_a_run(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, encoded = Encoder.encode, []

    def spy(encoder: Encoder, examples: Any, *arguments: Any, **named: Any) -> Any:
        encoded.append(len(examples))
        return encode(encoder, examples, *arguments, **named)

    monkeypatch.setattr(Encoder, "encode", spy)
    curriculum = {"reflect_again": True, "stages": 2}
    tiny_run.set(baselines={"kd": {"curriculum": None}}, training__curriculum=curriculum, data__train_limit=16).train()
    assert sorted(encoded) == [4, 16]  # validation and train, for reflection and every training


def test_a_row_that_the_student_cannot_score_is_never_trained_on(again: TinyRun, tmp_path: Path) -> None:
    """Whatever ranks: `srd.rank` asks for less, but a row without a finite cross-entropy has no loss either."""
    scores = pq.read_table(again.run_dir / "reflection" / "scores.parquet")
    odd = pa.array([float("nan"), *scores["ce"].to_pylist()[1:]])
    pq.write_table(scores.set_column(scores.column_names.index("ce"), "ce", odd), tmp_path / "scores.parquet")
    for action in ("error", "drop"):
        run = again.twin().set(data__bad_rows=action).open()
        try:
            with pytest.raises(UserError, match="not finite") if action == "error" else contextlib.nullcontext():
                ranked = ranked_scores(run, Curriculum(score="length"), tmp_path / "scores.parquet")
                assert ranked["id"][:] and scores["id"][0].as_py() not in ranked["id"][:]
        finally:
            close(run)


def test_curate_writes_growing_stages_for_other_trainers(again: TinyRun, tmp_path: Path) -> None:
    run = again.open()
    try:
        paths = curate(run, tmp_path / "curated")
    finally:
        close(run)
    stages = [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
    assert [path.name for path in paths] == ["stage_0.jsonl", "stage_1.jsonl", "stage_2.jsonl"]
    assert [len(stage) for stage in stages] == [8, 16, 24]
    assert [row["rank"] for row in stages[2]] == list(range(1, 25))
    assert [row["id"] for row in stages[1]][:8] == [row["id"] for row in stages[0]]
    train = {row["id"]: row for row in pq.read_table(again.run_dir / "examples/train.parquet").to_pylist()}
    assert all(row["output"] == train[row["id"]]["references"][0] for row in stages[2])


def test_evaluation_on_two_files_of_a_named_task_beside_the_test_split(
    again: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = dataclasses.replace(
        TASKS.get("gsm8k"), decoding=dataclasses.replace(TASKS.get("gsm8k").decoding, max_new_tokens=4)
    )
    monkeypatch.setitem(TASKS._registered, "gsm8k", short)
    rows = [{"question": f"How many apples are {n}?", "answer": f"{n} in all.\n#### {n}"} for n in range(3)]
    easy, hard = write_rows(tmp_path / "easy.jsonl", rows[:2]), write_rows(tmp_path / "hard.jsonl", rows[2:])
    before = steps_finished(again.run_dir)
    tasks = [{"name": "gsm8k", "path": str(easy)}, {"name": "gsm8k", "path": str(hard), "label": "hard"}]
    again.set(evaluation__tasks=tasks).advance()
    assert redone(again.run_dir, before) == {"evaluation", "cards"}
    metrics = read_json(again.run_dir / "evaluation/metrics.json")
    assert list(metrics["srd"]) == ["test", "gsm8k", "hard"]
    assert set(metrics["srd"]["gsm8k"]) == {"accuracy"}
    details = read_json(again.run_dir / "evaluation/details.json")["tasks"]
    assert [details[key]["examples"] for key in ("gsm8k", "hard")] == [2, 1]
    again.set(evaluation__tasks=[]).advance()
    left = {path.name.split(".")[1] for path in (again.run_dir / "evaluation/predictions").glob("*.*.*")}
    assert left == {"test"}


def test_one_reading_of_rouge_for_a_whole_run(done: TinyRun, tiny_run: TinyRun, tmp_path: Path) -> None:
    """A test set in another script decides for every step; a run in Latin script has the step keys it always had."""
    test = write_rows(tmp_path / "test.jsonl", [{"instruction": "Кто это?", "output": "Это большой кит."}] * 2)
    run = tiny_run.set(data__test=str(test)).advance("examples")
    config = run.recipe.training
    assert run.words == run.validation(config).words == "unicode"
    assert benchmarks(run)[0].task.reading(run.split("train")) == {"rouge_words": "unicode"}
    assert [step.inputs(run)[-1] for step in (Reflection(), Training("srd"), Evaluation())] == ["unicode"] * 3
    assert [message.count("counts words by script") for message in run.warnings] == [1]
    model = AutoModelForCausalLM.from_pretrained(tiny_run.student)
    kept = reflect_on(run, model.eval(), tmp_path / "batches")
    assert len(kept) == len(run.split("train"))
    latin = done.open()
    assert (latin.words, latin.reading(), latin.reading(config)) == ("rouge-score", [], [])
    close(latin)


QUICK = {"epochs": 1, "batch_size": 8, "select_by": "loss"}
CONFIGURATION = """
from transformers import LlamaConfig

class OwnConfig(LlamaConfig):
    model_type = "own"
"""
MODEL = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_models_that_bring_code_of_their_own(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """With leave a run gets to its end: the sizes, the models that it makes, and their cards; without, nothing runs."""
    modules = tiny_run.folder / "modules"
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(modules))
    monkeypatch.syspath_prepend(modules)
    for folder in (tiny_run.teacher, tiny_run.student):
        (folder / "configuration_own.py").write_text(CONFIGURATION)
        (folder / "modeling_own.py").write_text(MODEL)
        own = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
        config = read_json(folder / "config.json")
        write_json(folder / "config.json", {**config, "model_type": "own", "auto_map": own})
    tiny_run.set(
        training__curriculum=None, teacher__sft=QUICK, student__warm_start=QUICK, teacher__trust_remote_code=True
    )
    bench = read_benchmarks([f"instruction={tiny_run.rows}"], seeds="10", limit=2, max_new_tokens=2)
    with pytest.raises(UserError, match=r"\(--trust-remote-code where there is no recipe\)"):
        evaluate_models([str(tiny_run.student)], bench, tiny_run.folder / "answers")
    with pytest.raises(UserError, match=r"\(--trust-remote-code where there is no recipe\)"):
        _ = chat_models(str(tiny_run.student))[0][0].model
    with pytest.raises(UserError, match=r"student' cannot be read: .* set trust_remote_code: true for this model"):
        tiny_run.run()
    assert "modeling_own" not in str(list(modules.rglob("*.py")))
    tiny_run.set(student__trust_remote_code=True)
    found = load_config(str(tiny_run.student), trust_remote_code=True)
    counted = count_parameters(found)["total"]
    assert type(found) not in MODEL_FOR_CAUSAL_LM_MAPPING  # or other code could never be taken for the weights
    run = tiny_run.run()
    assert run.manifest.steps["student"]["summary"]["parameters"] == counted
    assert (run.folder / "student" / "modeling_own.py").is_file()
    (student,), _ = chat_models(str(run.folder))
    assert type(student.model).__name__ == "OwnForCausalLM"
    teacher = chat_models(str(run.folder), compare=True)[0][0]
    assert type(teacher.model).__name__ == "OwnForCausalLM"
    close(run)
    exported = Exported(run.folder, Settings())
    assert type(exported.model).__name__ == "OwnForCausalLM"
    exported.close()
    alone = str(run.folder / "student")  # has no recipe beside it
    with pytest.raises(UserError, match=r"goes by its recipe\. Leave it out"):
        chat_models(str(run.folder), trust_remote_code=True)
    assert evaluate_models([alone], bench, tiny_run.folder / "answers", trust_remote_code=True)["student"]
    assert type(chat_models(alone, trust_remote_code=True)[0][0].model).__name__ == "OwnForCausalLM"


def test_adapters_need_no_disk_for_all_weights(tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 600_000, 600_000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    tiny_run.set(training__curriculum=None, training__method="sft", cache__enabled=False)
    with pytest.raises(RunError, match=r"checkpoints while training 1\.\d MB"):
        tiny_run.train(tiny_run.folder / "whole")
    tiny_run.set(training__lora={"r": 2})
    assert "finished" in tiny_run.train().manifest.steps["train/sft"]


def test_a_ranking_tells_what_is_kept_only_where_that_is_trained(tiny_run: TinyRun) -> None:
    kept, fresh = (
        Ranking().told(tiny_run.set(training__curriculum={"order": order}).open(tiny_run.folder / order), summary)
        for order, summary in [(order, {"kept": 24, "dropped": 8}) for order in ("easy_to_hard", "fresh")]
    )
    assert kept == "24 examples kept, the hardest 8 dropped"
    assert fresh == "32 examples ranked; every pass draws anew from all"
