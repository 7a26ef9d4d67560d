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

DATE = "{{ 'Today: ' + strftime_now('%d %b %Y') }}"
# Others, each with what is its own: system prompts of theirs, dates, spaces, tags of Jinja that transformers adds.
ANSWERING: dict[str, Family] = {
    "llama 2": Family(
        [], LOOP + "{%- if m.role == 'system' %}{{ '<<SYS>>' + m.content + '<</SYS>>' }}{%- elif m.role == 'user' %}"
        "{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}{%- else %}"
        "{{ ' ' + m.content.strip() + ' ' + eos_token }}{%- endif %}{%- endfor %}", "<eos>",
    ),
    "llama 3.1": Family(
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\n' }}" + DATE + "{{ '<|eot_id|>' }}" + LOOP
        + "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}"
        "{%- endfor %}" + ASK + "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}", "<|eot_id|>",
    ),
    "granite": Family(
        ["<|start_of_role|>", "<|end_of_role|>"],
        "{%- if messages[0].role != 'system' %}" + DATE + "{{ eos_token + '\\n' }}{%- endif %}" + LOOP
        + "{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + eos_token + '\\n' }}{%- endfor %}"
        + ASK + "{{ '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}", "<eos>",
    ),
    "smollm 3": Family(
        CHATML, DATE + LOOP + "{%- if m.role == 'assistant' %}{%- generation %}{{ '<|im_start|>assistant\\n"
        "<think>\\n\\n</think>\\n' + m.content.lstrip('\\n') + '<|im_end|>\\n' }}{%- endgeneration %}{%- else %}" + TURN
        + "{%- endif %}{%- endfor %}" + ASK + "{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' }}{%- endif %}",
        "<|im_end|>",
    ),
    "qwen 2.5": Family(
        CHATML, "{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{%- endif %}"
        + LOOP + TURN + "{%- endfor %}" + ASK + ASSISTANT + "{%- endif %}", "<|im_end|>",
    ),
    "phi 4": Family(
        [*CHATML, "<|im_sep|>"], LOOP + "{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}"
        "{%- endfor %}" + ASK + "{{ '<|im_start|>assistant<|im_sep|>' }}{%- endif %}", "<|im_end|>",
    ),
    "mistral 7": Family(
        ["[INST]", "[/INST]"], "{{ bos_token }}" + LOOP + "{%- if m.role == 'assistant' %}{{ m.content + eos_token }}"
        "{%- else %}{{ '[INST]' + m.content + '[/INST]' }}{%- endif %}{%- endfor %}", "<eos>",
    ),
    "command r": Family(
        ["<|START|>", "<|STOP|>", "<|USER|>", "<|BOT|>"], "{{ bos_token }}" + LOOP
        + "{{ '<|START|>' + ('<|USER|>' if m.role == 'user' else '<|BOT|>') + m.content.strip() + '<|STOP|>' }}"
        "{%- endfor %}" + ASK + "{{ '<|START|><|BOT|>' }}{%- endif %}", "<|STOP|>",
    ),
    "olmo": Family(
        [], LOOP + "{{ '<|' + m.role + '|>\\n' + m.content + (eos_token if m.role == 'assistant' else '') }}"
        "{%- if not loop.last %}{{ '\\n' }}{%- elif add_generation_prompt %}{{ '\\n<|assistant|>\\n' }}{%- endif %}"
        "{%- endfor %}", "<eos>",
    ),
    "loops that are left": Family(
        CHATML, LOOP + "{%- if m.role == 'system' %}{%- continue %}{%- endif %}" + TURN
        + "{%- if loop.index > 90 %}{%- break %}{%- endif %}{%- endfor %}" + ASK + ASSISTANT + "{%- endif %}",
        "<|im_end|>",
    ),
}  # fmt: skip
