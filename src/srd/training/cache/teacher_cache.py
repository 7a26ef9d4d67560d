"""The teacher cache: what the teacher says of every response token, kept on disk.

In off-policy training the teacher says the same in every epoch, stage and run. A tier (`srd.training.tiers`) decides
what is kept of it: as a rule the last hidden state, which has d values a token where the logits have V, and from which
the teacher's head gives the full distribution back. A cache is keyed by the teacher's weights; an example in it by its
token ids. So another teacher, tokenizer, template or text never meets it, and objectives, stages, seeds and sweeps
share it. While it is built the teacher's states at some tokens are kept as they are, and how far the tier is from them
is measured.

`srd.training.cache.building` makes it.

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
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from srd.base import parallel
from srd.base.errors import UserError
from srd.base.files import file_digest, fingerprint, read_sealed, remove, write_sealed
from srd.data.batching import EncodedExamples, learnt_answers
from srd.models.head import HeadWeights, cross_entropy
from srd.training.tiers.base import tier_of

logger = logging.getLogger(__name__)

FORMAT = 3
HEAD = ("head.safetensors", "meta.json")  # in the order in which they are written


def example_key(prompt_ids: Sequence[int], response_ids: Sequence[int], earlier: Sequence[int] = ()) -> str:
    """Name of an example in the cache: a hash of its token ids, and of where earlier answers are learnt."""
    text = f"{','.join(map(str, prompt_ids))}|{','.join(map(str, response_ids))}"
    text += f"|{','.join(map(str, earlier))}" if earlier else ""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def example_keys(examples: EncodedExamples) -> list[str]:
    """`example_key` of each."""
    return [example_key(*examples.tokens(i).values()) for i in range(len(examples))]


def describe(path: Path, content: dict[str, Any]) -> None:
    """Write what a file of a cache is about, sealed, with the cache that it belongs to."""
    write_sealed(path, {"cache": path.parent.name, **content})


def described(path: Path) -> dict[str, Any]:
    """Read what `describe` wrote; nothing where it is missing, damaged, or of another cache or shard."""
    content = read_sealed(path)
    if content.get("cache") != path.parent.name or ("keys" in content and path.stem != shard_name(content["keys"])):
        return {}
    return content


def shard_name(keys: list[str]) -> str:
    """Of a shard with these examples."""
    return f"shard-{fingerprint(keys)}"


@dataclass(frozen=True)
class _Place:
    shard: str
    start: int
    length: int


class TeacherCache:
    """Reads what is kept through memory maps.

    Attributes:
        meta: What ``meta.json`` says, ``error`` as `srd.training.cache.tier_error.measure` gives it; empty: nothing is
            here yet.
        tier: What is kept of a token.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta = described(folder / "meta.json")
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
        content = described(path)
        return content if content.get("learnt") == self.meta.get("learnt") else {}

    def holds(self, examples: EncodedExamples) -> bool:
        """Whether every one of these examples is in the cache."""
        return all(key in self for key in example_keys(examples))

    def hidden(self, prompt_ids: Sequence[int], response_ids: Sequence[int], earlier: Sequence[int] = ()) -> Tensor:
        """What `head` takes where an example is learnt, ``[N, w]``, as a rule hidden states; the response's come last.

        Raises:
            KeyError: the example is not in the cache.
        """
        row = (prompt_ids, response_ids, earlier)
        return self.tier.unpack(self._kept(*row), learnt_tokens(*row), self.learnt)

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
            return cross_entropy(self.tier.unpack(kept, targets, self.learnt), head, torch.tensor(targets))
        if kept["target"].isnan().any():
            raise UserError(
                "this teacher cache lacks the log-probability of some tokens of the text: the server listed others. "
                "Ask for those of the actual tokens, too, or leave out scores that read the teacher."
            )
        return -kept["target"]

    def __getstate__(self) -> dict[str, Any]:  # data-loader workers open their own maps
        return {**self.__dict__, "_open": {}}

    @cached_property
    def learnt(self) -> dict[str, Tensor]:
        """What the tier has learnt from the sample."""
        return {name: self._beside[name] for name in self.meta.get("learnt_names", [])}

    @cached_property
    def _beside(self) -> dict[str, Tensor]:
        """What lies beside the head."""
        with safe_open(self.folder / "head.safetensors", framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name not in ("weight", "bias")}  # noqa: SIM118

    def listed_mass(self) -> float | None:
        """The teacher's mean probability of the tokens that are listed; None of a tier that lists none."""
        masses = [self.tier.listed_mass(load_file(path)) for path in sorted(self.folder.glob("shard-*.safetensors"))]
        return None if not masses or masses[0] is None else float(torch.cat(masses).mean())

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
        return self.tier.head(head, self.meta.get("width"))

    def verify(self) -> list[str]:
        """Compare every file with its checksum; damaged ones are removed, named in a warning and returned.

        For one process at a time, as it removes files.
        """
        tensors_of = {index: index.with_suffix(".safetensors") for index in sorted(self.folder.glob("shard-*.json"))}
        if (self.folder / "meta.json").exists():
            tensors_of[self.folder / "meta.json"] = self.folder / "head.safetensors"

        def intact(index: Path) -> bool:
            content = described(index) if index.stem == "meta" else self._index(index)
            tensors = tensors_of[index]
            return bool(content) and tensors.is_file() and file_digest(tensors) == content["digest"]

        with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter lock
            damaged = [index for index, fine in zip(tensors_of, pool.map(intact, tensors_of), strict=True) if not fine]
        for index in damaged:
            for path in (index, tensors_of[index]):
                if path.is_dir():
                    raise UserError(f"{path} is a folder, but the teacher cache has a file there. Move it away.")
            logger.warning("teacher cache: %s is damaged and will be built again", tensors_of[index])
            remove(index)
            remove(tensors_of[index])
        return [tensors_of[index].stem for index in damaged]


def learnt_tokens(prompt_ids: Sequence[int], response_ids: Sequence[int], earlier: Sequence[int] = ()) -> list[int]:
    """The tokens that are learnt, in the order in which they are kept."""
    row = {"prompt_ids": prompt_ids, "response_ids": response_ids, "earlier": earlier}
    return [token for answer in learnt_answers(row) for token in answer]


def cache_folder(root: Path, teacher_fingerprint: str, kind: Any) -> Path:
    """Where the cache of a teacher lies; ``kind`` is `srd.training.tiers.base.Tier.identity`."""
    return root / fingerprint(FORMAT, teacher_fingerprint, kind)


def open_verified(folder: Path) -> TeacherCache:
    """Open a cache after checking every shard against its checksum."""
    parallel.on_main(TeacherCache(folder).verify)
    return TeacherCache(folder)
