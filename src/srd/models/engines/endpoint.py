"""A teacher behind a server as an engine: it writes its text there, several prompts at once.

It is the engine of a teacher with ``teacher.endpoint``, whichever engine the student's text is written by. What the
server has answered is kept, so that a run that is killed asks for nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from srd.base.errors import UserError
from srd.base.files import fingerprint
from srd.models.engines.base import ENGINES, EngineKind
from srd.models.generation import Decoding
from srd.models.never_trains import NeverTrains
from srd.models.reading import Scored
from srd.models.served.endpoint import Endpoint
from srd.models.served.journal import Journal


class ServedWriter(NeverTrains):
    """A served model where text is written; stands where a model does in `srd.models.generation.generate_tokens`."""

    def __init__(self, endpoint: Endpoint, tokenizer: Any, journal: Journal) -> None:
        self.endpoint, self.tokenizer, self.journal = endpoint, tokenizer, journal
        self.generation_config = self.config = SimpleNamespace(eos_token_id=None)  # the tokenizer says what ends a text

    def decode_batch(
        self,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str],
        decoding: Decoding,
        stop: Sequence[int],
        references: Sequence[Sequence[int]] | None,
        width: int | None = None,
    ) -> tuple[list[list[int]], list[Scored]]:
        """What `srd.models.generation.decode_batch` gives, without scores."""
        assert references is None, "a served teacher scores through its cache"
        way = vars(decoding) if decoding.temperature else {"longest": decoding.max_new_tokens}
        sampled = [names] if decoding.temperature else [[""] * len(names)]
        keys = [fingerprint(list(prompt), name, way) for prompt, name in zip(prompts, *sampled, strict=True)]
        missing = {key: i for i, key in enumerate(keys) if key not in self.journal}

        def ask(key: str) -> list[int]:
            i = missing[key]
            return self.endpoint.write(names[i], prompts[i], decoding, stop, self.tokenizer)

        for key, ids in self.endpoint.client.in_parallel(ask, list(missing)):
            self.journal.add(key, ids)
        return [list(self.journal[key]) for key in keys], []


class Served(EngineKind):
    """What writes for a teacher that has an endpoint."""

    def check(self, encoder_decoder: bool, models: Sequence[Any]) -> None:
        raise UserError(
            "generation.engine=endpoint: the student's text is written here. A teacher behind a server is named by "
            "teacher.endpoint, and writes there by itself. Set generation.engine to transformers or vllm."
        )

    def load(self, source: str, longest: int, options: dict[str, Any], load_model: Callable[[], Any]) -> Any:
        endpoint: Endpoint = options["endpoint"]
        endpoint.check(options["tokenizer"], longest, needs_likelihoods=False)
        return ServedWriter(endpoint, options["tokenizer"], endpoint.goes_on_with(Journal(options["journal"])))


ENGINES.register("endpoint")(Served())
