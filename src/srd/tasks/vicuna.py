"""VicunaEval: 80 open questions of nine kinds, with long reference answers and no inputs."""

from __future__ import annotations

from srd.tasks.base import Hub, register_task
from srd.tasks.instruction import InstructionTask

VICUNA = InstructionTask(
    name="vicuna",
    title="VicunaEval",
    licence="Apache-2.0",
    source="Vicuna, Chiang et al. 2023: 80 questions with GPT-4's answers",
    primary="rouge_l",
    hub=Hub("MiniLLM/Vicuna", split="train", file="valid.jsonl"),
)
register_task("vicuna")(VICUNA)
