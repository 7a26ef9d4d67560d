"""What a score is: how hard each training example is for the student, as one number.

To add one, register a function of the scores' table::

    @srd.register_score("long_and_surprising", needs=["losses", "lengths"])
    def long_and_surprising(inputs):
        return inputs["ce"] * inputs["length"]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from srd.base.errors import UserError, nearest
from srd.base.failures import first_line
from srd.base.handed import check_call, check_kind, check_name
from srd.base.registry import Registry

if TYPE_CHECKING:
    import pyarrow as pa

Values = NDArray[np.float64]
#: What a score may need, and the column of the scores' table that holds it: ROUGE-L of the student's answer; mean nats
#: a token of the reference; its tokens; nats of its end; nats of all of it behind an empty prompt; mean nats, the end
#: left out, behind other rows' prompts; the teacher's mean nats a token; the greatest likeness to another row.
NEEDS = {
    "answers": "rouge_l", "losses": "ce", "lengths": "length", "endings": "end_nll", "unprompted": "unprompted_nll",
    "mismatched": "mismatched_nll", "teacher": "teacher_ce", "likeness": "likeness",
}  # fmt: skip
FROM_REFLECTION = frozenset({"answers", "losses"})  # what the reflection says
#: What the student is read for beside the reflection, and how many passes over the responses that takes; the
#: reflection's own gives the nats of the end.
PASSES = {"endings": 0.0, "unprompted": 1.0, "mismatched": 3.0}
FROM_STUDENT = FROM_REFLECTION | PASSES.keys()  # what only the student can say
#: Names for several scores that are fused.
TOGETHER = {"fused": ("rouge_l", "ce")}


@dataclass(frozen=True)
class ScoreInputs:
    """What scores are computed from: ``inputs["ce"]`` is a column of the table, ``[N]`` in float64.

    Attributes:
        table: ``id`` and the columns that are needed, one row for each of N examples.
        seed: For a score that draws.
    """

    table: pa.Table
    seed: int = 0

    def __getitem__(self, column: str) -> Values:
        if column not in self.table.column_names:
            need = next((need for need, name in NEEDS.items() if name == column), None)
            remedy = f"ask for it: needs=['{need}']" if need else nearest(column, self.table.column_names)
            raise UserError(f"a score reads inputs['{column}'], which is not there; {remedy}")
        return self.table[column].to_numpy()


@dataclass(frozen=True)
class Score:
    """A registered score.

    Attributes:
        name: Its name in recipes.
        harder: Whether a high or a low value means a hard example.
        needs: What it is computed from, of `NEEDS`.
        compute: Its function.
        drawn: Whether it follows the seed.
    """

    name: str
    harder: Literal["high", "low"]
    needs: frozenset[str]
    compute: Callable[[ScoreInputs], Values]
    drawn: bool = False

    def difficulty(self, inputs: ScoreInputs) -> Values:
        """The values, high for hard examples, ``[N]``, finite or not."""
        values = one_each(f"the score '{self.name}'", self.compute(inputs), inputs.table["id"], finite=False)
        return values if self.harder == "high" else -values


def one_each(what: str, given: Any, ids: pa.ChunkedArray, *, finite: bool = True) -> Values:
    """What a score or a fusion has given, as numbers ``[N]``, all of them finite or not.

    Raises:
        UserError: it is not one such number for each example.
    """
    wanted = f"{what} must give one {'finite ' if finite else ''}number for each of the {len(ids)} examples"
    try:
        values = np.asarray(given.detach() if hasattr(given, "detach") else given)
        values = values.astype(np.float64) if values.dtype.kind in "biuf" else values
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{wanted}: {first_line(error)}") from error
    if values.shape != (len(ids),) or values.dtype != np.float64:
        many = f"values of type {values.dtype} {list(values.shape)}"
        raise UserError(f"{wanted}, but gives {f'one {type(given).__name__}' if values.ndim == 0 else many}")
    if finite and (bad := ids.filter(~np.isfinite(values)).to_pylist()):
        raise UserError(f"{wanted}: {len(bad)} are NaN or infinite, first of '{bad[0]}'")
    return values


def _check(name: str, score: Any) -> None:
    """Refuse a bare function, which an entry point may name."""
    check_kind(f"the score '{name}'", score, Score, "name a module that calls srd.register_score")


SCORES: Registry[Score] = Registry("score", "srd.curation.scores", check=_check)


def register_score(
    name: str, *, harder: Literal["high", "low"] = "high", needs: Iterable[str] = (), drawn: bool = False
) -> Callable[[Callable[[ScoreInputs], Any]], Callable[[ScoreInputs], Any]]:
    """Register ``function(inputs) -> values``, a number for each of N examples, under ``name``.

    One that is not finite says that the example cannot be scored: it is refused, or dropped (`data.bad_rows`).

    Args:
        name: The name in recipes and for `srd.rank`.
        harder: Whether a high or a low value means a hard example.
        needs: Of `NEEDS`, such as ``answers`` (``inputs["rouge_l"]``), ``losses`` (``inputs["ce"]``) or ``lengths``
            (``inputs["length"]``, tokens of the reference).
        drawn: Whether the function follows ``inputs.seed``.

    Raises:
        UserError: the name is taken, or there is no such need.
    """
    check_name("score", name)
    columns = {column: need for need, column in NEEDS.items()}
    for need in (wanted := frozenset([needs] if isinstance(needs, str) else needs)) - NEEDS.keys():
        known = f"that column is asked for as '{columns[need]}'" if need in columns else nearest(need, NEEDS)
        raise UserError(f"the score '{name}' needs '{need}'; {known}")
    if harder not in ("high", "low"):
        raise UserError(
            f"the score '{name}' has harder={harder!r}: say 'high' or 'low', whichever means a hard example"
        )
    if name in TOGETHER:
        raise UserError(f"there is a score '{name}' already: register yours under another name")

    def decorate(function: Callable[[ScoreInputs], Any]) -> Callable[[ScoreInputs], Any]:
        check_call(f"the score '{name}'", function, "inputs")
        SCORES.register(name, of=function)(Score(name, harder, wanted, function, drawn))
        return function

    return decorate


def scores_of(by: str | Sequence[str]) -> list[Score]:
    """The scores that a name stands for, or several names.

    Raises:
        UserError: there is no such score, or it is there twice.
    """
    names = [str(each) for each in by] if isinstance(by, list | tuple) else [str(by)]
    if not names:
        raise UserError(f"there is no score to rank by. Known: {', '.join(sorted([*SCORES.names(), *TOGETHER]))}")
    parts = [part for name in names for part in TOGETHER.get(name, (name,))]
    for part in parts:
        if part not in SCORES:
            raise UserError(f"unknown score '{part}' to rank by; {nearest(part, [*SCORES.names(), *TOGETHER])}")
    if twice := [part for place, part in enumerate(parts) if part in parts[:place]]:
        raise UserError(f"the score '{twice[0]}' is there twice to rank by: name each once")
    return [SCORES.get(part) for part in parts]


def columns_of(scores: Iterable[Score]) -> list[str]:
    """The columns of the scores' table that some scores need."""
    wanted = {need for score in scores for need in score.needs}
    return [column for need, column in NEEDS.items() if need in wanted]


def asks_student(by: str | Sequence[str]) -> bool:
    """Whether ranking by this needs the student."""
    return any(score.needs & FROM_STUDENT for score in scores_of(by))


def measured_needs(by: str | Sequence[str]) -> set[str]:
    """What ranking by this needs beside the reflection and the rows themselves."""
    return {need for score in scores_of(by) for need in score.needs} - FROM_REFLECTION - {"lengths"}
