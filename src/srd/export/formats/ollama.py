"""Ollama: a GGUF file and a Modelfile with the prompt's frame and the stops that the student was trained with."""

from __future__ import annotations

from pathlib import Path

from srd.base.errors import UserError
from srd.base.files import atomic_write, write_text
from srd.data.portable_chat import usual_template
from srd.data.templates.base import Template, get_template
from srd.data.turns import turns_of
from srd.export.base import FORMATS, Exported, Format
from srd.export.formats.gguf import file_name
from srd.export.gguf import check_gguf_export, write_gguf
from srd.export.ollama_template import go_template
from srd.models.loading.architecture import position_limit

DEFAULT = "q8_0"
MODELFILE = "Modelfile"
CONTEXT = 4096  # tokens that a conversation may have, where the model takes as many


def names(exported: Exported) -> list[str]:
    """Both files, of a model that GGUF holds."""
    check_gguf_export(exported)
    return [file_name(exported, DEFAULT), MODELFILE]


def write(exported: Exported, folder: Path) -> None:
    """Write both."""
    text = modelfile(exported)
    with atomic_write(folder / file_name(exported, DEFAULT)) as partial:
        write_gguf(exported, partial, exported.settings.kind or DEFAULT)
    write_text(folder / MODELFILE, text)


def modelfile(exported: Exported) -> str:
    """The text of the Modelfile."""
    tokenizer, turns = exported.tokenizer, turns_of(exported.tokenizer)
    stops = sorted({str(tokenizer.decode([token])) for token in turns.stops})
    begin = str(tokenizer.decode(list(turns.before))) if turns.before else ""
    template = go_template(frame_of(exported), begin)
    temperature = exported.run.recipe.evaluation.temperature if exported.is_run else None
    lines = [
        f"FROM ./{file_name(exported, DEFAULT)}",
        f"TEMPLATE {_quoted(template)}",
        *(f"PARAMETER stop {_quoted(stop)}" for stop in stops),
        f"PARAMETER num_ctx {min(position_limit(exported.config) or CONTEXT, CONTEXT)}",
        *([f"PARAMETER temperature {temperature:g}"] if temperature is not None else []),
    ]
    return "\n".join(lines) + "\n"


def frame_of(exported: Exported) -> Template:
    """The frame that the student was trained with, most often; of a model alone its chat template, else none."""
    if not exported.is_run:
        return get_template("chat" if exported.tokenizer.chat_template else "plain", exported.tokenizer)
    return usual_template(exported.run.encoder.template, exported.run.split("train"))


def _quoted(text: str) -> str:
    if '"""' in text:
        raise UserError(
            'the prompt\'s frame has """ in it, which a Modelfile cannot hold. Write the Modelfile by hand.'
        )
    return f'"""{text}"""'


def then(exported: Exported, folder: Path) -> str:
    """What to do with it."""
    return f"ollama create {exported.name} -f {folder / MODELFILE} && ollama run {exported.name}"


FORMATS.register("ollama")(Format("Ollama", names, write, then, takes=("kind",)))
