"""The teacher cache: exact, resumable, checked, never another teacher's, and small."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from srd.base.errors import RunError, UserError
from srd.data.batching import EncodedExamples
from srd.models.head import head_weights, response_hidden
from srd.training.batches import make_collator
from srd.training.cache import building as module
from srd.training.cache import teacher_cache
from srd.training.cache.building import build_cache
from srd.training.cache.teacher_cache import TeacherCache, cache_folder, example_key, open_verified
from srd.training.loss.response_loss import head_loss
from srd.training.loss.settings import LossSettings
from srd.training.teachers.cache import CachedTeacher
from srd.training.teachers.live import LiveTeacher
from tests.faults import cache_killed_after
from tests.runs import in_turn
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer
from tests.training.test_trainer import encoded


class Built(NamedTuple):
    """A cache with what it was built from."""

    cache: TeacherCache
    teacher: Any
    examples: EncodedExamples
    build: Callable[..., TeacherCache]
    loaded: list[int]


def build(folder: Path, family: str = "llama", count: int = 21, seed: int = 2, **settings: Any) -> Built:
    """Build a cache of random examples, two to a batch and two batches to a shard."""
    teacher, tokenizer = tiny_model(family, seed=seed), tiny_tokenizer(family)
    examples, collator = encoded(count, tokenizer), make_collator(teacher, tokenizer)
    loaded: list[int] = []

    def load() -> Any:
        loaded.append(1)
        return teacher

    def again(wanted: EncodedExamples = examples, **changes: Any) -> TeacherCache:
        return build_cache(
            folder, load, wanted, collator, **{"batch_size": 2, "dtype": "float32", **settings, **changes}
        )

    return Built(again(), teacher, examples, again, loaded)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_BATCHES", 2)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.safetensors"))


def everything(cache: TeacherCache, examples: EncodedExamples) -> torch.Tensor:
    return torch.cat([cache.hidden(row["prompt_ids"], row["response_ids"]) for row in examples])


@pytest.mark.parametrize("objective", ["fkl", "srkl"])
@pytest.mark.parametrize("family", in_turn(FAMILIES, "llama", "gemma2", "mt5"))
def test_the_loss_from_the_cache_is_the_live_one(family: str, objective: str, tmp_path: Path) -> None:
    """Hidden states and head together give the live teacher's distribution, whatever the family does at its head."""
    built = build(tmp_path, family, 8)
    student, tokenizer = tiny_model(family, seed=1), tiny_tokenizer(family)
    collator = make_collator(student, tokenizer)
    plain = list(built.examples)
    live = collator(plain)
    cached = collator(list(EncodedExamples(_columns(plain), built.cache)))
    torch.testing.assert_close(
        cached["teacher_hidden"], response_hidden(built.teacher, live).detach(), rtol=1e-5, atol=1e-5
    )
    losses = []
    for teacher, batch in ((LiveTeacher(built.teacher), live), (CachedTeacher(built.cache.head()), cached)):
        hidden = response_hidden(student, batch).detach().requires_grad_()
        loss, _ = head_loss(
            hidden, head_weights(student), batch["targets"], LossSettings(objective, {}, 1.5, 0.7), torch.tensor(50),
            teacher_hidden=teacher.hidden(batch), teacher_head=teacher.head,
        )  # fmt: skip
        loss.backward()
        losses.append((loss.detach(), hidden.grad))
    torch.testing.assert_close(losses[1][0], losses[0][0], rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(losses[1][1], losses[0][1], rtol=1e-4, atol=1e-7)


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in ("id", "prompt_ids", "response_ids")}


@pytest.mark.parametrize("family", ["t5", "gemma2", "opt"])
def test_the_kept_head_gives_the_teachers_own_logits(family: str, tmp_path: Path) -> None:
    built = build(tmp_path, family, 3)
    batch = make_collator(built.teacher, tiny_tokenizer(family))(list(built.examples)[:1])
    inputs = {
        name: batch[name]
        for name in ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
        if name in batch
    }
    with torch.no_grad():
        logits = built.teacher(**inputs).logits.flatten(0, 1)[batch["index"]]
    row = built.examples[0]
    ours = built.cache.head().logits(built.cache.hidden(row["prompt_ids"], row["response_ids"]))
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)


def test_a_built_cache_needs_no_teacher(tmp_path: Path) -> None:
    built = build(tmp_path)
    assert len(built.loaded) == 1 and len(shards(tmp_path)) == 6
    cache = built.build()
    assert len(built.loaded) == 1
    assert cache.holds(built.examples) and cache.verify() == []
    assert torch.equal(everything(cache, built.examples), everything(built.cache, built.examples))


def test_a_killed_build_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = build(tmp_path / "whole")
    with cache_killed_after(3):
        build(tmp_path / "killed")
    assert len(shards(tmp_path / "killed")) == 3
    times = {path: path.stat().st_mtime_ns for path in shards(tmp_path / "killed")}
    done: list[tuple[int, int]] = []
    resumed = build(tmp_path / "killed", progress=lambda *counts: done.append(counts))
    assert done[-1] == (9, 9)  # 21 examples less three shards of four
    assert all(path.stat().st_mtime_ns == times[path] for path in times)
    assert [path.name for path in shards(tmp_path / "killed")] == [path.name for path in shards(tmp_path / "whole")]
    for mine, theirs in zip(shards(tmp_path / "killed"), shards(tmp_path / "whole"), strict=True):
        assert mine.read_bytes() == theirs.read_bytes()
    assert resumed.cache.holds(resumed.examples)
    assert not list((tmp_path / "killed").glob(".partial-*"))
    assert torch.equal(everything(resumed.cache, resumed.examples), everything(whole.cache, whole.examples))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(bytes(content))


def flip_in_index(path: Path) -> None:
    index = path.with_suffix(".json")
    content = json.loads(index.read_text())
    content["lengths"][0] += 1
    index.write_text(json.dumps(content))


def tear_index(path: Path) -> None:
    index = path.with_suffix(".json")
    index.write_text(index.read_text()[:20])


def lose(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [truncate, flip, flip_in_index, tear_index, lose])
def test_a_damaged_shard_is_named_and_built_again(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built = build(tmp_path)
    before = everything(built.cache, built.examples).clone()
    victim = shards(tmp_path)[2]
    original = victim.read_bytes()
    built.cache._open.clear()
    damage(victim)
    done: list[tuple[int, int]] = []
    cache = built.build(progress=lambda *counts: done.append(counts))
    assert str(victim) in caplog.text and "damaged and will be built again" in caplog.text
    assert done[-1][1] in (1, 4)  # this shard's examples alone
    assert victim.read_bytes() == original
    assert cache.verify() == []
    assert torch.equal(everything(cache, built.examples), before)


@pytest.mark.parametrize("name", ["head.safetensors", "meta.json"])
@pytest.mark.parametrize("damage", [truncate, flip])
def test_a_damaged_head_is_built_again(
    damage: Callable[[Path], None], name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built = build(tmp_path)
    before = built.cache.head().weight.clone()
    damage(tmp_path / name)
    cache = built.build()
    assert "head.safetensors is damaged" in caplog.text and len(built.loaded) == 2
    assert torch.equal(cache.head().weight, before) and cache.verify() == []


def test_the_shard_of_other_examples_and_the_head_of_another_teacher_are_built_again(tmp_path: Path) -> None:
    built, other = build(tmp_path / "own"), build(tmp_path / "other", seed=5)
    before, head = everything(built.cache, built.examples).clone(), built.cache.head().weight.clone()
    built.cache._open.clear()
    first, second = shards(tmp_path / "own")[:2]
    for ending in (".safetensors", ".json"):
        shutil.copy(first.with_suffix(ending), second.with_suffix(ending))
    for name in ("head.safetensors", "meta.json"):
        shutil.copy(tmp_path / "other" / name, tmp_path / "own" / name)
    cache = built.build()
    assert torch.equal(everything(cache, built.examples), before) and torch.equal(cache.head().weight, head)
    assert not torch.equal(other.cache.head().weight, head)


def test_a_torn_plan_is_made_again(tmp_path: Path) -> None:
    built = build(tmp_path)
    plan = next(tmp_path.glob("plan-*.json"))
    plan.write_text("[[")
    assert built.build().holds(built.examples)


def test_verify_removes_what_is_damaged(tmp_path: Path) -> None:
    built = build(tmp_path)
    victim = shards(tmp_path)[0]
    flip(victim)
    assert TeacherCache(tmp_path).verify() == [victim.stem]
    assert not victim.exists() and not victim.with_suffix(".json").exists()
    cache = open_verified(tmp_path)
    assert not cache.holds(built.examples)
    missing = [
        row for row in built.examples if example_key(row["prompt_ids"], row["response_ids"]) not in cache
    ]  # fmt: skip
    with pytest.raises(KeyError):
        cache.hidden(missing[0]["prompt_ids"], missing[0]["response_ids"])


def test_only_what_is_missing_is_built(tmp_path: Path) -> None:
    """Another run with more data shares what is there, in whatever order it asks."""
    built = build(tmp_path)
    before = {path.name for path in shards(tmp_path)}
    more = encoded(30, tiny_tokenizer("llama"), seed=0)
    new = [row for row in more if example_key(row["prompt_ids"], row["response_ids"]) not in built.cache]
    joined = EncodedExamples(_columns([*new, *reversed(list(built.examples)), *new]))
    done: list[tuple[int, int]] = []
    cache = built.build(joined, progress=lambda *counts: done.append(counts))
    assert new and done[-1] == (len(new), len(new))
    assert before < {path.name for path in shards(tmp_path)}
    assert cache.holds(joined)
    batch = make_collator(built.teacher, tiny_tokenizer("llama"))(list(joined))
    torch.testing.assert_close(
        everything(cache, joined), response_hidden(built.teacher, batch).detach(), rtol=1e-5, atol=1e-5
    )


def test_a_subset_needs_no_teacher(tmp_path: Path) -> None:
    built = build(tmp_path)
    assert built.build(built.examples.subset(["e3", "e20", "e7"])).holds(built.examples)
    assert len(built.loaded) == 1


def test_another_teacher_precision_or_text_never_meets_it(tmp_path: Path) -> None:
    places = {
        cache_folder(tmp_path, teacher, dtype)
        for teacher in ("teacher-a", "teacher-b")
        for dtype in ("float32", "float16")
    }
    assert len(places) == 4
    built = build(tmp_path)
    row = built.examples[0]
    prompt, response = row["prompt_ids"], row["response_ids"]
    assert example_key(prompt, response) in built.cache
    for other in (([*prompt, 9], response), (prompt, [9, *response]), (prompt + response[:1], response[1:])):
        assert example_key(*other) not in built.cache
        with pytest.raises(KeyError):
            built.cache.hidden(*other)


def test_keys_do_not_collide_where_digits_run_together() -> None:
    keys = [example_key(*ids) for ids in (([1, 2], [3]), ([12], [3]), ([1], [2, 3]), ([1], [23]), ([], [1, 2, 3]))]
    assert len(set(keys)) == 5
    assert example_key([1, 70_000], [65_536]) != example_key([1, 70_000 % 65_536], [0])


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("float16", 2), ("auto", 2)])
def test_bytes_per_token(dtype: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 1.02 times hidden size times bytes of the type, index included, at a real width and Dolly's lengths."""
    monkeypatch.setattr(module, "SHARD_BATCHES", 16)
    teacher, tokenizer = tiny_model("llama", hidden=576, layers=1), tiny_tokenizer("llama")
    rows = {
        "id": [f"e{i}" for i in range(40)],
        "prompt_ids": [[5 + i, 6, 7] for i in range(40)],
        "response_ids": [[9] * (40 + 2 * i) for i in range(40)],
    }
    examples = EncodedExamples(rows)
    build_cache(tmp_path, lambda: teacher, examples, make_collator(teacher, tokenizer), dtype=dtype)
    tokens = sum(map(len, rows["response_ids"]))
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("shard-*"))
    assert tokens * 576 * size < on_disk <= 1.02 * tokens * 576 * size


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_is_stored_is_the_state_rounded(dtype: str, tmp_path: Path) -> None:
    exact, rounded = build(tmp_path / "exact"), build(tmp_path / "rounded", dtype=dtype)
    states = everything(rounded.cache, rounded.examples)
    assert states.dtype == getattr(torch, dtype)
    assert torch.equal(states, everything(exact.cache, exact.examples).to(getattr(torch, dtype)))


def test_states_that_are_not_finite_name_their_examples(tmp_path: Path) -> None:
    teacher, tokenizer = tiny_model("llama", seed=2), tiny_tokenizer("llama")
    examples = encoded(9, tokenizer)
    examples.prompts[4] = [399, *examples.prompts[4]]
    teacher.get_input_embeddings().weight.data[399] = torch.inf
    culprits = [name for name, p, r in zip(examples.ids, examples.prompts, examples.responses, strict=True)
                if 399 in p or 399 in r[:-1]]  # fmt: skip
    with pytest.raises(RunError, match=r"not finite for \['e\d'.*tensor 'model.embed_tokens.weight'") as caught:
        build_cache(tmp_path, lambda: teacher, examples, make_collator(teacher, tokenizer), batch_size=9)
    assert "e4" in culprits and str(culprits) in str(caught.value)
    assert shards(tmp_path) == []


def test_a_disk_that_is_too_small_is_noticed_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage(NamedTuple):
        total: int = 10**9
        used: int = 10**9
        free: int = 1000

    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: Usage())
    with pytest.raises(RunError, match=r"needs \d+\.\d kB in .* 1\.0 kB are free.*cache\.enabled=false"):
        build(tmp_path)
    assert shards(tmp_path) == []
    monkeypatch.undo()
    assert shutil.disk_usage(tmp_path).free > 0
    assert build(tmp_path).cache.meta


def test_reading_maps_memory_instead_of_loading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One example's slice is read through an open map; no shard is loaded, and workers open maps of their own."""
    built = build(tmp_path)
    monkeypatch.setattr(teacher_cache, "load_file", lambda *arguments: pytest.fail("a whole shard was loaded"))
    cache = TeacherCache(tmp_path)
    row = built.examples[3]
    states = cache.hidden(row["prompt_ids"], row["response_ids"])
    assert states.shape == (len(row["response_ids"]), 32) and len(cache._open) == 1
    copy = pickle.loads(pickle.dumps(cache))
    assert copy._open == {} and torch.equal(copy.hidden(row["prompt_ids"], row["response_ids"]), states)


def test_a_head_that_does_more_is_refused(tmp_path: Path) -> None:
    """A family whose logits do not follow from its last hidden state must not be cached in silence."""
    teacher, tokenizer = tiny_model("llama"), tiny_tokenizer("llama")
    teacher.lm_head.register_forward_hook(lambda module, args, output: output * 1.5)
    with pytest.raises(UserError, match=r"do not follow from its last hidden state.*cache\.enabled=false"):
        build_cache(tmp_path, lambda: teacher, encoded(3, tokenizer), make_collator(teacher, tokenizer))
    assert shards(tmp_path) == []


def test_shards_hold_nothing_but_tensors(tmp_path: Path) -> None:
    build(tmp_path)
    for path in shards(tmp_path):
        assert set(load_file(path)) == {"hidden"}
    save_file({"hidden": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
