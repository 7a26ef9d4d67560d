"""The teacher: taken as it is, or fine-tuned first; the text it writes, and the cache of what it says."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from srd.base import parallel
from srd.base.files import is_sealed, remove, seal
from srd.base.remedies import warn
from srd.base.tables import data_set, write_table
from srd.base.text import count, many, shown_bytes, verb
from srd.models.generation import Decoding
from srd.models.tokenizers.tokens import tokenizer_identity
from srd.recipe.schema import Recipe
from srd.run.context import Run, load_options
from srd.run.identity import model_identity
from srd.run.outline import order
from srd.run.outline.costs import limit_for
from srd.run.parts.assemble import training_of
from srd.run.parts.large import load_large, offload_folder
from srd.run.parts.loading import lists_of, load_writer, parameters
from srd.run.parts.teacher_caches import (
    all_cache_bytes,
    cache_fits,
    check_fits,
    collator,
    needed_cache_bytes,
    place_of_cache,
    taught_rows,
    tier_of_run,
)
from srd.run.parts.written import TEACHER_TEXT, written_by
from srd.run.steps.base import Step, Summary
from srd.training.cache.building import build_cache, fill_cache
from srd.training.cache.teacher_cache import TeacherCache
from srd.training.cache.tier_error import check_error
from srd.training.progress import told_of
from srd.training.stages import train

logger = logging.getLogger(__name__)


class Teacher(order.Teacher, Step):
    """``teacher/``, where the recipe fine-tunes it."""

    label = "teacher_sft"

    def inputs(self, run: Run) -> list[Any]:
        teacher = run.recipe.teacher
        if teacher.sft is None:
            return [model_identity(each) for each in run.recipe.all_teachers]
        # Its checkpoints may be chosen by what they write.
        settings = [teacher.sft.decides(), run.recipe.generation.model_dump(exclude={"engine"})]
        own = run.teacher_frame if run.apart else []
        return [model_identity(teacher), *settings, run.encoding, run.recipe.seed, *run.reading(teacher.sft), *own]

    def outputs(self, run: Run) -> list[Path]:
        return [run.files.teacher, run.files.log(self.label)] if run.recipe.teacher.sft else []

    def scratch(self, run: Run) -> list[Path]:
        return [run.files.teacher_work] if run.recipe.teacher.sft else []

    def make(self, run: Run) -> Summary:
        teacher = run.recipe.teacher
        if teacher.endpoint is not None:
            return {"served": teacher.endpoint}
        if teacher.sft is None:
            others = {each.title: parameters(each.model, each.found) for each in run.recipe.teachers[1:]}
            return {"parameters": parameters(teacher.model, teacher.found), **({"others": others} if others else {})}
        options = load_options(teacher)
        with training_of(run, self.label, teacher.sft, run.files.teacher_work, teacher.model, options) as training:
            summary = train(training, run.files.teacher)
        return {"parameters": parameters(run.teacher_source, run.teacher_options()), **summary}

    def told(self, run: Run, summary: Summary) -> str:
        if run.recipe.teacher.endpoint is not None:
            return f"{run.recipe.teacher.model}, asked at {run.recipe.teacher.endpoint}"
        return (
            f"{count(summary['parameters'])} parameters, {told_of(summary, run.recipe.teacher.sft) or 'used as it is'}"
        )


class TeacherText(order.TeacherText, Step):
    """``seqkd/responses.parquet``: the teacher's own answers to the training prompts."""

    def longest(self, recipe: Recipe) -> int:
        """Tokens of an answer: the most that any training asks for."""
        return max(t.method.longest_text() or 0 for t in recipe.student_trainings if t.teacher_writes)

    def inputs(self, run: Run) -> list[Any]:
        generation = run.recipe.generation
        return [run.encoding, run.teacher_frame, self.longest(run.recipe), generation.engine, generation.batch_size]

    def outputs(self, run: Run) -> list[Path]:
        return [run.files.teacher_text]

    def told(self, run: Run, summary: Summary) -> str:
        cut, empty = summary["cut"], summary["empty"]
        return f"{many(summary['examples'], 'answer')} of the teacher, {cut:,} cut and {empty:,} empty"

    def scratch(self, run: Run) -> list[Path]:
        return [run.files.teacher_text_work]

    def make(self, run: Run) -> Summary:
        decoding, files = Decoding(self.longest(run.recipe)), run.files
        return write_text(run, "teacher", decoding, files.teacher_text, files.teacher_text_work)


def write_text(run: Run, who: str, decoding: Decoding, path: Path, folder: Path) -> Summary:
    """Let the teacher or the starting student answer the training prompts, and keep it as `TEACHER_TEXT`.

    ``folder`` keeps what is done of it; a file that is whole is not written again.
    """
    if not parallel.on_main(lambda: is_sealed(path)):
        if who == "teacher":
            rows, tokenizer = run.encoded_for_teacher("train"), run.teacher_encoder.tokenizer
            model = load_writer(run.teacher_source, run, run.teacher_options())
        else:
            rows, tokenizer = run.encoded("train"), run.encoder.tokenizer
            model = load_writer(run.start_source, run, run.start_options())
        written, texts = written_by(run, model, tokenizer, rows.prompts, rows.ids, decoding, f"{who} writes", folder)
        columns = {"tokens": [tokens for tokens, _ in written], "ended": [ended for _, ended in written]}
        table = pa.table({"id": rows.ids, "response": texts, **columns}, schema=TEACHER_TEXT)
        parallel.on_main(lambda: write_table(data_set(table), path))
        parallel.on_main(lambda: seal(path))
    kept = pq.read_table(path, columns=["response", "ended"])
    answers, cut = len(kept), pc.sum(pc.invert(kept["ended"])).as_py()
    if cut:
        logger.warning(
            "%d of the %s's %d answers (%.0f %%) %s cut at %d tokens: the student learns no end from them. "
            "A higher max_new_tokens of the method lets more of them end.",
            cut, who, answers, 100 * cut / answers, verb(cut, "was", "were"), decoding.max_new_tokens,
        )  # fmt: skip
    return {"examples": answers, "empty": sum(not text.strip() for text in kept["response"].to_pylist()), "cut": cut}


class Cache(order.Cache, Step):
    """``cache/``, or the folder that the recipe names: what the teacher says of all training examples."""

    shares = False  # a sweep's runs have one cache folder

    def turns(self, run: Run, key: str) -> list[str]:
        return sorted(place_of_cache(run, number).name for number in _numbers(run.recipe))

    def is_idle(self, run: Run) -> bool:
        needed = all_cache_bytes(run)
        if cache_fits(run):
            return False
        if run.is_served or run.recipe.teachers:
            check_fits(run.recipe, needed)
        warn(
            logger,
            f"the teacher cache would take {shown_bytes(needed)}, more than cache.limit_gb = "
            f"{run.recipe.cache.limit_gb:g}: the live teacher is used instead.",
            f"cache.limit_gb={limit_for(needed)} keeps it.",
        )
        return True

    def inputs(self, run: Run) -> list[Any]:
        tiers = [tier_of_run(run, number=number).identity for number in _numbers(run.recipe)]
        return [run.encoding, run.teacher_width, *tiers, *(run.teacher_frame if run.apart else [])]

    def needed(self, run: Run) -> list[Path]:
        return [place_of_cache(run, number) for number in _numbers(run.recipe)]

    def told(self, run: Run, summary: Summary) -> str:
        size, far = shown_bytes(summary["bytes"]), ""
        if "mean_kl" in summary:
            far = f", {summary['mean_kl']:.1e} nats (mean KL) from it, {summary['flips']:.1%} of first choices flipped"
        if "listed" in summary:  # of a server, from which nothing more can be had
            far = f"; the tokens that it lists hold {summary['listed']:.1%} of its probability"
        return f"what the teacher says of {many(summary['examples'], 'example')} is kept in {size}{far}"

    def make(self, run: Run) -> Summary:
        summaries = [_read(run, number) for number in _numbers(run.recipe)]
        if len(summaries) == 1:
            return summaries[0]
        worst = max(summaries, key=lambda summary: summary.get("mean_kl", 0.0))
        kept = {"examples": len(run.encoded("train")), "bytes": sum(summary["bytes"] for summary in summaries)}
        return {**worst, **kept, "each": [summary["examples"] for summary in summaries]}

    def open(self, run: Run) -> None:
        for number in _numbers(run.recipe):
            cache = TeacherCache(place_of_cache(run, number))  # perhaps made under another limit
            check_error(cache.tier, cache.meta.get("error"), run.recipe.cache.max_kl)


def _numbers(recipe: Recipe) -> range:
    """The teachers by their numbers."""
    return range(len(recipe.all_teachers))


def _read(run: Run, number: int) -> Summary:
    """Fill the cache of one teacher: read it, or ask its server."""
    examples, teacher = taught_rows(run, number), run.recipe.all_teachers[number]
    title = "teacher" if not run.recipe.teachers else f"teacher {run.recipe.teachers[number].title}"
    place, tier, listed = place_of_cache(run, number), tier_of_run(run, number=number), None
    with run.progress(title) as update:
        if teacher.endpoint is not None:
            ask = lists_of(run, place, run.recipe.cache.listed, number)
            cache = fill_cache(
                place, tier, examples, ask, width=run.teacher_width, batch_size=ask.at_once, progress=update
            )
            ask.journal.remove()  # all that was said is in the cache
            listed = cache.listed_mass()
        else:
            source, options = run.teacher_options_of(number)
            cache = build_cache(
                place, lambda: load_large(source, run, options, teacher.offload), examples, collator(run), tier=tier,
                width=run.teacher_width,
                tokenizer=tokenizer_identity(run.teacher_tokenizer) if run.apart else run.tokenizer_identity,
                max_kl=run.recipe.cache.max_kl, batch_size=run.recipe.generation.batch_size, progress=update,
            )  # fmt: skip
    remove(offload_folder(run))
    kept: dict[str, float] = {"examples": len(examples), "bytes": needed_cache_bytes(run, number)}
    kept |= {"listed": round(listed, 4)} if listed is not None else {}
    error = cache.meta.get("error") or {}  # none where it is from before it was measured
    return {**kept, **{name: float(f"{value:.3g}") for name, value in error.items() if name != "tokens"}}
