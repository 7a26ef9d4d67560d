"""Chat templates of our own in the shape of families of the last years, beside those of `tests.data.test_chat`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tests.tiny import chat_tokenizer

LOOP, ASK = "{%- for m in messages %}", "{%- if add_generation_prompt %}"
CHATML = ["<|im_start|>", "<|im_end|>"]
TURN = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
ASSISTANT = "{{ '<|im_start|>assistant\\n' }}"
SPLIT = (
    "{%- set ns = namespace(said=m.content, thought='') %}"  # what an assistant thought, and what it said
    "{%- if m.reasoning_content is string %}{%- set ns.thought = m.reasoning_content %}"
    "{%- elif '</think>' in m.content %}{%- set ns.said = m.content.split('</think>')[-1].lstrip('\\n') %}"
    "{%- set ns.thought = m.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
    "{%- endif %}"
)
DEEPSEEK = ["<｜User｜>", "<｜Assistant｜>"]
DEEPSEEK_CUT = (
    "{{ bos_token }}{%- for m in messages %}{%- if m.role == 'system' %}{{ m.content }}{%- elif m.role == 'user' %}"
    "{{ '<｜User｜>' + m.content }}{%- else %}{%- set content = m.content %}"
    "{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}{%- endif %}"
    "{{ '<｜Assistant｜>' + content + eos_token }}{%- endif %}{%- endfor %}"
)


@dataclass(frozen=True)
class Family:
    """A template with its control tokens, what ends a turn in it, and its arguments."""

    tokens: list[str]
    template: str
    end: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Any:
        """A tokenizer that has it."""
        return _tokenizer(tuple(self.tokens), self.template)


@cache
def _tokenizer(tokens: tuple[str, ...], template: str) -> Any:
    return chat_tokenizer(list(tokens), template)


QWEN3 = (
    LOOP + "{%- if m.role != 'assistant' %}" + TURN + "{%- else %}" + SPLIT + ASSISTANT
    + "{%- if loop.last %}{{ '<think>\\n' + ns.thought.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}"
    "{{ ns.said.lstrip('\\n') + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}" + ASK + ASSISTANT
)  # fmt: skip

# Thoughts are cut, moved, opened by the prompt, closed by it, or stand in a channel of their own.
THINKING: dict[str, Family] = {
    "deepseek r1": Family(
        DEEPSEEK, DEEPSEEK_CUT + ASK + "{{ '<｜Assistant｜><think>\\n' }}{%- endif %}", "<eos>"
    ),
    "deepseek r1, later": Family(DEEPSEEK, DEEPSEEK_CUT + ASK + "{{ '<｜Assistant｜>' }}{%- endif %}", "<eos>"),
    "deepseek v3.1, thinking": Family(
        DEEPSEEK, DEEPSEEK_CUT.replace("<｜Assistant｜>' + ", "<｜Assistant｜></think>' + ")
        + ASK + "{{ '<｜Assistant｜>' + ('<think>' if thinking else '</think>') }}{%- endif %}", "<eos>",
        {"thinking": True},
    ),
    "qwq": Family(
        CHATML, LOOP + "{%- set content = m.content %}{%- if m.role == 'assistant' and not loop.last %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
        "{{ '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}{%- endfor %}"
        + ASK + "{{ '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}", "<|im_end|>",
    ),
    "qwen 3": Family(CHATML, QWEN3 + "{%- endif %}", "<|im_end|>"),
    "qwen 3, thinking": Family(CHATML, QWEN3 + "{{ '<think>\\n' }}{%- endif %}", "<|im_end|>"),
    "glm 4.5": Family(
        ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>"],
        "[gMASK]<sop>" + LOOP + "{%- if m.role != 'assistant' %}{{ '<|' + m.role + '|>\\n' + m.content }}{%- else %}"
        + SPLIT + "{{ '<|assistant|>' }}{%- if loop.last and ns.thought %}{{ '\\n<think>' + ns.thought.strip() + "
        "'</think>' }}{%- else %}{{ '\\n<think></think>' }}{%- endif %}{{ '\\n' + ns.said.strip() }}{%- endif %}"
        "{%- endfor %}" + ASK + "{{ '<|assistant|>' }}{%- endif %}", "<|user|>",
    ),
    "harmony": Family(
        ["<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|call|>"],
        LOOP + "{%- if m.role != 'assistant' %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}"
        "{%- elif loop.last and not add_generation_prompt %}{%- if m.thinking %}{{ '<|start|>assistant<|channel|>"
        "analysis<|message|>' + m.thinking + '<|end|>' }}{%- endif %}"
        "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + eos_token }}"
        "{%- else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{%- endif %}"
        "{%- endfor %}" + ASK + "{{ '<|start|>assistant' }}{%- endif %}", "<eos>",
    ),
    "magistral": Family(
        ["[INST]", "[/INST]", "[THINK]", "[/THINK]"],
        "{{ bos_token }}" + LOOP + "{%- if m.role == 'assistant' %}{{ m.content + eos_token }}{%- else %}"
        "{{ '[INST]' + m.content + '[/INST]' }}{%- endif %}{%- endfor %}", "<eos>",
    ),
    "a tag that is a control token": Family(
        [*DEEPSEEK, "<think>", "</think>"], DEEPSEEK_CUT + ASK + "{{ '<｜Assistant｜><think>\\n' }}{%- endif %}",
        "<eos>",
    ),
}  # fmt: skip
