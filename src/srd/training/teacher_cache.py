"""The exact teacher cache: the teacher's last hidden state at response positions, kept on disk.

In off-policy training the teacher says the same in every epoch, stage and run. A hidden state has d values a token
where the logits have V, and teacher head times hidden state gives the full distribution back: nothing is lost but the
precision of storage. A cache is keyed by the teacher's weights; an example in it by its token ids. So another
teacher, tokenizer, template or text never meets it, and objectives, stages, seeds and sweeps share it.

Folder ``<root>/<key>/``::

    meta.json                    what the head does after its product, and the head's checksum (written after it)
    head.safetensors             the teacher's head: all of the teacher that training needs
    plan-<request>.json          how a request was cut into shards, so that a killed build continues with the same
    <shard>.safetensors, .json   hidden states [tokens, d]; their examples, lengths and checksum (written last)

Each JSON file carries a checksum of its own content as well. What does not agree is built again, never trained on.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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
from srd.models.finite import blame
from srd.models.head import HeadWeights, head_weights, response_hidden

logger = logging.getLogger(__name__)

FORMAT = 3
SHARD_BATCHES = 16  # a killed build loses at most this much work of one process
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def example_key(prompt_ids: Sequence[int], response_ids: Sequence[int], earlier: Sequence[int] = ()) -> str:
    """Name of an example in the cache: a hash of its token ids, and of where earlier answers are learnt."""
    text = f"{','.join(map(str, prompt_ids))}|{','.join(map(str, response_ids))}"
    text += f"|{','.join(map(str, earlier))}" if earlier else ""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _keys(examples: EncodedExamples) -> list[str]:
    return [example_key(*examples.tokens(i).values()) for i in range(len(examples))]


def cache_bytes(tokens: int, hidden_size: int, dtype: torch.dtype) -> int:
    """Bytes that the hidden states of so many response tokens take."""
    return tokens * hidden_size * dtype.itemsize


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
    """Reads hidden states through memory maps.

    Args:
        folder: One teacher's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta = _described(folder / "meta.json")
        self.places: dict[str, _Place] = {}
        self._open: dict[str, Any] = {}
        for index in sorted(folder.glob("shard-*.json")):
            content = _described(index)
            start = 0
            for key, length in zip(content.get("keys", []), content.get("lengths", []), strict=True):
                self.places[key] = _Place(index.stem, start, length)
                start += length

    def __contains__(self, key: str) -> bool:
        return key in self.places

    def holds(self, examples: EncodedExamples) -> bool:
        """Whether every one of these examples is in the cache."""
        return all(key in self for key in _keys(examples))

    def hidden(self, prompt_ids: Sequence[int], response_ids: Sequence[int], earlier: Sequence[int] = ()) -> Tensor:
        """The teacher's last hidden states where an example is learnt, ``[N, d]``; the response's are the last of them.

        Raises:
            KeyError: the example is not in the cache.
        """
        place = self.places[example_key(prompt_ids, response_ids, earlier)]
        shard = self._open.get(place.shard)
        if shard is None:
            opened = safe_open(self.folder / f"{place.shard}.safetensors", framework="pt")
            shard = self._open[place.shard] = opened.get_slice("hidden")
        states: Tensor = shard[place.start : place.start + place.length]
        return states

    def __getstate__(self) -> dict[str, Any]:  # data-loader workers open their own maps
        return {**self.__dict__, "_open": {}}

    def head(self) -> HeadWeights:
        """The teacher's head."""
        tensors = load_file(self.folder / "head.safetensors")
        return HeadWeights(tensors["weight"], tensors.get("bias"), self.meta["scale"], self.meta["softcap"])

    def verify(self) -> list[str]:
        """Compare every file with its checksum; damaged ones are removed, named in a warning and returned.

        For one process at a time, as it removes files.
        """
        described = {index: index.with_suffix(".safetensors") for index in sorted(self.folder.glob("shard-*.json"))}
        if (self.folder / "meta.json").exists():
            described[self.folder / "meta.json"] = self.folder / "head.safetensors"

        def intact(index: Path) -> bool:
            content, tensors = _described(index), described[index]
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


def cache_folder(root: Path, teacher_fingerprint: str, dtype: str) -> Path:
    """Where the cache of a teacher lies."""
    return root / fingerprint(FORMAT, teacher_fingerprint, dtype)


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
    dtype: str = "auto",
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> TeacherCache:
    """Run the teacher over the examples that the cache lacks.

    Args:
        folder: From `cache_folder`.
        load_teacher: Called only when something is missing.
        examples: What training will read.
        collator: The training's.
        dtype: Stored precision; ``auto`` is the teacher's own.
        batch_size: Examples in one forward pass.
        progress: Called with examples done and examples to do.

    Returns:
        The cache, checked, holding every example.

    Raises:
        RunError: the disk is too small, or the teacher gives states that are not finite (naming its tensor, or the
            examples).
        UserError: the teacher's logits do not follow from its hidden states.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cache = open_verified(folder)
    keys, learnt = _keys(examples), examples.learnt
    shards = parallel.on_main(lambda: _plan(folder, cache, keys, examples, batch_size))
    done_before = parallel.on_main(lambda: {path.stem for path in folder.glob("shard-*.json")})
    todo = [(name, batches) for name, batches in shards if name not in done_before]
    mine = todo[parallel.process() :: parallel.processes()]
    if todo or not (folder / "meta.json").exists():
        teacher = load_teacher()
        stored = next(teacher.parameters()).dtype if dtype == "auto" else DTYPES[dtype]
        _write_head(folder, teacher)
        tokens = sum(learnt[i] for _, batches in todo for batch in batches for i in batch)
        _check_disk(folder, cache_bytes(tokens, head_weights(teacher).weight.shape[1], stored))
        total = sum(len(batch) for _, batches in mine for batch in batches)
        done = 0
        for name, batches in mine:
            states: list[Tensor] = []
            for batch in batches:
                states.append(_teacher_states(teacher, examples, batch, collator).to(stored))
                done += len(batch)
                if progress:
                    progress(done, total)
            _write_shard(folder, name, torch.cat(states), [keys[i] for b in batches for i in b],
                         [learnt[i] for b in batches for i in b])  # fmt: skip
        del teacher
    parallel.barrier()
    return TeacherCache(folder)


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


@torch.no_grad()
def _teacher_states(teacher: Any, examples: EncodedExamples, batch: list[int], collator: Collator) -> Tensor:
    device = next(teacher.parameters()).device
    rows = [examples.tokens(i) for i in batch]
    tensors = {name: value.to(device) for name, value in collator(rows).items()}
    states = response_hidden(teacher, tensors)
    if not torch.isfinite(states).all():
        bad, start = [], 0
        for i, row in zip(batch, rows, strict=True):
            end = start + sum(end - first for first, end in learnt_spans(row))
            if not torch.isfinite(states[start:end]).all():
                bad.append(examples.ids[i])
            start = end
        raise RunError(
            f"the teacher gives hidden states that are not finite for {bad[:5]}. {blame({'teacher': teacher}, bad)}"
        )
    return states.cpu()


def _write_head(folder: Path, teacher: Any) -> None:
    """Keep the teacher's head, which has been checked to give the teacher's own logits."""
    if (folder / "meta.json").exists() or not parallel.is_main():
        return
    head = head_weights(teacher)
    tensors = {"weight": head.weight.detach().cpu().contiguous()}
    if head.bias is not None:
        tensors["bias"] = head.bias.detach().cpu().contiguous()
    with atomic_write(folder / "head.safetensors") as partial:
        save_file(tensors, partial)
    digest = file_digest(folder / "head.safetensors")
    _describe(folder / "meta.json", {"digest": digest, "scale": head.scale, "softcap": head.softcap})


def _write_shard(folder: Path, name: str, states: Tensor, keys: list[str], lengths: list[int]) -> None:
    path = folder / f"{name}.safetensors"
    with atomic_write(path) as partial:
        save_file({"hidden": states.contiguous()}, partial)
    _describe(folder / f"{name}.json", {"digest": file_digest(path), "keys": keys, "lengths": lengths})


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"the teacher cache needs {shown_bytes(needed)} in {folder}, and {shown_bytes(free)} are free. "
            "Free some space, name another folder (cache.dir=…), store less (cache.dtype=bfloat16), "
            "or run the teacher live (cache.enabled=false)."
        )
