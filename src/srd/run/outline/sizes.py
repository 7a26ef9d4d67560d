"""How large a model is, in numbers: of its configuration alone, so that no weight is read."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from srd.base.errors import UserError
from srd.recipe.schema import Recipe
from srd.training.settings import TrainingConfig

if TYPE_CHECKING:  # a plan is made without this library, where the models are known
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Size:
    """A model in numbers.

    Attributes:
        parameters: All of them.
        blocks: Those of the blocks: each takes part in every token.
        head: Those of the output head, shared with the embedding or not.
        hidden_size: Width.
        keys: Width of what a layer keeps of a token as keys, and as values: less than its own where heads share them,
            and none without attention.
        layers: Blocks, encoder and decoder together.
        vocabulary: Width of the head.
        dtype: Precision of its saved weights.
        encoder_decoder: Whether the prompt goes to an encoder, so that a token meets half of the blocks.
        adapters: Parameters of an adapter of rank 1 on it, by its targets; ``usual``: where none are named.
    """

    parameters: int
    blocks: int
    head: int
    hidden_size: int
    keys: int
    layers: int
    vocabulary: int
    dtype: str
    encoder_decoder: bool
    adapters: dict[str, int] = field(default_factory=dict)

    def trained(self, training: TrainingConfig) -> int:
        """Parameters that a training changes, and a checkpoint of it holds: all of them, or an adapter's."""
        return (
            training.lora.r * self.adapters[str(training.lora.targets or "usual")] if training.lora else self.parameters
        )

    def forward(self, prompt: float, response: float) -> float:
        """FLOPs of one forward pass over so many prompt and response tokens."""
        blocks = self.blocks / 2 if self.encoder_decoder else self.blocks
        return 2 * (blocks * (prompt + response) + self.head * response)


def size_of(config: PreTrainedConfig | Size, *trainings: TrainingConfig | None) -> Size:
    """A model in numbers, from its configuration, and the adapters that ``trainings`` put on it.

    Raises:
        UserError: adapters cannot be put on it.
    """
    if isinstance(config, Size):
        return config
    from srd.models.loading.architecture import check_lora, count_parameters, precision_of

    counts, loras = count_parameters(config), [each.lora for each in trainings if each and each.lora]
    text = config.get_text_config()
    layers = int(text.num_hidden_layers)
    if config.is_encoder_decoder:
        layers += int(getattr(config, "num_decoder_layers", None) or layers)
    return Size(
        counts["total"], counts["layers"], counts["head"] or counts["embedding"], int(text.hidden_size), _keys(text),
        layers, int(text.vocab_size), precision_of(config), bool(config.is_encoder_decoder),
        {str(lora.targets or "usual"): check_lora(config, lora) // lora.r for lora in loras},
    )  # fmt: skip


def _keys(text: Any) -> int:
    """Width of a layer's keys; that of the layer where no heads share them, and 0 of a state-space model."""
    heads = getattr(text, "num_attention_heads", None)
    if not heads:
        return 0
    shared = getattr(text, "num_key_value_heads", None)
    width = getattr(text, "head_dim", None) or int(text.hidden_size) // int(heads)
    return int(shared) * int(width) if shared else int(text.hidden_size)


def sizes_of(recipe: Recipe, configs: Sequence[PreTrainedConfig | Size]) -> tuple[Size, Size]:
    """Teacher and student in numbers; a served teacher takes nothing here and says what the student's ids allow.

    Args:
        recipe: The recipe.
        configs: Of `Recipe.models_here`; or what they come to, where the student loses no layers.

    Raises:
        UserError: the student would lose all its layers.
    """
    config: Any = configs[-1]
    config = shortened(config, recipe.student.drop_layers) if recipe.student.drop_layers else config
    student = size_of(config, *recipe.student_trainings)
    if recipe.teacher.endpoint is not None:
        return Size(0, 0, 0, 0, 0, 0, student.vocabulary, "float32", False), student
    return size_of(configs[0], recipe.teacher.sft), student


def whole_size(recipe: Recipe, configs: Sequence[PreTrainedConfig | Size]) -> Size | None:
    """The model that the student is shortened from, its own or the teacher, in numbers; None where it is not."""
    return size_of(configs[-1]) if recipe.student.drop_layers else None


def other_sizes(recipe: Recipe, configs: Sequence[PreTrainedConfig | Size]) -> tuple[Size, ...]:
    """The teachers behind the first, in numbers, of the same configurations as in `sizes_of`."""
    count = len(recipe.all_teachers) - 1
    return tuple(map(size_of, configs[1:-1])) if len(configs) == count + 2 else sizes_of(recipe, configs)[:1] * count


def shortened(config: PreTrainedConfig, drop: int | list[int]) -> PreTrainedConfig:
    """The configuration with so many layers less in every stack; which ones they are does not change its size."""
    from srd.models.pruning import DEPTH_NAMES, PER_LAYER_NAMES, is_set

    count = drop if isinstance(drop, int) else len(drop)
    config = copy.deepcopy(config)
    stacks = DEPTH_NAMES.values() if config.is_encoder_decoder else [("num_hidden_layers",)]
    inner = config if config.is_encoder_decoder else config.get_text_config()
    for name in (name for names in stacks for name in names if hasattr(inner, name)):
        depth = getattr(inner, name)
        if count >= depth:
            raise UserError(f"student.drop_layers drops {count} of {depth} layers: at least one must remain")
        for values in PER_LAYER_NAMES:
            if is_set(inner, values) and getattr(inner, values, None) and len(getattr(inner, values)) == depth:
                setattr(inner, values, getattr(inner, values)[: depth - count])
        setattr(inner, name, depth - count)
    return config
