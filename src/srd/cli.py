"""The command line ``srd``. Each command is a few lines on top of the library.

Exit status: 0 done, 1 failed while running, 2 wrong input or configuration (one message, no traceback), 128 and the
signal's number where one has stopped the command (130 for Ctrl-C).
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import shlex
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from srd.base.errors import RunError, UserError
from srd.base.text import is_text, visible
from srd.base.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from srd.base.console import Terminal


class _Commands(typer.core.TyperGroup):
    """All commands, each with its whole sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, str(command.help)) for name, command in self.commands.items()])


# Without rich the help is there in a third of a second; what a command prints is laid out by it all the same.
app = typer.Typer(
    cls=_Commands,
    help="Selective Reflection Distillation: a small language model from a large one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # or it looks for them in every installed package
LEAVE_OUT = "leave it out"
_opened = contextlib.ExitStack()  # closes the run that a command has opened
INTERRUPTED = 130  # what shells give for Ctrl-C
COMPLETION = "_SRD_COMPLETE"  # set where a shell asks what words may follow
OTHERS_WAIT = 10.0  # seconds that a process other than the main one waits before it prints an error

LARGEST_SEED = 2**32 - 1
RANKED = "curriculum/ranked.parquet"
# What stands in a recipe in the place of an option of `srd evaluate MODEL --task`.
RECIPE_SAYS = {
    "plugin": "set plugins=[…]",
    "limit": "set evaluation.limit=",
    "seeds": "set evaluation.seeds=[…]",
    "against": "a recipe compares all its models",
    "output": "the results of a recipe go into its run directory",
    "template": "set data.template=",
    "batch_size": "set generation.batch_size=",
    "max_new_tokens": "set generation.max_new_tokens=",
    "max_prompt_length": "set data.max_prompt_length=",
    "samples": "give --task",
    "temperature": "set evaluation.temperature=",
    "allow_code_execution": "set evaluation.allow_code_execution=true",
    "trust_remote_code": "set teacher.trust_remote_code=true, or of the student",
}


def _shipped(incomplete: str) -> list[str]:
    """Names of shipped recipes that begin so, for the shell's completion; files it finds itself."""
    from srd.recipe.files import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]


InSandbox = Annotated[bool, typer.Option("--allow-code-execution", help="Run generated programs (mbpp) in a sandbox.")]
Unconfined = Annotated[
    bool, typer.Option("--allow-unconfined-code-execution", help="Run them without one, with your own rights.")
]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings.")]
RecipeArgument = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.", autocompletion=_shipped),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Changes to the recipe's settings.")
]
Plugins = Annotated[
    list[str] | None, typer.Option("--plugin", help="A .py file or a module with what you have registered; several.")
]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="Where to work. Default: runs/<name of the recipe>.")]


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"srd {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """What stands before any command."""


def open_run(recipe: str, overrides: list[str] | None, run_dir: Path | None, *, effects: bool = True) -> Any:
    """Load the recipe and claim its run directory."""
    from srd.api import open_run as claim
    from srd.base.console import console
    from srd.base.failures import work_in

    run = claim(recipe, overrides or [], run_dir, effects=effects)
    _opened.callback(run.close)
    work_in(run.folder)
    console.print(f"[bold]{run.recipe.name}[/] [dim]in {run.folder}[/]")
    return run


def write_report(run: Any) -> Path | None:
    """Write the report from whatever the run directory holds."""
    from srd.base import parallel
    from srd.report.page import build_report
    from srd.run.flow import check_written

    parallel.together(lambda: check_written(run) if parallel.is_main() else None)
    return build_report(run.folder) if parallel.is_main() else None


@app.command("run")
def run_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    engine: Annotated[
        str | None, typer.Option(help="local, or ray: work that falls into shards is done on a Ray cluster.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster, such as ray-head:6379. Default: RAY_ADDRESS, else this machine alone."),
    ] = None,
) -> None:
    """Run a whole recipe: examples to report. Running it again resumes it."""
    from srd.base import parallel
    from srd.base.console import console
    from srd.report.summary import print_summary
    from srd.run.flow import advance

    cluster = {"engine": engine, "address": address}
    given = [f"cluster.{name}={value}" for name, value in cluster.items() if value is not None]
    run = open_run(recipe, [*(overrides or []), *given], run_dir)
    advance(run)
    write_report(run)
    if parallel.is_main():
        print_summary(run.folder, console)


@app.command()
def demo(overrides: Overrides = None, run_dir: RunDir = None) -> None:
    """Teach SmolLM2-135M the standard library's documentation, a fifth of it damaged and repaired (twelve minutes)."""
    run_command("demo", overrides, run_dir)


@app.command()
def recipes(
    name: Annotated[
        str | None,
        typer.Argument(help="Show this recipe with every default written out.", autocompletion=_shipped),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors.")] = False,
    comments: Annotated[bool, typer.Option("--comments", help="With what each setting means beside it.")] = False,
) -> None:
    """List the shipped recipes."""
    if schema and name:
        raise UserError(f"'{name}' has no effect with --schema: leave one of them out")
    if comments and not name:
        raise UserError("--comments is for one recipe: name it, as in srd recipes demo --comments")
    if schema:
        from srd.recipe.schema import Recipe

        print(json.dumps(Recipe.model_json_schema(), indent=2))
    elif name:
        from srd.recipe.comments import commented
        from srd.recipe.reading import load_recipe, recipe_yaml

        _echo((commented if comments else recipe_yaml)(load_recipe(name)).rstrip("\n"))
    else:
        from rich.table import Table

        from srd.recipe.files import read_recipe, shipped_recipes

        table = Table("recipe", "what it does", box=None, pad_edge=False)
        for known, path in shipped_recipes().items():
            table.add_row(known, read_recipe(path).get("description", ""))
        _echo(_plain(table))


def _echo(text: object) -> None:
    """Print on standard output: as it is for a program that reads it, fit to be shown on a terminal."""
    typer.echo(visible(str(text)) if sys.stdout.isatty() else str(text))


def _terminal(width: int, **options: Any) -> Terminal:
    """Standard output, as wide as the terminal; else as it is told."""
    from srd.base.console import Terminal, console

    return Terminal(width=console.width if console.is_terminal else width, **options)


def _plain(table: Table) -> str:
    wide = _terminal(160)
    with wide.capture() as captured:
        wide.print(table)
    return captured.get().rstrip()


def _without_effect(context: typer.Context, why: str, **remedies: str) -> None:
    """Refuse options that were given and would do nothing: parameter name -> what to do instead."""
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if parameter.name in remedies and source is not None and source.name == "COMMANDLINE":
            given = parameter.opts[-1] if parameter.opts[-1].startswith("-") else f"'{context.params[parameter.name]}'"
            raise UserError(f"{given} {why}: {remedies[parameter.name]}")


def _load_plugins(names: list[str] | None) -> None:
    """Import the user's own modules, where there is no recipe to name them."""
    from srd.base.plugins import import_plugin

    for name in names or []:
        import_plugin(name)


def _check_programs(context: typer.Context, tasks: list[str]) -> None:
    """Refuse a permission that no task needs."""
    from srd.tasks.base import get_task

    if not any(get_task(name.partition("=")[0]).runs_code for name in tasks):
        why = f"has no effect where no program is run (--task {', '.join(tasks) or 'is not given'})"
        _without_effect(context, why, allow_code_execution=LEAVE_OUT, unconfined=LEAVE_OUT)


def _folder(path: Path) -> Path:
    """The folder that ``-o`` names, which may not be there yet, and is no run's."""
    from srd.run.folder import check_outside

    if (path.is_symlink() and not path.exists()) or (path.exists() and not path.is_dir()):
        raise UserError(f"-o {path} is no folder. Name another one.")
    check_outside(path)
    return path


def _step(name: str, recipe: str, overrides: list[str] | None, run_dir: Path | None) -> Any:
    from srd.run.flow import advance, cleaned_steps, training_steps

    run = open_run(recipe, overrides, run_dir)
    wanted = {"training": training_steps, "cleaned": cleaned_steps}
    advance(run, *(wanted[name](run.recipe) if name in wanted else [name]))
    return run


@app.command()
def sft(recipe: RecipeArgument, overrides: Overrides = None, run_dir: RunDir = None) -> None:
    """Fine-tune the recipe's teacher (if it says so)."""
    _step("teacher", recipe, overrides, run_dir)


@app.command("clean")
def clean_command(recipe: RecipeArgument, overrides: Overrides = None, run_dir: RunDir = None) -> None:
    """Find the training rows that are wrong; drop, soften or repair them if the recipe says so, else only mark them."""
    from srd.recipe.reading import load_recipe

    if load_recipe(recipe, overrides or [], effects=False).data.cleaning.action == "off":
        overrides = [*(overrides or []), "data.cleaning.action=report"]
    _echo(_step("cleaned", recipe, overrides, run_dir).files.marked)


@app.command("reflect")
def reflect_command(recipe: RecipeArgument, overrides: Overrides = None, run_dir: RunDir = None) -> None:
    """Let the student answer the training prompts, and score the answers."""
    _echo(_step("reflection", recipe, overrides, run_dir).files.scores)


def _to_rank(scores: Path, output: Path) -> list[dict[str, Any]]:
    """The rows of a file of scores; refuses to write ranked ones where something else is."""
    from srd.base.tables import check_target
    from srd.data.sources import read_scores
    from srd.run.folder import check_outside

    check_target(output)
    check_outside(output)
    if output.exists() and scores.exists() and output.samefile(scores):
        raise UserError(f"-o {output} is the file of the scores, which would be written over. Name another one.")
    return read_scores(scores)


@app.command("rank")
def rank_command(
    context: typer.Context,
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="A recipe; or use --scores.")] = None,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    scores: Annotated[Path | None, typer.Option(help="JSONL, CSV or parquet: id, and what --by needs.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write: .parquet, .csv or .jsonl.")
    ] = None,
    k: Annotated[float, typer.Option(min=0, max=1e9, help="Constant of the rank fusion.")] = 60,
    by: Annotated[str, typer.Option(help="fused, rouge_l, ce, eos, pmi, … random, or several: NAME,NAME.")] = "fused",
    fusion: Annotated[str, typer.Option(help="Of several scores: rrf, mean_rank or max_rank.")] = "rrf",
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="For --by random.")] = 0,
    drop_bad: Annotated[bool, typer.Option("--drop-bad", help="Drop rows with a score that is not finite.")] = False,
    plugin: Plugins = None,
) -> None:
    """Rank the training data of a recipe, or a file of scores."""
    if scores is None:
        if recipe is None:
            raise UserError("nothing to rank: give a RECIPE, or --scores FILE -o FILE")
        _without_effect(
            context,
            "is for --scores FILE",
            output=f"the ranked rows of a recipe go into its run directory, {RANKED}",
            k="set training.curriculum.k=",
            by="set training.curriculum.score=",
            fusion="set training.curriculum.fusion=",
            seed="set training.curriculum.seed=",
            drop_bad="set data.bad_rows=drop",
            plugin="set plugins=[…]",
        )
        _echo(_step("ranking", recipe, overrides, run_dir).files.ranked)
        return
    _without_effect(context, "has no effect with --scores", recipe=LEAVE_OUT, run_dir=LEAVE_OUT)
    _load_plugins(plugin)
    from srd.curation.scores.base import scores_of

    names = by.split(",") if "," in by else by
    chosen = scores_of(names)
    if not any(score.drawn for score in chosen):
        _without_effect(context, f"has no effect with --by {by}", seed="it is for --by random")
    if len(chosen) == 1:
        _without_effect(context, f"has no effect with --by {by}, one score alone", k=LEAVE_OUT, fusion=LEAVE_OUT)
    elif fusion in ("mean_rank", "max_rank"):
        _without_effect(context, f"has no effect with --fusion {fusion}", k="it is for --fusion rrf")
    if output is None:
        raise UserError("--scores needs -o FILE: where the ranked rows go (.parquet, .csv or .jsonl)")
    from srd.base.console import set_up_logging
    from srd.base.tables import write_table
    from srd.curation.ranking import rank

    set_up_logging()
    rows = _to_rank(scores, output)
    try:
        ranked = rank(rows, k=k, by=names, fusion=fusion, seed=seed, bad_rows="drop" if drop_bad else "error")
    except UserError as error:
        raise UserError(f"{scores}: {error}") from error
    write_table(ranked, output)
    _echo(output)


@app.command()
def distill(recipe: RecipeArgument, overrides: Overrides = None, run_dir: RunDir = None) -> None:
    """Train the recipe's students, with everything that must come before."""
    run = _step("training", recipe, overrides, run_dir)
    _echo(run.files.student(run.recipe.training.label))


@app.command("evaluate")
def evaluate_command(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="RECIPE|MODEL", help="A recipe; or with --task a model folder or name.")
    ],
    overrides: Overrides = None,
    run_dir: RunDir = None,
    task: Annotated[list[str] | None, typer.Option(help="NAME or NAME=FILE; may be given several times.")] = None,
    plugin: Plugins = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many examples of each task.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 10,20,30. Default: the task's own.")] = None,
    against: Annotated[str | None, typer.Option(help="A second model, compared by paired bootstrap.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for predictions and metrics.")] = Path(
        "evaluation"
    ),
    template: Annotated[str | None, typer.Option(help="Prompt template. Default: the task's own.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at once.")] = 32,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer. Default: the task's own.")] = None,
    max_prompt_length: Annotated[
        int | None, typer.Option(min=1, help="Longest prompt in tokens. Default: what the model takes.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each prompt, for pass@k (mbpp).")] = 1,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=100, help="Of sampling; 0 is greedy. Default: the task's own.")
    ] = None,
    allow_code_execution: InSandbox = False,
    unconfined: Unconfined = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Evaluate the models of a recipe, or any model on tasks."""
    if not task:
        _without_effect(context, "is for --task", **RECIPE_SAYS)
        _echo(_step("cards", model, overrides, run_dir).files.results)
        return
    from srd.base import parallel
    from srd.base.console import console, set_up_logging
    from srd.evaluation.models import evaluate_models, read_benchmarks, results_table
    from srd.sandbox.outside import permission

    if overrides:
        raise UserError(f"'{overrides[0]}': with --task there is no recipe to change. Use the command's options.")
    _without_effect(context, "has no effect with --task", run_dir="-o says where answers and metrics go")
    _load_plugins(plugin)
    _check_programs(context, task)
    set_up_logging()
    folder, allowed = _folder(output), permission(allow_code_execution, unconfined)
    benchmarks = read_benchmarks(
        task, limit=limit, seeds=seeds, template=template, max_new_tokens=max_new_tokens, samples=samples,
        temperature=temperature, allow_code_execution=allowed,
    )  # fmt: skip
    results = evaluate_models(
        [model, *([against] if against else [])], benchmarks, folder, batch_size=batch_size,
        max_prompt_length=max_prompt_length, allow_code_execution=allowed, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    if not parallel.is_main():
        return
    console.print(results_table(results), f"[dim]answers and metrics: {output}[/]", sep="\n")
    if not sys.stdout.isatty():
        print(json.dumps(results, indent=2))


@app.command()
def report(recipe: RecipeArgument, overrides: Overrides = None, run_dir: RunDir = None) -> None:
    """Write the HTML report of a run from what it has so far."""
    from srd.api import check_made_by

    check_made_by(recipe, overrides or [], run_dir)
    _echo(write_report(open_run(recipe, overrides, run_dir, effects=False)))


@app.command("curate")
def curate_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for stage_0.jsonl …")] = Path("curated"),
    run_dir: RunDir = None,
    trainer: Annotated[
        str | None,
        typer.Option("--for", help="trl, axolotl, llamafactory, litgpt or jsonl: with what this trainer needs."),
    ] = None,
) -> None:
    """Reflect, rank and stage only: stage_<i>.jsonl files that any trainer can read."""
    from srd.export.curated import TRAINERS, curate_for
    from srd.run.curate import curate

    _folder(output)
    if trainer is not None:
        TRAINERS.name_of(trainer)
    run = open_run(recipe, overrides, run_dir)
    for path in curate(run, output) if trainer is None else curate_for(run, output, trainer):
        _echo(path)


@app.command("export")
def export_command(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory; for gguf and ollama also a model.")],
    to: Annotated[str, typer.Option("--to", help="gguf, ollama, lm-eval, axolotl-kd or distillkit.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write into.")],
    kind: Annotated[
        str | None,
        typer.Option(
            "--type", "--outtype", help="Of weights in GGUF: f32, f16, bf16, q8_0. Default: f16; ollama: q8_0."
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", min=1, max=2**16, help="Likeliest tokens of the teacher's that are kept. Default: 64."),
    ] = None,
) -> None:
    """Write a run's student, its test rows or its teacher's answers in the form of another tool."""
    from srd.base.console import console, set_up_logging
    from srd.export.base import FORMATS, Settings, export

    FORMATS.get(to)
    set_up_logging()
    paths, then = export(source, to, _folder(output), Settings(kind, top_k))
    for path in paths:
        _echo(path)
    console.print(f"[dim]next:[/] {_escaped(then)}", soft_wrap=True)


@app.command("chat")
def chat_command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run directory, or any model's folder or name.")],
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="Answer this and stop. Default: ask, or read stdin.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also the teacher's answer, and the student's before its training.")
    ] = False,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer. Default: as evaluated.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=100, help="Of sampling; 0 is greedy. Default: as evaluated.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(min=1e-6, max=1, help="Nucleus sampling. Default: as evaluated.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Fixes the samples.")] = 0,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Talk with a student; in a pipe, one prompt a line."""
    from srd.base.console import console, set_up_logging
    from srd.run.chat import chat_models, chosen

    set_up_logging()
    found, notes = chat_models(model, compare=compare, trust_remote_code=trust_remote_code)
    for note in notes:
        console.print(f"[dim]{_escaped(note)}[/]")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is no UTF-8 is then refused as such
    decoding = chosen(found[-1].decoding(), max_new_tokens, temperature, top_p, seed)
    if not decoding.temperature:
        sampled = "give --temperature, too, such as 0.8"
        _without_effect(context, "has no effect on greedy answers", top_p=sampled, seed=sampled)
    talk = _Talk(found, decoding)
    if prompt is not None:
        talk.answer(prompt)
    elif sys.stdin is not None and sys.stdin.isatty():
        talk.converse()
    else:
        for line in (line.rstrip("\r\n") for line in sys.stdin or ()):
            if line.strip():
                talk.answer(line)


class _Talk:
    """Questions and answers on the terminal, or through a pipe."""

    def __init__(self, models: list[Any], decoding: Any) -> None:
        self.models = models
        self.decoding = decoding
        self.turns: list[dict[str, str]] = []
        self.asked = 0

    def answer(self, question: str) -> None:
        """Answer one question that stands alone."""
        if not question.strip():
            raise UserError("the prompt is empty: give it a text, as in --prompt 'Why is the sky blue?'")
        self.turns = []
        self._say(question)

    def converse(self) -> None:
        """Ask until the person leaves with Ctrl-D; /new forgets what was said."""
        from srd.base.console import console

        console.print("[dim]Write a question and press Enter. /new begins a new conversation, Ctrl-D ends.[/]")
        while True:
            try:
                question = input("> ").strip()
            except EOFError:
                print()
                return
            if question == "/new":
                self.turns = []
            elif question:
                said = len(self.turns)
                try:
                    self._say(question)
                except UserError as error:  # such as a conversation that has grown too long
                    console.print(f"[bold red]error:[/] {_escaped(str(error))}", soft_wrap=True)
                    del self.turns[said:]

    def _say(self, question: str) -> None:
        if not is_text(question):
            raise UserError(f"the prompt '{visible(question)}' is no UTF-8 text: convert it, as by iconv -t UTF-8")
        self.turns.append({"role": "user", "content": question})
        self.asked += 1
        for model in self.models:
            if len(self.models) > 1:
                typer.echo(f"[{model.name}]" if not sys.stdout.isatty() else typer.style(model.name, bold=True))
            said = ""
            for piece in model.answer(self.turns, self.decoding, f"chat {self.asked}"):
                typer.echo(visible(piece) if sys.stdout.isatty() else piece, nl=False)
                sys.stdout.flush()
                said += piece
            typer.echo("")
        self.turns.append({"role": "assistant", "content": said})


@app.command("push")
def push_command(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run directory; with --data also a folder of srd curate.")
    ],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Where on the Hugging Face hub.")],
    data: Annotated[bool, typer.Option("--data", help="The curated training data in place of the student.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be uploaded, and stop.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it. Default: private.")] = False,
) -> None:
    """Upload a run's student with its card to the Hugging Face hub, private unless you say otherwise."""
    from srd.base.console import console, set_up_logging
    from srd.base.text import many, shown_bytes
    from srd.export.push import prepared, push

    set_up_logging()
    with prepared(run, repository, data=data) as upload:
        for name, size in upload.sizes.items():
            _echo(f"{shown_bytes(size):>9}  {name}")
        whose = "public" if public else "private"
        total = f"{many(len(upload.files), 'file')}, {shown_bytes(sum(upload.sizes.values()))}"
        console.print(f"{total} as a {whose} {upload.kind}: {upload.address}", soft_wrap=True)
        for note in upload.notes:
            console.print(f"[yellow]![/] {_escaped(note)}", soft_wrap=True)
        if dry_run:
            console.print("[dim]nothing was uploaded (--dry-run)[/]")
        else:
            _echo(push(upload, public=public))


@app.command("init")
def init_command(
    teacher: Annotated[str | None, typer.Option(help="The large model: hub name, folder, GGUF file, smollm2.")] = None,
    student: Annotated[
        str | None, typer.Option(help="The small one, likewise; or how many layers the teacher loses.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="File, folder, hub name, or a data set that srd knows.")] = None,
    epochs: Annotated[float | None, typer.Option(min=1e-3, help="Passes over the data in each stage.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the recipe: it is written to NAME.yaml.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
) -> None:
    """Write a first recipe from five answers, with comments, and say what it would cost."""
    from srd.base.files import write_text
    from srd.recipe.start import first_recipe, first_text

    given = {
        "teacher": ("Teacher, the large model (hub name, folder, GGUF file)", teacher, "smollm2"),
        "student": ("Student, the small model; or how many layers the teacher is to lose", student, "3"),
        "data": ("Data (file, folder, hub name, or a known data set)", data, "pydocs"),
        "epochs": ("Passes over the data in each stage", epochs, "3"),
        "name": ("Name of the recipe", name, "mine"),
    }
    answers = {key: _asked(key, *question) for key, question in given.items()}
    path = Path(f"{answers['name']}.yaml")
    if path.exists():
        raise UserError(f"{path} is there already, and is not written over. Give another --name, or move it away.")
    try:
        passes = float(answers.pop("epochs"))
    except ValueError:
        raise UserError("--epochs is a number of passes over the data, such as 3") from None
    recipe = first_recipe(**answers, epochs=passes, answer=max_new_tokens)
    write_text(path, first_text(recipe))
    _echo(path)
    try:
        plan_command(str(path), devices=1, nodes=1, flops_per_second=None, as_json=False)
    except UserError as error:
        again = shlex.join(["srd", "plan", str(path)])
        raise UserError(
            f"{error}\n{path} is written all the same. Correct it there and try {again}, or remove it and answer again."
        ) from error


def _asked(key: str, question: str, given: Any, usual: str) -> str:
    """What an option says, or else the person; without one the usual."""
    if given is not None:
        return str(given)
    if sys.stdin is None or not sys.stdin.isatty():
        from srd.base.console import console

        console.print(f"[dim]--{key} {usual}  (not given: {question})[/]", soft_wrap=True)
        return usual
    return str(typer.prompt(question, default=usual, err=True)).strip()


@app.command("plan")
def plan_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    devices: Annotated[int, typer.Option(min=1, max=2**20, help="Data-parallel devices of a machine.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, max=2**14, help="Machines; of more than one also what they gain.")] = 1,
    flops_per_second: Annotated[
        float | None,
        typer.Option(
            min=1.0, max=1e21, help="What one device does; 1.5e14 is about an A100. Default: measured on this machine."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what a run would do and cost (passes, steps, time, disk, memory), without loading a weight."""
    from srd.base.console import set_up_logging
    from srd.recipe.reading import load_recipe
    from srd.run.plan.machines import on_machines, print_machines
    from srd.run.plan.plan import make_plan, measured_flops_per_second, print_plan

    set_up_logging(libraries=False)
    loaded = load_recipe(recipe, overrides or [])
    made = make_plan(loaded, devices=devices, flops_per_second=flops_per_second or measured_flops_per_second())
    several = on_machines(loaded, made, nodes) if nodes > 1 else None
    if as_json:
        print(json.dumps({**made.as_json(), **({"machines": several.as_json()} if several else {})}, indent=2))
        return
    terminal = _terminal(120, highlight=False)
    print_plan(made, terminal)
    if several:
        print_machines(several, terminal)


@app.command("doctor")
def doctor_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=0, help="How many examples to show.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what the models will see and what will go wrong, before anything is computed."""
    from srd.base.console import set_up_logging
    from srd.recipe.reading import load_recipe
    from srd.report.doctor import print_diagnosis
    from srd.run.plan.doctor import examine
    from srd.run.plan.plan import measured_flops_per_second

    set_up_logging()
    found = examine(load_recipe(recipe, overrides or []), rows, measured_flops_per_second())
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        print_diagnosis(found, _terminal(120, highlight=False))


@app.command("sweep")
def sweep_command(
    context: typer.Context,
    sweep: Annotated[str, typer.Argument(metavar="SWEEP", help="A YAML file, or the name of a shipped sweep.")],
    overrides: Overrides = None,
    folder: Annotated[Path | None, typer.Option("--dir", help="Where to work. Default: sweeps/<name>.")] = None,
    list_cells: Annotated[bool, typer.Option("--list", help="List the cells and their state, run nothing.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Cells at a time, each in a process of its own.")] = 1,
) -> None:
    """Run a recipe under many settings and compare them in one table. Running it again makes what is missing."""
    from srd.base.console import console, set_up_logging
    from srd.sweep.page import print_sweep
    from srd.sweep.runner import Sweep
    from srd.sweep.settings import find_sweep

    if list_cells:
        _without_effect(context, "has no effect with --list", jobs=LEAVE_OUT)
    set_up_logging()
    opened = Sweep(find_sweep(sweep), folder, overrides)
    outcomes = opened.outcomes() if list_cells else opened.run(jobs)
    for outcome in outcomes if list_cells else []:
        _echo(f"{outcome.state:8} {outcome.cell.title}")
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if not list_cells:
        print_sweep(console, outcomes, opened.references)
        _echo(opened.folder / "sweep.html")
    if failed and not list_cells:
        names = "; ".join(f"{outcome.cell.title}: {outcome.error}" for outcome in failed)
        raise RunError(f"{len(failed)} of {len(outcomes)} cells failed: {names}. The same command tries them again.")


@app.command("score")
def score_command(
    context: typer.Context,
    predictions: Annotated[Path, typer.Argument(help='JSONL of {"text": …}, with or without ids.')],
    references: Annotated[Path, typer.Option(help="The data set's own rows (output, answer, …).")],
    task: Annotated[
        str | None, typer.Option(help="gsm8k, mbpp, xsum, iwslt2017, …; default: ROUGE-L and exact match.")
    ] = None,
    plugin: Plugins = None,
    allow_code_execution: InSandbox = False,
    unconfined: Unconfined = False,
) -> None:
    """Score answers made elsewhere; prints JSON in percent."""
    from srd.base.console import set_up_logging
    from srd.evaluation.scoring import score_files
    from srd.sandbox.outside import permission

    set_up_logging()
    _load_plugins(plugin)
    _check_programs(context, [task] if task else [])
    allow = permission(allow_code_execution, unconfined)
    print(json.dumps(score_files(predictions, references, task, allow_code_execution=allow)))


def main() -> None:
    """Run the command line and turn whatever ends it into an exit status and a message."""
    from srd.base import parallel

    sys.argv[1:] = map(_at_home, sys.argv[1:])
    gc.disable()  # until `set_up_logging`: to look for garbage among what is imported takes a tenth of the time
    before, threading.excepthook = threading.excepthook, _thread_failed
    say_stopped = _once(_say_stopped)  # by this thread or by the one that listens, which may come to it together
    with parallel.stoppable(say_stopped):
        try:
            code = _command_line()
        except BaseException as error:
            code = _status(error, say_stopped)
        finally:
            _opened.close()
            gc.enable()
            threading.excepthook = before
    sys.exit(code)


def _thread_failed(failed: Any) -> None:
    """Tell in a line, and not by a traceback, that a thread of a library has ended: who needs it fails and says why."""
    import logging

    from srd.base.failures import first_line

    said = first_line(failed.exc_value or failed.exc_type())
    logging.getLogger("srd").warning("a thread of a library has failed: %s: %s", failed.exc_type.__name__, said)


def _command_line() -> int:
    from srd.base import parallel

    for before, text in enumerate(sys.argv[1:]):
        name, _, value = text.partition("=") if text[:2] == "--" and "=" in text else (sys.argv[before], "", text)
        if not value.strip():  # a path would be the current folder
            raise UserError(f"what follows '{name}' on the command line is empty: write a value there, or leave it out")
    result = app(prog_name="srd", standalone_mode=False)  # a status where the command line itself stops (help, Ctrl-C)
    if result == INTERRUPTED:  # the others may be at work, so that none of them is waited for
        raise KeyboardInterrupt
    parallel.leave()
    with contextlib.suppress(AttributeError):  # there is no standard output
        sys.stdout.flush()
    return result if isinstance(result, int) else 0


def _say_stopped() -> None:
    from srd.base import parallel

    if parallel.processes() > 1 and not parallel.stopped_by():
        _say("stopped by the launcher: another process has ended, or was told to. "
             "The same command continues where it was.")  # fmt: skip
    else:
        _say("stopped. The same command continues where it was.")


def _once(tell: Callable[[], None]) -> Callable[[], None]:
    """The same, done once, by the first thread that calls it; others wait until it is done."""
    lock, done = threading.Lock(), threading.Event()

    def told() -> None:
        with lock:
            if not done.is_set():
                tell()
                done.set()

    return told


def _status(error: BaseException, say_stopped: Callable[[], None] = _say_stopped) -> int:
    """The exit status of what ended a command; its message is printed."""
    from srd.base import parallel

    if (signal := parallel.stopped_by()) or isinstance(error, KeyboardInterrupt | typer.Abort):
        say_stopped()
        return 128 + signal if signal else INTERRUPTED
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, SystemExit) and COMPLETION in os.environ:  # a shell has asked what words may follow
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, BrokenPipeError):  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains when it flushes at its end
        return 1
    if parallel.is_lost(error):
        return _lost(error)
    if hasattr(error, "format_message"):  # Typer's own complaints about the command line
        status, message = 2, error.format_message()
        if len(sys.argv) == 1:  # then it is the help
            typer.echo(message)
            return status
    else:
        from srd.base.failures import explain

        status, message = explain(error)
    _tell(f"[bold red]error:[/] {_escaped(message)}", on_all=getattr(error, "on_all", False))
    return status


def _tell(message: str, *, on_all: bool) -> None:
    """Print an error once, though every process of a run may have it.

    The others give the main process time to print it; its end makes the launcher stop them. So their message shows
    only where the main process has no error, and not at all where it is known to have the same.
    """
    from srd.base import parallel

    parallel.stop_silently()
    if not parallel.is_main():
        time.sleep(OTHERS_WAIT)
        if on_all:
            return
    _say(message)


def _at_home(text: str) -> str:
    """An argument, with the home directory in place of ``~`` where shells leave it as it is: behind ``--option=``."""
    option, equals, value = text.partition("=")
    is_home = option.startswith("-") and value.split("/")[0] == "~"
    return f"{option}={Path(value).expanduser()}" if equals and is_home else text


def _say(message: str) -> None:
    """Print a message of this very process."""
    from srd.base import parallel
    from srd.base.console import console

    if not parallel.is_main():
        console.quiet = False
        message = f"process {parallel.process()}: {message}"
    with contextlib.suppress(OSError):  # the terminal is gone
        console.print(message, soft_wrap=True)


def _lost(error: BaseException) -> int:
    """Another process has ended without a message (killed, out of memory, its machine gone): this one cannot go on."""
    from srd.base import parallel

    said = " ".join(str(error).split()).split(". This is typically")[0]  # gloo adds advice about bugs in it
    _say(
        f"[bold red]error:[/] the connection to another process is lost ({_escaped(said)}). "
        "If it has said nothing itself, it was killed or ran out of memory. The same command continues where it was."
    )
    parallel.stop_silently()
    return 1


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
