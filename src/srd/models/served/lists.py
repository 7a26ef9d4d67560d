"""What a served teacher says of training examples: lists of token ids and log-probabilities, each asked for once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from srd.base.errors import UserError
from srd.base.files import fingerprint
from srd.data.batching import learnt_spans
from srd.models.served.endpoint import Endpoint
from srd.models.served.journal import Journal

Listed = list[tuple[int, float]]  # token ids and log-probabilities of one position, in nats
MADE_AT_ONCE = 8  # times the requests that are under way: a group ends when its slowest is answered


class ServedLists:
    """Asks about examples, several at once; what is answered is kept until it is no longer needed."""

    def __init__(self, endpoint: Endpoint, journal: Journal, names: Mapping[str, str]) -> None:
        self.endpoint, self.journal, self.names = endpoint, journal, names

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> list[list[Listed]]:
        """Of each example, of each token that is learnt: the likeliest tokens and the token itself.

        Args:
            rows: ``prompt_ids``, ``response_ids``, and ``earlier`` where earlier answers are learnt.

        Raises:
            UserError: the server refuses a text, or a text begins with what is learnt.
            RunError: the server is away or busy for too long, or gives what cannot be used.
        """
        keys = [key_of(row) for row in rows]
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in self.journal}

        def ask(key: str) -> list[Listed]:
            return self._ask(self.names.get(key, key), missing[key])

        for key, listed in self.endpoint.client.in_parallel(ask, list(missing)):
            self.journal.add(key, listed)
        return [[[(token, value) for token, value in row] for row in self.journal[key]] for key in keys]

    @property
    def at_once(self) -> int:
        """Examples of one call: a call ends when the slowest of its requests is answered."""
        return MADE_AT_ONCE * self.endpoint.address.parallel

    def mean_losses(
        self, rows: Sequence[Mapping[str, Any]], progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float64]:
        """The teacher's mean nats a token of each example, ``[N]``."""
        means = []
        for start in range(0, len(rows), self.at_once):
            part = rows[start : start + self.at_once]
            for row, listed in zip(part, self(part), strict=True):
                text = [*row["prompt_ids"], *row["response_ids"]]
                own = [text[place] for first, end in learnt_spans(row) for place in range(first, end)]
                found = [dict(position)[token] for token, position in zip(own, listed, strict=True)]
                means.append(-sum(found) / max(1, len(found)))
            if progress:
                progress(len(means), len(rows))
        return np.array(means)

    def _ask(self, name: str, row: Mapping[str, Any]) -> list[Listed]:
        text, spans = [*row["prompt_ids"], *row["response_ids"]], learnt_spans(row)
        start = spans[0][0]
        if start == 0:
            raise UserError(
                f"example '{name}' has an empty prompt: a server says nothing of the first token of a text. Give it a "
                "prompt, or leave the row out."
            )
        likely = self.endpoint.say(name, text, start).likely
        return [list(likely[place - start].items()) for first, end in spans for place in range(first, end)]


def key_of(row: Mapping[str, Any]) -> str:
    """What an example is called in a journal: its tokens decide."""
    return fingerprint(list(row["prompt_ids"]), list(row["response_ids"]), list(row.get("earlier") or []))
