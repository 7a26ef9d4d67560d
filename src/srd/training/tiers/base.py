"""What a tier of the teacher cache is, and the registry of them.

A tier says what is kept of a token, how many bytes that takes, what can be trained on it, and how it becomes targets of
the loss again. It keeps named tensors with one row a token; read back, they are one tensor ``[N, w]`` that travels with
the batch, and a head turns a block of its rows into targets: a `srd.models.head.HeadWeights` into logits of all ids, a
`srd.training.loss.outcomes.OutcomeHead` into probabilities of a few.

To add one, register a subclass of `Tier` in a file of this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from srd.base.errors import UserError
from srd.base.registry import Registry
from srd.training.divergences.base import DIVERGENCES
from srd.training.loss.schedules import Schedule

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}  # of a value
EXACT_TOKENS = 256  # of a teacher, which a cache keeps as they are, to measure the tier by

Listed = Sequence[tuple[int, float]]  # token ids and their log-probabilities at one position


@dataclass(frozen=True)
class TierOptions:
    """What tiers are made from; each takes what concerns it.

    Attributes:
        dtype: Precision of hidden states, ``float32``, ``bfloat16`` or ``float16``.
        top_k: Likeliest tokens that are kept.
        temperatures: At which the divergence will be asked for.
    """

    dtype: str = "float16"
    top_k: int = 128
    temperatures: tuple[float, ...] = (1.0,)


class Tier:
    """What a cache keeps of each token.

    Attributes:
        name: What it is registered under.
        with_head: Whether training needs the teacher's head beside it.
        in_full: Whether it keeps the hidden states as they are: a run that keeps no cache, or that writes its own text
            ahead, has no other.
        whole: Whether the probabilities of all tokens can be had from it.
        of_text: Whether it tells how likely each token of the text was.
        sample: Tokens of the teacher that are looked at beforehand, to set the tier up and measure its error.
        nearer: What brings it nearer to the teacher, or is nearer.
    """

    name: ClassVar[str] = ""
    with_head: ClassVar[bool] = True
    in_full: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    of_text: ClassVar[bool] = True
    sample: ClassVar[int] = 256
    nearer: ClassVar[str] = "Set cache.tier=exact"

    def __init__(self, options: TierOptions = TierOptions()) -> None:
        self.options = options

    @property
    def identity(self) -> Any:
        """What decides its bytes, for the name of the cache's folder (JSON-like)."""
        return [self.name]

    @property
    def listed(self) -> int:
        """How many of the likeliest tokens a server is asked for at each position, beside the text's own."""
        return 0

    @property
    def described(self) -> dict[str, Any]:
        """What makes the same tier again: see `tier_of`."""
        return {"name": self.name, **asdict(self.options)}

    def token_bytes(self, hidden_size: int, vocabulary: int) -> int:
        """Bytes of one token on disk."""
        raise NotImplementedError

    def sample_bytes(self, hidden_size: int, value: int) -> int:
        """Bytes of the tokens that are kept exact, whose states have so many bytes a value."""
        return EXACT_TOKENS * (hidden_size * value + 8)  # and the id of the next token

    def problem(self, objective: str, temperature: float, schedule: Schedule | None = None) -> str:
        """Why a divergence at a temperature cannot be had from it, and what can serve it; empty where it can."""
        if self.whole:
            return ""
        if (schedule and schedule.whole) or DIVERGENCES.get(objective).whole:
            needy = "the method" if schedule and schedule.whole else f"'{objective}'"
            return (
                f"{needy} needs the teacher's whole distribution, of which it keeps a part. Set cache.tier to "
                "int8 or exact"
            )
        return self.coarse_problem(objective, temperature)

    def problem_apart(self, alignment: str) -> str:
        """Why a teacher with tokens of its own cannot teach from it so; empty where it can."""
        differ = "and teacher and student read different tokens"
        if not (self.whole or self.of_text):
            return f"which keeps a part of the teacher's distribution, {differ}"
        if not self.whole and alignment in ("prefix", "identical"):
            told = "from which the likelihoods of chunks alone can be compared"
            return f"{told}, training.alignment is {alignment}, {differ}"
        return ""

    def coarse_problem(self, objective: str, temperature: float) -> str:
        """`problem` of a tier that keeps a part of the distribution, for a divergence that does with it."""
        return ""

    def learn(self, states: Any) -> dict[str, Any]:
        """What is the same for all tokens, from hidden states ``[n, d]`` of some: named tensors."""
        return {}

    def pack(self, states: Any, targets: Any, head: Any, learnt: dict[str, Any]) -> dict[str, Any]:
        """What is kept of some tokens: named tensors ``[n, …]``.

        Args:
            states: The teacher's last hidden states ``[n, d]``.
            targets: Ids of the actual tokens ``[n]``.
            head: The teacher's (`srd.models.head.HeadWeights`), cut to the ids that count.
            learnt: From `learn`.
        """
        raise NotImplementedError

    def pack_listed(self, listed: Sequence[Listed], targets: Sequence[int], width: int) -> dict[str, Any]:
        """`pack` from log-probabilities at temperature 1 that a server has listed, position by position.

        Args:
            listed: Of each position, in any order.
            targets: Ids of the actual tokens.
            width: Ids that count; others add to the rest.

        Raises:
            UserError: the tier needs hidden states, or a position lacks what it needs.
        """
        raise UserError(
            f"cache.tier: '{self.name}' is made of hidden states, which a list of log-probabilities does not give. "
            "Take topk or likelihood."
        )

    def unpack(self, kept: dict[str, Any], targets: Sequence[int], learnt: dict[str, Any]) -> Any:
        """What `pack` has kept as one tensor ``[n, w]`` for the loss."""
        raise NotImplementedError

    def listed_mass(self, kept: dict[str, Any]) -> Any:
        """The teacher's probability of the tokens that are listed, ``[n]``; None of a tier that lists none."""
        return None

    def head(self, head: Any, width: int | None) -> Any:
        """What turns rows of `unpack` into targets.

        Args:
            head: The teacher's; None for a tier without.
            width: Ids that count; None: all of the head's.
        """
        return head


def _check(name: str, given: Any) -> None:
    if not (isinstance(given, type) and issubclass(given, Tier)):
        raise UserError(f"the cache tier '{name}' is {given!r}: register a subclass of srd.training.tiers.base.Tier")
    if missing := [each for each in ("token_bytes", "pack", "unpack") if getattr(given, each) is getattr(Tier, each)]:
        raise UserError(f"the cache tier '{name}' lacks {', '.join(missing)}: see srd.training.tiers.base.Tier")


TIERS: Registry[type[Tier]] = Registry("cache tier", "srd.training.tiers", "unknown cache tier '{}'", check=_check)


def register_tier(name: str) -> Any:
    """Register a subclass of `Tier` under ``name``.

    Raises:
        UserError: the name is taken.
    """

    def decorate(tier: type[Tier]) -> type[Tier]:
        tier.name = name
        return TIERS.register(name)(tier)

    return decorate


def make_tier(name: str, **options: Any) -> Tier:
    """A tier by its name, with the fields of `TierOptions`.

    Raises:
        UserError: there is none; the message suggests the nearest.
    """
    temperatures = tuple(sorted({1.0, *options.pop("temperatures", ())}))  # its error is measured at 1
    return TIERS.get(name)(TierOptions(**options, temperatures=temperatures))


def tier_of(described: dict[str, Any] | None) -> Tier:
    """The tier that `Tier.described` describes; None: of a cache from before there were tiers."""
    options = dict(described or {"name": "exact"})
    name = options.pop("name")
    return make_tier(name, **options)


def stored_dtype(teacher_dtype: str) -> str:
    """The precision in which ``auto`` keeps the states of a teacher that runs in ``teacher_dtype``.

    A teacher that runs in bfloat16 has bfloat16 numbers, which nothing of that size keeps better; of float32 numbers
    float16 keeps more than bfloat16.
    """
    return "bfloat16" if teacher_dtype == "bfloat16" else "float16"
