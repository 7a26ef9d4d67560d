"""Building a teacher cache: whole, or not used.

`build_cache` runs a teacher that is here. `fill_cache` takes what somebody else says of each token, a server for
example: lists of token ids and log-probabilities, for the tiers ``topk`` and ``likelihood``; no teacher and no head is
needed for it.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from srd.base import parallel
from srd.base.errors import RunError, UserError
from srd.base.files import atomic_write, file_digest, fingerprint
from srd.base.text import shown_bytes
from srd.data.batching import Collator, EncodedExamples, learnt_count, length_sorted_batches
from srd.models.cluster import ask, spread
from srd.models.finite import blame
from srd.models.head import HeadWeights, head_weights, response_hidden
from srd.training.cache.teacher_cache import (
    TeacherCache,
    describe,
    described,
    example_keys,
    learnt_tokens,
    open_verified,
    shard_name,
)
from srd.training.cache.tier_error import check_error, measure
from srd.training.tiers.base import EXACT_TOKENS, Listed, Tier, make_tier, stored_dtype

SHARD_BATCHES = 16  # a killed build loses at most this much work of one process


def build_cache(
    folder: Path,
    load_teacher: Callable[[], Any],
    examples: EncodedExamples,
    collator: Collator,
    *,
    tier: Tier | None = None,
    dtype: str = "auto",
    width: int | None = None,
    max_kl: float = math.inf,
    batch_size: int = 16,
    tokenizer: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TeacherCache:
    """Run the teacher over the examples that the cache lacks.

    Args:
        folder: From `cache_folder`.
        load_teacher: Called only when something is missing.
        examples: What training will read.
        collator: The training's.
        tier: What is kept; None: ``exact``.
        dtype: Stored precision of ``exact`` where no tier is given; ``auto``: see `stored_dtype`.
        width: Token ids that teacher and student share; None: all of the teacher's.
        max_kl: Largest mean KL, in nats, between the teacher and what is kept.
        batch_size: Examples in one forward pass.
        tokenizer: Identity of the tokenizer that the examples' ids are of, to be noted.
        progress: Called with examples done and examples to do.

    Returns:
        The cache, checked, holding every example.

    Raises:
        RunError: the disk is too small, or the teacher gives states that are not finite (naming what is to blame).
        UserError: the teacher's logits do not follow from its hidden states, or the tier is too far from the teacher.
    """
    work = _work(folder, examples, batch_size, tokenizer)
    if work.todo or not work.cache.meta:
        teacher = load_teacher()
        running, head = ask(teacher, _frame_of, width)
        tier = tier or make_tier("exact", dtype=stored_dtype(running) if dtype == "auto" else dtype)
        _check_tier(work.cache, tier)
        parallel.on_main(
            lambda: _set_up(work, tier, head, lambda batches: _states_of(teacher, collator, map(work.rows, batches)))
        )
        cache = TeacherCache(folder)
        check_error(cache.tier, cache.meta.get("error"), max_kl)
        _check_disk(folder, work.tokens * tier.token_bytes(head.weight.shape[1], head.vocabulary))
        shared = (collator, tier, width, cache.learnt)

        def pack(batches: list[list[int]]) -> Iterator[tuple[int, dict[str, Tensor]]]:
            shards = ((*work.rows(batch), work.targets(batch)) for batch in batches)
            return spread(teacher, _packed, shared, shards)

        _write_shards(work, cache, pack, progress)
    parallel.barrier()
    cache = TeacherCache(folder)
    check_error(cache.tier, cache.meta.get("error"), max_kl)
    return cache


def fill_cache(
    folder: Path,
    tier: Tier,
    examples: EncodedExamples,
    ask: Callable[[list[dict[str, list[int]]]], Sequence[Sequence[Listed]]],
    *,
    width: int,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> TeacherCache:
    """`build_cache` of a teacher that is not here: what it says of each token is asked for.

    Args:
        folder: From `cache_folder`.
        tier: ``topk`` or ``likelihood``.
        examples: What training will read.
        ask: Takes a batch of examples, ``{"prompt_ids", "response_ids"}`` and ``earlier`` where earlier answers are
            learnt, too. Gives for each of them, for each token that is learnt (`srd.data.batching.learnt_spans`), pairs
            of token ids and log-probabilities at temperature 1, in any order: that of the token itself, which
            ``likelihood`` needs, and those of the likeliest ones. A batch is asked for again only where its shard
            (`SHARD_BATCHES` batches) was not finished.
        width: Token ids that teacher and student share.
        batch_size: Examples asked for at once.
        progress: Called with examples done and examples to do.

    Returns:
        The cache, holding every example. Its error is not known: ``meta["error"]`` is None.

    Raises:
        UserError: the tier is not made of lists, or a position lacks what it needs.
        RunError: the disk is too small.
    """
    work = _work(folder, examples, batch_size)
    if work.todo or not work.cache.meta:
        _check_tier(work.cache, tier)
        parallel.on_main(lambda: _set_up(work, tier, HeadWeights(torch.empty(width, 0)), None))
        _check_disk(folder, work.tokens * tier.token_bytes(0, width))

        def pack(batch: list[int]) -> dict[str, Tensor]:
            rows = [examples.tokens(i) for i in batch]
            answers = ask(rows)
            listed = [position for answer in answers for position in answer]
            told, expected = [len(answer) for answer in answers], [len(learnt_tokens(*row.values())) for row in rows]
            if told != expected:
                raise RunError(f"the teacher has told of {told} tokens of a batch, and {expected} are learnt")
            return tier.pack_listed(listed, work.targets(batch), width)

        _write_shards(work, TeacherCache(folder), lambda batches: enumerate(map(pack, batches)), progress)
    parallel.barrier()
    return TeacherCache(folder)


@dataclass(frozen=True)
class _Work:
    """What a request finds and has still to make.

    Attributes:
        cache: As it was found.
        examples: What is asked for.
        keys: Of the examples.
        todo: Shards that are missing, as (name, batches of indices).
        tokenizer: Whose ids they are of.
    """

    cache: TeacherCache
    examples: EncodedExamples
    keys: list[str]
    todo: list[tuple[str, list[list[int]]]]
    tokenizer: str | None = None

    @property
    def tokens(self) -> int:
        """Tokens that are missing."""
        learnt = self.examples.learnt
        return sum(learnt[i] for _, batches in self.todo for batch in batches for i in batch)

    def rows(self, batch: list[int]) -> tuple[list[str], list[dict[str, list[int]]]]:
        """Ids and tokens of a batch."""
        return [self.examples.ids[i] for i in batch], [self.examples.tokens(i) for i in batch]

    def targets(self, batch: list[int]) -> list[int]:
        """The tokens of a batch that are learnt."""
        return [token for i in batch for token in learnt_tokens(*self.examples.tokens(i).values())]


def _work(folder: Path, examples: EncodedExamples, batch_size: int, tokenizer: str | None = None) -> _Work:
    folder.mkdir(parents=True, exist_ok=True)
    cache, keys = open_verified(folder), example_keys(examples)
    shards = parallel.on_main(lambda: _plan(folder, cache, keys, examples, batch_size))
    done_before = parallel.on_main(lambda: {path.stem for path in folder.glob("shard-*.json")})
    todo = [(name, batches) for name, batches in shards if name not in done_before]
    return _Work(cache, examples, keys, todo, tokenizer)


def _check_tier(cache: TeacherCache, tier: Tier) -> None:
    if "tier" in cache.meta and cache.tier.identity != tier.identity:
        raise UserError(
            f"{cache.folder} holds a teacher cache of the kind {cache.tier.identity}, not {tier.identity}. Name "
            "another folder."
        )


def _write_shards(
    work: _Work,
    cache: TeacherCache,
    pack: Callable[[list[list[int]]], Iterable[tuple[int, dict[str, Tensor]]]],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Make this process's share of the missing shards; ``pack`` gives what is kept of batches, in any order."""
    mine, learnt = work.todo[parallel.process() :: parallel.processes()], work.examples.learnt
    flat = [(shard, place) for shard, (_, batches) in enumerate(mine) for place in range(len(batches))]
    waiting: list[dict[int, dict[str, Tensor]]] = [{} for _ in mine]
    total, done = sum(len(batch) for _, batches in mine for batch in batches), 0
    for number, tensors in pack([batch for _, batches in mine for batch in batches]):
        shard, place = flat[number]
        name, batches = mine[shard]
        waiting[shard][place] = tensors
        done += len(batches[place])
        if progress:
            progress(done, total)
        if len(waiting[shard]) < len(batches):
            continue
        parts = [part for _, part in sorted(waiting[shard].items(), key=lambda item: item[0])]
        waiting[shard] = {}
        tensors = {kind: torch.cat([part[kind] for part in parts]) for kind in parts[0]}
        rows = [i for batch in batches for i in batch]
        content = {"keys": [work.keys[i] for i in rows], "lengths": [learnt[i] for i in rows]}
        known = {} if cache.meta.get("learnt") is None else {"learnt": cache.meta["learnt"]}
        write_shard(cache.folder, name, tensors, {**content, **known})


def _sample_batches(work: _Work, tokens: int) -> list[list[int]]:
    """Examples from all over the data with so many learnt tokens, always the same for the same data, in batches."""
    order = sorted(range(len(work.keys)), key=work.keys.__getitem__)  # hashes: as good as drawn
    counts = itertools.accumulate(work.examples.learnt[i] for i in order)
    chosen = order[: 1 + next((place for place, count in enumerate(counts) if count >= tokens), len(order))]
    return [chosen[start : start + 4] for start in range(0, len(chosen), 4)]


@torch.no_grad()
def _set_up(work: _Work, tier: Tier, head: HeadWeights, states_of: Callable[[list[list[int]]], Tensor] | None) -> None:
    """Write what all shards have in common: the head, what the tier has learnt, and its error.

    Args:
        work: The request.
        tier: The tier.
        head: The teacher's, which has been checked to give its own logits, cut to the ids that count.
        states_of: The teacher's states of some batches; None: it is not here.
    """
    if work.cache.meta:
        return
    tensors, error, learnt = {}, None, {}
    if states_of is not None and len(work.keys):
        batches = _sample_batches(work, tier.sample)
        states = states_of(batches)
        targets = torch.tensor([token for batch in batches for token in work.targets(batch)])
        learnt = tier.learn(states)
        places = torch.linspace(0, len(states) - 1, min(EXACT_TOKENS, len(states))).long()
        states, targets = states[places], targets[places]
        error = measure(tier, states, targets, head, learnt)
        tensors = {
            "sample": states.cpu(),
            "sample_targets": targets,
            **{name: value.cpu() for name, value in learnt.items()},
        }
    if tier.with_head:
        tensors["weight"] = head.weight.detach().cpu().contiguous()
        tensors |= {} if head.bias is None else {"bias": head.bias.detach().cpu().contiguous()}
    path = work.cache.folder / "head.safetensors"
    with atomic_write(path) as partial:
        save_file(tensors, partial)
    known = fingerprint({name: value.tolist() for name, value in learnt.items()}) if learnt else None
    describe(path.with_name("meta.json"), {
        "digest": file_digest(path), "scale": head.scale, "softcap": head.softcap, "width": head.vocabulary,
        "tier": tier.described, "error": error, "learnt": known, "learnt_names": sorted(learnt),
        "tokenizer": work.tokenizer,
    })  # fmt: skip


def _plan(
    folder: Path, cache: TeacherCache, keys: list[str], examples: EncodedExamples, batch_size: int
) -> list[tuple[str, list[list[int]]]]:
    """Shards to build as (name, batches of indices). The plan is kept, so that a continued build is the same."""
    path = folder / f"plan-{fingerprint(keys, batch_size)}.json"
    batches: list[list[int]] | None = described(path).get("batches")
    if batches is None or any(keys[i] not in cache for i in _absent(keys, batches)):
        first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in cache}
        missing = sorted(first.values())
        lengths = examples.lengths
        batches = [[missing[i] for i in b] for b in length_sorted_batches([lengths[i] for i in missing], batch_size)]
        describe(path, {"batches": batches})
    shards = [batches[start : start + SHARD_BATCHES] for start in range(0, len(batches), SHARD_BATCHES)]
    return [(shard_name([keys[i] for b in shard for i in b]), shard) for shard in shards]


def _absent(keys: list[str], batches: list[list[int]]) -> list[int]:
    """Examples that a kept plan does not cover: they were in the cache when it was made."""
    planned = {keys[i] for batch in batches for i in batch}
    return [i for i, key in enumerate(keys) if key not in planned]


def _frame_of(teacher: Any, width: int | None) -> tuple[str, HeadWeights]:
    """The precision that a teacher runs in, and its head, cut to the ids that count."""
    head = head_weights(teacher)
    return str(next(teacher.parameters()).dtype).removeprefix("torch."), head.cut(
        min(head.vocabulary, width or head.vocabulary)
    )


def _states_of(teacher: Any, collator: Collator, batches: Iterable[tuple[Any, ...]]) -> Tensor:
    """The teacher's states of some batches, one behind the other, ``[N, d]``."""
    found = sorted(spread(teacher, _teacher_states, (collator,), batches), key=lambda each: each[0])
    return torch.cat([states for _, states in found])


@torch.no_grad()
def _packed(
    teacher: Any, collator: Collator, tier: Tier, width: int | None, learnt: dict[str, Tensor], ids: list[str],
    rows: list[dict[str, list[int]]], targets: list[int],
) -> dict[str, Tensor]:  # fmt: skip
    """What a tier keeps of a batch."""
    _, head = _frame_of(teacher, width)
    kept = tier.pack(_teacher_states(teacher, collator, ids, rows), torch.tensor(targets), head, learnt)
    return {name: tensor.cpu() for name, tensor in kept.items()}


@torch.no_grad()
def _teacher_states(teacher: Any, collator: Collator, ids: list[str], rows: list[dict[str, list[int]]]) -> Tensor:
    device = next(teacher.parameters()).device
    tensors = {name: value.to(device) for name, value in collator(rows).items()}
    states = response_hidden(teacher, tensors)
    if not torch.isfinite(states).all():
        bad, start = [], 0
        for name, row in zip(ids, rows, strict=True):
            end = start + learnt_count(row)
            if not torch.isfinite(states[start:end]).all():
                bad.append(name)
            start = end
        raise RunError(
            f"the teacher gives hidden states that are not finite for {bad[:5]}. {blame({'teacher': teacher}, bad)}"
        )
    return states


def write_shard(folder: Path, name: str, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
    """Write a shard of a cache, and then what it holds."""
    path = folder / f"{name}.safetensors"
    with atomic_write(path) as partial:
        save_file({kind: tensor.contiguous() for kind, tensor in tensors.items()}, partial)
    describe(folder / f"{name}.json", {"digest": file_digest(path), **content})


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"the teacher cache needs {shown_bytes(needed)} in {folder}, and {shown_bytes(free)} are free. "
            "Free some space, name another folder (cache.dir=…), store less (cache.tier=int8), or run "
            "the teacher live (cache.enabled=false)."
        )
