"""What a teacher is to the loss: at every response position either its logits, or what its head turns into them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from srd.base.errors import UserError
from srd.models.head import HeadWeights, own_logits, response_logits
from srd.models.sharding import shard_for_inference
from srd.training.alignment import Reader
from srd.training.teachers.base import TeacherSource


class Teacher:
    """What the loss asks of a teacher.

    Args:
        head: Turns what `hidden` gives into logits, over the ids that teacher and student share.
        model: Frozen here; None for a teacher that is no model of this process.

    Attributes:
        reads_new_text: Whether it can be asked about text that the student writes while it trains.
        reader: Reads for it where its tokenizer is not the student's; its head then is whole.
    """

    reads_new_text: ClassVar[bool] = True

    def __init__(self, head: HeadWeights, model: Any = None) -> None:
        self.head, self.model = head, model
        self.reader: Reader | None = None
        self._is_sharded = False
        if model is not None:
            model.eval().requires_grad_(False)

    def hidden(self, batch: dict[str, Any]) -> Tensor:
        """What enters the head at the batch's response positions, ``[N, d]``; see `srd.data.batching.Collator`."""
        raise NotImplementedError

    def head_on(self, device: torch.device) -> HeadWeights:
        """The head, moved to a device at its first use there."""
        if self.head.weight.device != device:
            self.head = self.head.changed(lambda tensor: tensor.to(device))
        return self.head

    def shard(self) -> None:
        """Spread a model's weights over the processes; the head stays whole on each."""
        if self.model is not None and not self._is_sharded:
            self.head = self.head.changed(lambda tensor: tensor.detach().clone())
            shard_for_inference(self.model)
            self._is_sharded = True


class LogitTeacher(Teacher):
    """A teacher that gives logits: those of its model, unless a subclass says otherwise."""

    def __init__(self, source: TeacherSource) -> None:
        model = source.load()
        super().__init__(own_logits(model).cut(source.width), model)

    def logits(self, batch: dict[str, Any]) -> Tensor:
        """Logits at the batch's response positions, ``[N, V]``.

        Args:
            batch: ``input_ids [B, L]``, ``attention_mask``, ``index [N]`` (the positions, in ``[B · L]``) and
                ``targets [N]``; of an encoder-decoder also ``decoder_input_ids``.
        """
        return response_logits(self.model, batch)

    @torch.no_grad()
    def hidden(self, batch: dict[str, Any]) -> Tensor:
        logits, wanted = self.logits(batch), [len(batch["index"]), self.head.vocabulary]
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if not isinstance(found, list) or found[:1] != wanted[:1] or len(found) != 2 or found[1] < wanted[1]:
            raise UserError(f"{type(self).__name__}.logits gives {found}, expected a tensor {wanted}.")
        if type(self).logits is not LogitTeacher.logits:
            bad = (logits.isnan() | (logits == torch.inf)).any(-1) | (logits == -torch.inf).all(-1)
            if bool(bad.any()):
                count = f"{int(bad.sum())} of {len(bad)} positions"
                raise UserError(
                    f"{type(self).__name__}.logits gives NaN or infinity at {count}: no distribution has that."
                )
        return logits
