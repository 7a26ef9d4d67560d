"""The teacher cache: what the teacher says of every response token, kept on disk.

In off-policy training the teacher says the same in every epoch, stage and run. A tier (`srd.training.tiers`) decides
what is kept of it: as a rule the last hidden state, which has d values a token where the logits have V, and from which
the teacher's head gives the full distribution back. A cache is keyed by the teacher's weights; an example in it by its
token ids. So another teacher, tokenizer, template or text never meets it, and objectives, stages, seeds and sweeps
share it. While it is built the teacher's states at some tokens are kept as they are, and how far the tier is from them
is measured.

`build_cache` runs a teacher that is here. `fill_cache` takes what somebody else says of each token, a server for
example: lists of token ids and log-probabilities, for the tiers ``topk`` and ``likelihood``; no teacher and no head is
needed for it.

Folder ``<root>/<key>/``::

    meta.json                    the tier, its error, what the head does after its product, a checksum (written last)
    head.safetensors             the teacher's head where the tier needs it, what the tier has learnt, and the tokens
                                 that are kept exact: ``sample [n, d]``, ``sample_targets [n]``
    plan-<request>.json          how a request was cut into shards, so that a killed build continues with the same
    <shard>.safetensors, .json   what is kept, a row a token; examples, lengths and checksum (written last)

Each JSON file carries a checksum of its own content as well. What does not agree is built again, never trained on.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from srd.base import parallel
from srd.base.errors import RunError, UserError
from srd.base.files import atomic_write, file_digest, fingerprint, read_sealed, remove, write_sealed
from srd.base.text import shown_bytes
from srd.data.batching import Collator, EncodedExamples, learnt_spans, length_sorted_batches
from srd.models.cluster import ask, spread
from srd.models.finite import blame
from srd.models.head import HeadWeights, cross_entropy, head_weights, response_hidden
from srd.training.tier_error import TOKENS, check_error, measure
from srd.training.tiers.base import Listed, Tier, make_tier, tier_of

logger = logging.getLogger(__name__)

FORMAT = 3
HEAD = ("head.safetensors", "meta.json")  # in the order in which they are written
SHARD_BATCHES = 16  # a killed build loses at most this much work of one process
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def example_key(prompt_ids: Sequence[int], response_ids: Sequence[int], earlier: Sequence[int] = ()) -> str:
    """Name of an example in the cache: a hash of its token ids, and of where earlier answers are learnt."""
    text = f"{','.join(map(str, prompt_ids))}|{','.join(map(str, response_ids))}"
    text += f"|{','.join(map(str, earlier))}" if earlier else ""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _keys(examples: EncodedExamples) -> list[str]:
    return [example_key(*examples.tokens(i).values()) for i in range(len(examples))]


def _describe(path: Path, content: dict[str, Any]) -> None:
    """Write what a file of a cache is about, sealed, with the cache that it belongs to."""
    write_sealed(path, {"cache": path.parent.name, **content})


def _described(path: Path) -> dict[str, Any]:
    """Read what `_describe` wrote; nothing where it is missing, damaged, or of another cache or shard."""
    content = read_sealed(path)
    if content.get("cache") != path.parent.name or ("keys" in content and path.stem != _shard_name(content["keys"])):
        return {}
    return content


def _shard_name(keys: list[str]) -> str:
    return f"shard-{fingerprint(keys)}"


@dataclass(frozen=True)
class _Place:
    shard: str
    start: int
    length: int


class TeacherCache:
    """Reads what is kept through memory maps.

    Args:
        folder: One teacher's folder.

    Attributes:
        meta: What ``meta.json`` says, ``error`` as `srd.training.tier_error.measure` gives it; empty: nothing is here
            yet.
        tier: What is kept of a token.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta = _described(folder / "meta.json")
        self.tier = tier_of(self.meta.get("tier"))
        self.places: dict[str, _Place] = {}
        self._open: dict[str, dict[str, Any]] = {}
        for index in sorted(folder.glob("shard-*.json")):
            content = self._index(index)
            start = 0
            for key, length in zip(content.get("keys", []), content.get("lengths", []), strict=True):
                self.places[key] = _Place(index.stem, start, length)
                start += length

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def _index(self, path: Path) -> dict[str, Any]:
        """What a shard's index says; nothing where it was packed with what the tier has learnt elsewhere."""
        content = _described(path)
        return content if content.get("learnt") == self.meta.get("learnt") else {}

    def holds(self, examples: EncodedExamples) -> bool:
        """Whether every one of these examples is in the cache."""
        return all(key in self for key in _keys(examples))

    def hidden(self, prompt_ids: Sequence[int], response_ids: Sequence[int], earlier: Sequence[int] = ()) -> Tensor:
        """What `head` takes where an example is learnt, ``[N, w]``, as a rule hidden states; the response's come last.

        Raises:
            KeyError: the example is not in the cache.
        """
        row = (prompt_ids, response_ids, earlier)
        return self.tier.unpack(self._kept(*row), learnt_tokens(*row), self._learnt)

    def _kept(self, *tokens: Sequence[int]) -> dict[str, Tensor]:
        """The tensors of an example as they are stored."""
        place = self.places[example_key(*tokens)]
        shard = self._open.get(place.shard)
        if shard is None:
            opened = safe_open(self.folder / f"{place.shard}.safetensors", framework="pt")
            shard = self._open[place.shard] = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return {name: kept[place.start : place.start + place.length] for name, kept in shard.items()}

    def losses(
        self, head: HeadWeights, prompt_ids: Sequence[int], response_ids: Sequence[int], earlier: Sequence[int] = ()
    ) -> Tensor:
        """The teacher's nats of each token that is learnt, ``[N]``.

        Args:
            head: From `head`, cut to the ids that count.
            prompt_ids: Of the example; likewise the others.
            response_ids: Of the example.
            earlier: See `srd.data.batching.learnt_spans`.

        Raises:
            KeyError: the example is not in the cache.
            UserError: what is kept does not tell, because a server listed other tokens.
        """
        kept, targets = self._kept(prompt_ids, response_ids, earlier), learnt_tokens(prompt_ids, response_ids, earlier)
        if "target" not in kept:
            return cross_entropy(self.tier.unpack(kept, targets, self._learnt), head, torch.tensor(targets))
        if kept["target"].isnan().any():
            raise UserError(
                "this teacher cache lacks the log-probability of some tokens of the text: the server listed others. "
                "Ask for those of the actual tokens, too, or leave out scores that read the teacher."
            )
        return -kept["target"]

    def __getstate__(self) -> dict[str, Any]:  # data-loader workers open their own maps
        return {**self.__dict__, "_open": {}}

    @cached_property
    def _learnt(self) -> dict[str, Tensor]:
        """What the tier has learnt from the sample."""
        return {name: self._beside[name] for name in self.meta.get("learnt_names", [])}

    @cached_property
    def _beside(self) -> dict[str, Tensor]:
        """What lies beside the head."""
        with safe_open(self.folder / "head.safetensors", framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name not in ("weight", "bias")}  # noqa: SIM118

    def sample(self) -> tuple[Tensor, Tensor]:
        """The tokens that are kept exact: the teacher's states ``[n, d]`` and the ids that follow, ``[n]``.

        Raises:
            KeyError: none are kept: the cache was filled from lists, or is from before there were tiers.
        """
        return self._beside["sample"], self._beside["sample_targets"]

    def head(self) -> HeadWeights:
        """The teacher's head, or what stands for it in this tier."""
        head = None
        if self.tier.with_head:
            tensors = load_file(self.folder / "head.safetensors")
            head = HeadWeights(tensors["weight"], tensors.get("bias"), self.meta["scale"], self.meta["softcap"])
        result: HeadWeights = self.tier.head(head, self.meta.get("width"))
        return result

    def verify(self) -> list[str]:
        """Compare every file with its checksum; damaged ones are removed, named in a warning and returned.

        For one process at a time, as it removes files.
        """
        described = {index: index.with_suffix(".safetensors") for index in sorted(self.folder.glob("shard-*.json"))}
        if (self.folder / "meta.json").exists():
            described[self.folder / "meta.json"] = self.folder / "head.safetensors"

        def intact(index: Path) -> bool:
            content = _described(index) if index.stem == "meta" else self._index(index)
            tensors = described[index]
            return bool(content) and tensors.is_file() and file_digest(tensors) == content["digest"]

        with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter lock
            damaged = [index for index, fine in zip(described, pool.map(intact, described), strict=True) if not fine]
        for index in damaged:
            for path in (index, described[index]):
                if path.is_dir():
                    raise UserError(f"{path} is a folder, but the teacher cache has a file there. Move it away.")
            logger.warning("teacher cache: %s is damaged and will be built again", described[index])
            remove(index)
            remove(described[index])
        return [described[index].stem for index in damaged]


def learnt_tokens(prompt_ids: Sequence[int], response_ids: Sequence[int], earlier: Sequence[int] = ()) -> list[int]:
    """The tokens that are learnt, in the order in which they are kept."""
    text = [*prompt_ids, *response_ids]
    row = {"prompt_ids": prompt_ids, "response_ids": response_ids, "earlier": earlier}
    return [token for start, end in learnt_spans(row) for token in text[start:end]]


def cache_folder(root: Path, teacher_fingerprint: str, kind: Any) -> Path:
    """Where the cache of a teacher lies; ``kind`` is `srd.training.tiers.base.Tier.identity`."""
    return root / fingerprint(FORMAT, teacher_fingerprint, kind)


def stored_dtype(teacher_dtype: str) -> str:
    """The precision in which ``auto`` keeps the states of a teacher that runs in ``teacher_dtype``.

    A teacher that runs in bfloat16 has bfloat16 numbers, which nothing of that size keeps better; of float32 numbers
    float16 keeps more than bfloat16.
    """
    return "bfloat16" if teacher_dtype == "bfloat16" else "float16"


def open_verified(folder: Path) -> TeacherCache:
    """Open a cache after checking every shard against its checksum."""
    parallel.on_main(TeacherCache(folder).verify)
    return TeacherCache(folder)


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
        shared = (collator, tier, width, cache._learnt)

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
    cache, keys = open_verified(folder), _keys(examples)
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
        _write_shard(cache.folder, name, tensors, {**content, **known})


def _sample_batches(work: _Work, tokens: int, batch_size: int = 4) -> list[list[int]]:
    """Examples from all over the data with so many learnt tokens, always the same for the same data, in batches."""
    order = sorted(range(len(work.keys)), key=work.keys.__getitem__)  # hashes: as good as drawn
    counts = itertools.accumulate(work.examples.learnt[i] for i in order)
    chosen = order[: 1 + next((place for place, count in enumerate(counts) if count >= tokens), len(order))]
    return [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]


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
        places = torch.linspace(0, len(states) - 1, min(TOKENS, len(states))).long()
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
    _describe(path.with_name("meta.json"), {
        "digest": file_digest(path), "scale": head.scale, "softcap": head.softcap, "width": head.vocabulary,
        "tier": tier.described, "error": error, "learnt": known, "learnt_names": sorted(learnt),
        "tokenizer": work.tokenizer,
    })  # fmt: skip


def _plan(
    folder: Path, cache: TeacherCache, keys: list[str], examples: EncodedExamples, batch_size: int
) -> list[tuple[str, list[list[int]]]]:
    """Shards to build as (name, batches of indices). The plan is kept, so that a continued build is the same."""
    path = folder / f"plan-{fingerprint(keys, batch_size)}.json"
    batches: list[list[int]] | None = _described(path).get("batches")
    if batches is None or any(keys[i] not in cache for i in _absent(keys, batches)):
        first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in cache}
        missing = sorted(first.values())
        lengths = examples.lengths
        batches = [[missing[i] for i in b] for b in length_sorted_batches([lengths[i] for i in missing], batch_size)]
        _describe(path, {"batches": batches})
    shards = [batches[start : start + SHARD_BATCHES] for start in range(0, len(batches), SHARD_BATCHES)]
    return [(_shard_name([keys[i] for b in shard for i in b]), shard) for shard in shards]


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
            end = start + sum(end - first for first, end in learnt_spans(row))
            if not torch.isfinite(states[start:end]).all():
                bad.append(name)
            start = end
        raise RunError(
            f"the teacher gives hidden states that are not finite for {bad[:5]}. {blame({'teacher': teacher}, bad)}"
        )
    return states


def _write_shard(folder: Path, name: str, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
    path = folder / f"{name}.safetensors"
    with atomic_write(path) as partial:
        save_file({kind: tensor.contiguous() for kind, tensor in tensors.items()}, partial)
    _describe(folder / f"{name}.json", {"digest": file_digest(path), **content})


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"the teacher cache needs {shown_bytes(needed)} in {folder}, and {shown_bytes(free)} are free. "
            "Free some space, name another folder (cache.dir=…), store less (cache.tier=int8), or run "
            "the teacher live (cache.enabled=false)."
        )
