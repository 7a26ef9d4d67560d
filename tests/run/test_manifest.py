"""What a run directory knows of its files: whose they are, and whether they are as they were written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from srd.base.errors import UserError
from srd.base.files import digest_of, discard, known_digests
from srd.base.ours import strangers
from srd.run.manifest import Manifest, SharedSteps


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def made(folder: Path, step: str = "training", key: str = "abc", place: str = "student") -> Manifest:
    """A manifest of one finished step that wrote two files."""
    manifest = Manifest(folder)
    manifest.make_room(step, [folder / place])
    manifest.begin(step, key, [folder / place])
    write(folder / place / "weights", f"weights of {step} {key}")
    write(folder / place / "config", "config")
    manifest.finish(step, {"examples": 3}, [folder / place], [], [])
    return manifest


def test_a_step_is_done_while_its_files_are_what_it_wrote(tmp_path: Path) -> None:
    made(tmp_path)
    again = Manifest(tmp_path)
    assert again.finished("training", "abc") and not again.finished("training", "other")
    assert again.damaged("training") == []
    assert again.steps["training"]["summary"] == {"examples": 3}


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "a byte flipped": lambda path: path.write_bytes(b"W" + path.read_bytes()[1:]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    made(tmp_path)
    path = tmp_path / "student" / "weights"
    state = path.stat()
    DAMAGES[damage](path)
    if path.is_file():
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert Manifest(tmp_path).damaged("training") == [path]


def test_a_copied_or_touched_directory_is_read_once_and_kept(tmp_path: Path) -> None:
    made(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    for file in (tmp_path / "copy" / "student").iterdir():
        os.utime(file, ns=(1, 1))
    manifest = Manifest(tmp_path / "copy")
    assert manifest.damaged("training") == []
    manifest.save()
    known_digests.clear()
    again = Manifest(tmp_path / "copy")
    known_digests.clear()
    assert again.damaged("training") == [] and not known_digests, "nothing was hashed: the times are known now"


def test_the_manifest_keeps_the_digests_of_its_own_inputs_alone(tmp_path: Path) -> None:
    """A process that makes many runs, as a sweep does, has hashed the files of all of them."""
    model, other = write(tmp_path / "model" / "weights", "large"), write(tmp_path / "other" / "weights", "large too")
    digest_of(model), digest_of(other)
    Manifest(tmp_path / "run", [tmp_path / "model"]).save()
    assert list(json.loads((tmp_path / "run" / "manifest.json").read_text())["digests"]) == [str(model)]
    known_digests.clear()
    Manifest(tmp_path / "run")
    assert list(known_digests) == [str(model)]


def test_an_interrupted_step_keeps_its_time_and_another_starts_anew(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    manifest.begin("training", "abc", [])
    manifest.spent("training", 2.5)
    manifest.save()
    again = Manifest(tmp_path)
    assert again.interrupted("training", "abc") and not again.interrupted("training", "other")
    again.begin("training", "abc", [])
    again.spent("training", 1.5)
    assert again.steps["training"]["seconds"] == 4.0
    again.begin("training", "changed", [])
    assert again.steps["training"] == {"fingerprint": "changed", "seconds": 0.0, "places": []}
    again.finish("training", {}, [], [], [])
    assert json.loads((tmp_path / "manifest.json").read_text())["steps"] == again.steps


@pytest.mark.parametrize("content", [b"", b"\0\xff", b"[]", b"{}", b'{"steps": {}}', None])
def test_a_damaged_manifest_has_a_copy(tmp_path: Path, content: bytes | None) -> None:
    steps = made(tmp_path).steps
    path = tmp_path / "manifest.json"
    path.unlink() if content is None else path.write_bytes(content)
    assert Manifest(tmp_path).steps == steps
    (tmp_path / ".manifest.json").write_bytes(b"x")
    path.write_bytes(content or b"y")
    with pytest.raises(UserError, match=r"manifest\.json is damaged, .*none is touched"):
        Manifest(tmp_path)
    assert (tmp_path / "student" / "weights").exists()


def test_two_steps_never_share_a_place(tmp_path: Path) -> None:
    """The files of the first go aside when the second takes its place, and come back when it is wanted again."""
    place = tmp_path / "student"
    made(tmp_path, "train/srd")
    manifest = made(tmp_path, "train/kd")
    assert (place / "weights").read_text() == "weights of train/kd abc"
    assert manifest.damaged("train/srd") == [] == manifest.damaged("train/kd")
    manifest = Manifest(tmp_path)
    manifest.bring("train/srd", [place])
    assert (place / "weights").read_text() == "weights of train/srd abc"
    assert manifest.damaged("train/srd") == [] == manifest.damaged("train/kd")
    assert (tmp_path / "displaced" / "train-kd" / "student" / "weights").exists()


def test_a_step_that_has_come_to_write_more_keeps_what_it_wrote(tmp_path: Path) -> None:
    """Where it is, or where another step has put it aside; nothing gets another file's name."""
    first, log, new, work = (tmp_path / name for name in ("a/scores", "logs/fold", "a/more", "a/work"))
    manifest = Manifest(tmp_path)
    manifest.begin("reflection", "abc", [first, log, work])
    write(first, "scores"), write(log, "log"), write(work / "batch", "unfinished")
    manifest.finish("reflection", {}, [first, log], [], [work])
    manifest.make_room("train/kd", [log])
    for _ in range(2):
        manifest.bring("reflection", [first, new, log, work])
        assert manifest.damaged("reflection") == [] and not new.exists() and (work / "batch").exists()
        assert (first.read_text(), log.read_text()) == ("scores", "log")
        assert manifest.places("reflection") == [first, new, log, work]


def test_a_move_that_was_killed_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "train/srd")
    manifest = Manifest(tmp_path)

    def killed() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(manifest, "_finish_moves", killed)
    with pytest.raises(KeyboardInterrupt):
        manifest.make_room("train/kd", [tmp_path / "student"])
    assert (tmp_path / "student").exists()
    again = Manifest(tmp_path)
    assert not (tmp_path / "student").exists() and again.damaged("train/srd") == []


def test_what_is_not_ours_is_not_touched(tmp_path: Path) -> None:
    write(tmp_path / "student" / "mine", "mine")
    with pytest.raises(UserError, match=r"student was not written by this run, but it lies where .* train/kd writes"):
        Manifest(tmp_path).make_room("train/kd", [tmp_path / "student"])
    shutil.rmtree(tmp_path / "student")
    manifest = made(tmp_path)
    notes = write(tmp_path / "student" / "notes.txt", "mine")
    with pytest.raises(UserError, match=r"notes\.txt was not written by this run, but training is to be made again"):
        manifest.clear("training", [tmp_path / "student"])
    assert notes.read_text() == "mine" and (tmp_path / "student" / "weights").exists()
    notes.unlink()
    manifest.clear("training", [tmp_path / "student"])
    assert not (tmp_path / "student").exists()


def test_a_folder_in_the_place_of_a_file_and_a_link_are_not_removed(tmp_path: Path) -> None:
    manifest = made(tmp_path)
    weights = tmp_path / "student" / "weights"
    weights.unlink()
    write(weights / "mine", "mine")
    with pytest.raises(UserError, match="was not written by this run"):
        manifest.clear("training", manifest.damaged("training"))
    assert (weights / "mine").exists()
    shutil.move(tmp_path / "student", tmp_path / "elsewhere")
    (tmp_path / "student").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="was not written by this run"):
        manifest.clear("training", [tmp_path / "student"])
    assert (tmp_path / "student").is_symlink() and (tmp_path / "elsewhere").is_dir()


STRANGE = {
    "a folder in the place of weights": "stages/0/checkpoint-2/model.safetensors/mine",
    "a folder in the place of a state": "stages/0/checkpoint-2/trainer_state.json/mine",
    "a folder in the place of a note": "stages/0/metrics.json/model/config.json",
    "a folder that looks like a model, in the place of weights": "stages/0/model/model.safetensors/config.json",
    "a file in a checkpoint": "stages/0/checkpoint-2/notes.txt",
    "a file in a stage": "stages/0/mine.json",
    "a folder in a stage": "stages/0/old/model.safetensors",
    "a folder of the name of a batch": "batches/batch-0000001.json/mine",
    "a folder in the place of scores": "scores.parquet/part-0.parquet",
    "a file in the place of a folder": "stages/0/checkpoint-2/global_step2",
    "a file in the place of the student": "student",
    "a link to a folder": "stages/0/model",
    "a link to a file": "batches/batch-0000001.json",
}


@pytest.mark.parametrize("again", ["same", "other"], ids=["continued", "changed"])
@pytest.mark.parametrize("name", STRANGE.values(), ids=STRANGE)
def test_what_is_not_ours_in_unfinished_work_is_not_touched(tmp_path: Path, name: str, again: str) -> None:
    """A step that was killed has no list of its files: they are known by their names."""
    folder, places = (
        tmp_path / "run",
        [tmp_path / "run" / place for place in ("stages", "batches", "scores.parquet", "student")],
    )
    Manifest(folder).begin("training", "same", places)
    for ours in ("stages/0/checkpoint-2/optimizer.pt", "stages/1/rollouts/0.parts/batch-0000000.json",
                 "stages/0/.partial-model-host-1-ab/words.of_mine", "batches/batch-0000000.json"):  # fmt: skip
        write(folder / ours, "ours")
    mine = folder / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    if name in (STRANGE["a link to a folder"], STRANGE["a link to a file"]):
        mine.symlink_to(write(tmp_path / "elsewhere" / "mine", "mine").parent)
    else:
        write(mine, "mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "manifest" not in path.name}
    manifest = Manifest(folder)

    def go_on() -> None:
        if not manifest.interrupted("training", again):
            manifest.clear("training", manifest.places("training"))
        manifest.make_room("training", places)

    with pytest.raises(UserError, match=r"was not written by this run, but .*move it away") as refused:
        go_on()
    assert all(path.read_bytes() == content for path, content in before.items())
    shutil.move(str(refused.value).partition(" was not")[0], tmp_path / "moved away")
    go_on()
    manifest.clear("training", places)
    assert not any(place.exists() for place in places)


OURS = (
    "checkpoint-2/global_step2/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "checkpoint-2/latest",
    "checkpoint-2/zero_to_fp32.py", "checkpoint-2/pytorch_model_fsdp_0/__0_0.distcp",
    "checkpoint-2/optimizer_0/.metadata", "checkpoint-2/pytorch_model_fsdp.bin", "checkpoint-2/optimizer.bin",
    "checkpoint-2/rng_state_1.pth", "checkpoint-2/model-00001-of-00002.safetensors", "checkpoint-2/merges.txt",
    "checkpoint-2/model.safetensors.index.json", "checkpoint-2/sentencepiece.bpe.model", "model/modeling_mine.py",
    "model/additional_chat_templates/tools.jinja", "model/tokenizer.model", "model/vocab.txt", "model/qwen.tiktoken",
    "runs/Nov26_17-03-49_host/events.out.tfevents.1.host.2.0", "rollouts/.0.parquet.seal", "rollouts/0.parquet",
    "runs/Nov26_17-03-49_host/1764.5/events.out.tfevents.1", "batches/fold_0/batch-0000001.json", "optimizer.pt",
    "rollouts/1.work/0123456789abcdef0123456789abcdef/shard-0123456789abcdef0123456789abcdef.safetensors",
)  # fmt: skip


def test_what_the_libraries_write_into_unfinished_work_is_ours(tmp_path: Path) -> None:
    for name in OURS:
        write(tmp_path / "0" / name, "ours")
    assert list(strangers(tmp_path / "0")) == []
    discard(tmp_path / "0")
    assert not (tmp_path / "0").exists()


def test_what_comes_to_the_place_of_unfinished_work_later_is_the_users(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    scratch = tmp_path / "warm-start"
    manifest.begin("student", "abc", [scratch])
    write(scratch / "stages" / "0" / "metrics.json", "ours")
    manifest.finish("student", {}, [], [], [scratch])
    manifest.tidy("student", [scratch])
    assert not scratch.exists()
    mine = write(scratch / "model" / "config.json", "mine")
    manifest.tidy("student", [scratch])
    Manifest(tmp_path).tidy("student", [scratch])
    assert mine.exists()


def test_shared_steps_are_checked_before_they_are_taken(tmp_path: Path) -> None:
    manifest = made(tmp_path / "one")
    shared = SharedSteps(tmp_path / "shared", tmp_path / "one")
    shared.give("training", "abc", manifest.steps["training"], [tmp_path / "one" / "student"])
    other = SharedSteps(tmp_path / "shared", tmp_path / "two")
    assert other.entry("training", "other") is None
    entry = other.entry("training", "abc")
    assert entry is not None and entry["summary"] == {"examples": 3}
    other.take("training", "abc", [tmp_path / "two" / "student"])
    assert (tmp_path / "two" / "student" / "weights").read_text() == "weights of training abc"
    (file,) = (tmp_path / "shared").glob("*/student/weights")
    file.unlink()
    file.write_text("changed")
    assert other.entry("training", "abc") is None and not list((tmp_path / "shared").iterdir())
