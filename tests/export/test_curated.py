"""Curated folders for other trainers: the same tokens, in order, beside nobody else's files."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from datasets import load_dataset

from srd.base.errors import UserError
from srd.base.remedies import collecting
from srd.base.text import visible
from srd.curation.curriculum import Stage
from srd.data.examples import examples_from_rows
from srd.data.settings import SourceConfig
from srd.export import curated as curated_for
from srd.export.curated import TRAINERS, _columns, curate_for, start_model, teacher_model
from srd.export.texts import shown
from srd.export.trainers import litgpt, trl
from srd.integrations.trl import curriculum_dataset
from srd.models.loading.sources import is_gguf
from srd.run.context import Run
from srd.run.curate import curated
from srd.run.flow import advance
from srd.tasks.base import load_source
from tests.runs import TinyRun, close, write_rows

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name it."},
    {"role": "assistant", "content": "whale"},
    {"role": "user", "content": "Why is it blue?"},
    {"role": "assistant", "content": "So."},
]
KINDS: list[dict[str, Any]] = [
    {"messages": TURNS},
    {"messages": TURNS[1:3]},
    {"instruction": "Name the animal.", "input": "in the sea", "output": "whale\n"},
    {"instruction": "Name two.", "output": ["whale", "dolphin"]},
    {"prompt": "Question: How many apples?\nAnswer:", "completion": " 12"},
    {"prompt": "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n", "completion": "Because.<|im_end|>"},
    {"prompt": "A long question. " * 30 + "\n### Response:\n", "completion": "It is cut."},
    {"instruction": "Return all items.", "output": "items in the list " * 30},
]

Given = Callable[[str], tuple[Run, Path]]
pytestmark = pytest.mark.xdist_group("curated")  # one worker makes what most of these look at


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A ranked run on rows of every shape: curating it again takes no model."""
    tiny = TinyRun(tmp_path_factory.mktemp("ranked"), "qwen2")
    write_rows(tiny.rows, [{"id": f"{number}-{kind}", **row} for number in range(3) for kind, row in enumerate(KINDS)])
    for split in ("validation", "test"):
        path = write_rows(tiny.folder / f"{split}.jsonl", [{"instruction": f"For {split}?", "output": "Yes."}])
        tiny.recipe["data"][split] = str(path)
    tiny.set(generation__max_new_tokens=2, data__template="auto")
    tiny.set(
        data__max_length=160, data__max_prompt_length=120, training__epochs=1.5, training__curriculum={"select": 1}
    )
    run = tiny.open()
    advance(run, "ranking")
    close(run)
    return tiny


def curate(tiny: TinyRun, folder: Path, trainer: str, **settings: Any) -> Run:
    run = tiny.twin().set(**settings).open()
    try:
        curate_for(run, folder, trainer)
    finally:
        close(run)
    return run


@pytest.fixture(scope="module")
def given(ranked: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Given:
    """The run, and what a trainer gets of it, made when it is first asked for; read only."""

    @functools.cache
    def get(trainer: str) -> tuple[Run, Path]:
        folder = tmp_path_factory.mktemp(trainer)
        return curate(ranked, folder, trainer), folder

    return get


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tokens(run: Run, path: Path) -> dict[str, Any]:
    """The tokens of a file that srd reads, by id."""
    return {row["id"]: row for row in run.encoder.encode(load_source(SourceConfig(path=str(path)))).to_list()}


@pytest.mark.parametrize("trainer", TRAINERS.names())
def test_what_a_trainer_is_given_is_read_back_as_the_same_tokens(trainer: str, given: Given) -> None:
    run, folder = given(trainer)
    expected = {row["id"]: row for row in run.encoder.encode(run.split("train")).to_list()}
    found = tokens(run, folder / "stage_2.jsonl")
    keys = ("prompt_ids", "response_ids")
    assert {name: [row[key] for key in keys] for name, row in found.items()} == {
        name: [row[key] for key in keys] for name, row in expected.items()
    }
    whole = [row for row in run.split("train").to_list() if row["id"][2:] != "6"]  # its prompt is cut
    again = {row["id"]: row for row in load_source(SourceConfig(path=str(folder / "stage_2.jsonl"))).to_list()}
    assert [again[row["id"]] for row in whole] == whole


@pytest.mark.parametrize("trainer", TRAINERS.names())
def test_the_text_is_exact_and_the_conversation_is_a_list_with_its_answer_last(trainer: str, given: Given) -> None:
    run, folder = given(trainer)
    expected = {row["id"]: row for row in run.encoder.encode(run.split("train")).to_list()}
    for row in read(folder / "stage_2.jsonl"):
        ids = expected[row["id"]]
        text = row["prompt"] + row["completion"] + row["end"]
        assert run.tokenizer(text)["input_ids"][: len(ids["prompt_ids"])] == ids["prompt_ids"]
        if row["id"][2:] != "7":  # a cut text need not be read as the same tokens
            assert run.tokenizer(text)["input_ids"] == ids["prompt_ids"] + ids["response_ids"]
        assert (row["end"] == "") == (ids["response_cut"] or row["completion"].endswith("<|im_end|>"))
        assert row["messages"] is None or row["messages"][-1]["role"] == "assistant"
    assert {row["id"][2:]: row["messages"] for row in read(folder / "stage_2.jsonl")}["0"] == TURNS


def test_all_passes_stand_in_one_file_in_order_and_load_dataset_finds_the_stages(
    ranked: TinyRun, tmp_path: Path
) -> None:
    curate(ranked, tmp_path, "jsonl")
    stages = [read(tmp_path / f"stage_{stage}.jsonl") for stage in range(3)]
    assert [len(stage) for stage in stages] == [8, 16, 24]
    unrolled = [
        (stage, number, row["id"])
        for stage, rows in enumerate(stages)
        for number, part in enumerate([rows, rows[: len(rows) // 2]])  # 1.5 passes
        for row in part
    ]
    assert [(row["stage"], row["pass"], row["id"]) for row in read(tmp_path / "train.jsonl")] == unrolled
    cache = str(tmp_path / "cache")
    for name, rows in {"stage_1": stages[1], None: read(tmp_path / "train.jsonl")}.items():
        loaded = load_dataset(str(tmp_path), name, split="train", cache_dir=cache)
        assert loaded["id"] == [row["id"] for row in rows] and loaded["prompt"] == [row["prompt"] for row in rows]
    summary = json.loads((tmp_path / "stages.json").read_text())["stages"]
    assert [(row["rows"], row["passes"], row["temperature"], row["weight"]) for row in summary] == [
        (8, 1.5, 1.0, 0.8), (16, 1.5, 1.5, 0.9), (24, 1.5, 2.0, 1.0)
    ]  # fmt: skip


def test_no_card_acts_on_a_terminal(ranked: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "teacher_source", "big\x1b[31m\u202e")
    curate(ranked, tmp_path, "jsonl")
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert r"big\x1b[31m\u202e" in text and visible(text) == text


def test_every_pass_of_a_fresh_order_draws_its_own(ranked: TinyRun, tmp_path: Path) -> None:
    curate(ranked, tmp_path, "trl", training__curriculum={"order": "fresh", "stages": 2}, training__epochs=2)
    rows = read(tmp_path / "train.jsonl")
    passes = [[row["id"] for row in rows if (row["stage"], row["pass"]) == (0, number)] for number in range(2)]
    assert passes[0] == [row["id"] for row in read(tmp_path / "stage_0.jsonl")]
    assert len(passes[1]) == len(passes[0]) and passes[1] != passes[0]


def test_trl_gets_the_recipes_own_tokens(ranked: TinyRun, given: Given) -> None:
    run, folder = given("trl")
    expected = {row["id"]: row for row in run.encoder.encode(run.split("train")).to_list()}
    for row in read(folder / "stage_2.jsonl"):
        prompt, response = (expected[row["id"]][key] for key in ("prompt_ids", "response_ids"))
        assert row["input_ids"] == prompt + response
        assert row["completion_mask"] == [0] * len(prompt) + [1] * len(response)
    for name in ("train_sft.py", "train_gkd.py"):
        script = (folder / name).read_text()
        compile(script, name, "exec")
        assert repr(str(ranked.student)) in script
    assert 'train_sampling_strategy="sequential"' in (folder / "train_sft.py").read_text()


def test_a_script_names_a_folder_for_a_model_that_only_srd_knows_by_name(
    ranked: TinyRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`smollm2` and GGUF files are converted folders for transformers; what a name alone leaves out is told."""
    monkeypatch.setattr(curated_for, "resolve_source", lambda source: str(tmp_path) if is_gguf(source) else source)
    monkeypatch.setattr(Run, "teacher_source", "smollm2")
    run = ranked.twin().open()
    close(run)
    made = SimpleNamespace(run=run, stages=[])
    assert f"= {str(ranked.student)!r}, {str(tmp_path)!r}" in dict(trl.contents(cast(Any, made)))["train_gkd.py"]
    monkeypatch.setattr(Run, "start_source", "model.gguf")
    assert start_model(run) == str(tmp_path)
    monkeypatch.undo()
    run.recipe.teacher.adapter = "adapter"
    with collecting() as collected:
        assert teacher_model(run) == str(ranked.teacher)
    run.recipe.teacher.adapter = None
    assert [each.what.split()[0] for each in collected.warnings] == ["teacher.adapter"]


def test_a_stage_that_has_fewer_rows_than_a_step_is_told_with_a_batch_that_serves(
    ranked: TinyRun, tmp_path: Path
) -> None:
    def told(size: int) -> list[str]:
        run = ranked.twin().set(training__batch_size=size).open()
        with collecting() as collected:
            curate_for(run, tmp_path, "trl")
        close(run)
        return [each.remedy for each in collected.warnings if "train_gkd.py would refuse it" in each.what]

    (remedy,) = told(16)
    size = int(re.findall(r"training\.batch_size=(\d+)", remedy)[0])
    assert told(size) == []
    assert len(curriculum_dataset(tmp_path, batch_size=size))


@pytest.mark.parametrize(
    ("objective", "line"),
    [
        ("jsd", "beta=0.1,"), ({"name": "jsd", "lam": 0.3}, "beta=0.7,"), ("rkl", "beta=1.0,"), ("fkl", "beta=0.0,"),
        ("srkl", "beta=1.0,"), ("tvd", "beta=0.0,"),
    ],
)  # fmt: skip
def test_trl_gets_the_divergence_or_is_told_the_nearest(objective: Any, line: str, ranked: TinyRun) -> None:
    run = ranked.twin().set(training__objective=objective).open()
    close(run)
    scripts = dict(trl.contents(cast(Any, SimpleNamespace(run=run, stages=[]))))
    (told,) = [text for text in scripts["train_gkd.py"].splitlines() if "beta=" in text]
    assert told.strip().startswith(line)
    assert ("the nearest that TRL has" in told) == (objective in ("srkl", "tvd"))


def test_axolotl_gets_stretches_of_text_and_a_sequential_configuration(ranked: TinyRun, given: Given) -> None:
    run, folder = given("axolotl")
    expected = {row["id"]: row for row in run.encoder.encode(run.split("train")).to_list()}
    for row in read(folder / "stage_2.jsonl"):
        if row["id"][2:] != "7":
            ids = [run.tokenizer(part["text"], add_special_tokens=False)["input_ids"] for part in row["segments"]]
            assert ids == [expected[row["id"]][key] for key in ("prompt_ids", "response_ids")]
        assert [part["label"] for part in row["segments"]] == [False, True]
    first, last = (yaml.safe_load((folder / f"axolotl_stage_{stage}.yaml").read_text()) for stage in (0, 2))
    assert first["base_model"] == str(ranked.student) and last["base_model"] == "./outputs/stage_1"
    assert first["datasets"] == [{"path": "./stage_0.jsonl", "ds_type": "json", "type": "input_output"}]
    wanted = {"curriculum_sampling": True, "shuffle_merged_datasets": False, "sample_packing": False}
    assert {name: first[name] for name in wanted} == wanted


def test_llama_factory_gets_whole_texts_and_a_list_of_data_sets(given: Given) -> None:
    run, folder = given("llamafactory")
    info = json.loads((folder / "dataset_info.json").read_text())
    assert info["srd_stage_0"] == {"file_name": "stage_0.jsonl", "columns": {"prompt": "source", "response": "target"}}
    assert "srd_chat_stage_0" not in info  # not all rows are conversations
    settings = yaml.safe_load((folder / "llamafactory_stage_1.yaml").read_text())
    assert settings["dataset"] in info and settings["template"] == "empty" and settings["disable_shuffling"] is True
    assert settings["model_name_or_path"] == "saves/stage_0"
    expected = {row["id"]: row for row in run.encoder.encode(run.split("train")).to_list()}
    for row in read(folder / "stage_2.jsonl"):
        if row["id"][2:] != "7":
            ids = [run.tokenizer(row[name], add_special_tokens=False)["input_ids"] for name in ("source", "target")]
            assert ids == [expected[row["id"]][key] for key in ("prompt_ids", "response_ids")]


def test_adapters_go_on_from_stage_to_stage_upon_the_model_that_they_are_of(ranked: TinyRun, tmp_path: Path) -> None:
    names = {
        "axolotl": ("base_model", "lora_model_dir", "./outputs/stage_0"),
        "llamafactory": ("model_name_or_path", "adapter_name_or_path", "saves/stage_0"),
    }
    for trainer, (base, adapter, before) in names.items():
        lora = {"r": 3, "targets": ["q_proj", "v_proj"]}
        run = curate(ranked, tmp_path / trainer, trainer, training__lora=lora)
        assert not any("is told to train all weights" in said for said in run.warnings)
        first, then = (yaml.safe_load((tmp_path / trainer / f"{trainer}_stage_{n}.yaml").read_text()) for n in (0, 1))
        assert first[base] == then[base] == str(ranked.student) and adapter not in first
        alpha = next(name for name in then if "alpha" in name)
        assert (then[adapter], 3 in then.values(), then[alpha]) == (before, True, 64)
        assert then.get("lora_target") == "q_proj,v_proj" or then.get("lora_target_modules") == ["q_proj", "v_proj"]
    for trainer, told in (("trl", True), ("litgpt", True), ("jsonl", False)):
        run = curate(ranked, tmp_path / trainer, trainer, training__lora={"r": 3})
        words = f"{TRAINERS.get(trainer).title} is told to train all weights"
        assert any(words in said for said in run.warnings) == told


def test_what_learns_the_last_answer_alone_is_said_to(ranked: TinyRun, tmp_path: Path) -> None:
    for trainer in TRAINERS.names():
        run = curate(ranked, tmp_path / trainer, trainer, data__train_on="all")
        words = f"{TRAINERS.get(trainer).title} is told of the last answer of each conversation alone"
        assert any(words in said for said in run.warnings) == (trainer not in ("axolotl", "trl"))


@pytest.mark.parametrize("micro", [None, 4])
def test_a_step_has_as_many_examples_as_in_the_recipe(micro: int | None, ranked: TinyRun, tmp_path: Path) -> None:
    for trainer, name, size, steps in (
        ("axolotl", "axolotl_stage_0.yaml", "micro_batch_size", "gradient_accumulation_steps"),
        ("llamafactory", "llamafactory_stage_0.yaml", "per_device_train_batch_size", "gradient_accumulation_steps"),
    ):
        run = curate(ranked, tmp_path / trainer, trainer, training__micro_batch_size=micro)
        told = yaml.safe_load((tmp_path / trainer / name).read_text())
        batch = run.recipe.training.batch_size
        assert (told[size], told[size] * told[steps]) == (micro or batch, batch)


def test_litgpt_gets_a_folder_for_every_stage_and_is_said_to_shuffle(ranked: TinyRun, tmp_path: Path) -> None:
    run = curate(ranked, tmp_path, "litgpt")
    rows, stage = json.loads((tmp_path / "litgpt/stage_1/train.json").read_text()), read(tmp_path / "stage_1.jsonl")
    assert rows == [{"instruction": row["prompt"], "output": row["completion"]} for row in stage]
    assert json.loads((tmp_path / "litgpt/stage_1/val.json").read_text())
    assert any("of the curriculum only the stages are kept" in told for told in run.warnings)
    curate(ranked, tmp_path, "jsonl")  # what was litgpt's alone is gone, its folders with it
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == [
        "README.md", "stage_0.jsonl", "stage_1.jsonl", "stage_2.jsonl", "stages.json", "train.jsonl"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["README.md", "train.jsonl", "litgpt"])
def test_a_users_file_is_not_written_over(name: str, ranked: TinyRun, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} (was not written by srd curate|is in the way)"):
        curate(ranked, tmp_path, "litgpt")
    assert (tmp_path / name).read_text() == "mine"


def test_all_answers_of_a_conversation_are_marked(ranked: TinyRun) -> None:
    run = ranked.twin().set(data__train_on="all").open()
    close(run)
    (row,) = shown(run.encoder, examples_from_rows([{"id": "a", "messages": TURNS}], "rows").to_list())
    text = row.begin + row.prompt + row.completion + row.end
    assert "".join(part for part, _ in row.segments()) == text
    assert [part for part, learnt in row.segments() if learnt] == ["whale<|im_end|>", "So.<|im_end|>"]
    learnt = [token for token, own in zip(row.input_ids, row.learnt, strict=True) if own]
    assert run.tokenizer.decode(learnt) == "whale<|im_end|>So.<|im_end|>"


def test_a_bos_is_part_of_the_text_for_those_who_add_none(tmp_path: Path) -> None:
    run = TinyRun(tmp_path, "llama").open()
    close(run)
    (row,) = shown(run.encoder, examples_from_rows([{"instruction": "Why?", "output": "So."}], "rows").to_list())
    whole = "".join(part for part, _ in row.segments())
    assert whole.startswith("<s>") and whole.endswith("So.</s>") and not row.prompt.startswith("<s>")
    assert run.tokenizer(whole, add_special_tokens=False)["input_ids"] == row.input_ids
    with collecting() as told:
        litgpt.tell_of_beginning(row)
        litgpt.tell_of_beginning(replace(row, begin=""))
    (warning,) = told.warnings
    assert "begin with <s>, which litgpt reads only if" in warning.what


def test_a_ready_made_prompt_in_a_frame_is_not_framed_twice(ranked: TinyRun, tmp_path: Path) -> None:
    run = ranked.twin().set(data__template="alpaca").open()
    close(run)
    examples = examples_from_rows([{"id": "a", **KINDS[4]}], "rows")
    (example,) = examples.to_list()
    (text,) = shown(run.encoder, [example])
    row = curated(example, {"rank": 1, "rouge_l": 0.5, "ce": 2.0}, Stage(0, [], 1.0, 1.0))
    path = write_rows(tmp_path / "a.jsonl", [row | _columns(run, example, text, TRAINERS.get("jsonl"))])
    (before,) = run.encoder.encode(examples).to_list()
    assert tokens(run, path)["a"]["prompt_ids"] == before["prompt_ids"]


def test_a_decoder_trainer_is_refused_an_encoder_decoder(tmp_path: Path) -> None:
    tiny = TinyRun(tmp_path, "t5")
    with pytest.raises(UserError, match=r"encoder-decoder\. Use --for jsonl"):
        curate(tiny, tmp_path / "out", "trl")
