"""The teachers' caches of a run: what they keep, where they lie, how large they get."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from srd.base import parallel
from srd.base.errors import UserError
from srd.base.files import fingerprint, link
from srd.base.text import shown_bytes
from srd.data.batching import Collator, EncodedExamples
from srd.models.loading.architecture import precision_of
from srd.models.loading.loading import load_generation_config
from srd.models.served.lists import MADE_AT_ONCE
from srd.models.tokenizers.tokens import padding_id, prefix_of
from srd.recipe.schema import Recipe
from srd.run.context import Run
from srd.run.identity import model_identity
from srd.run.outline.costs import cache_tier, limit_for
from srd.run.outline.order import may_cache
from srd.run.parts.loading import config_of, lists_of, load
from srd.training.cache.building import build_cache, fill_cache
from srd.training.cache.several import SeveralCaches
from srd.training.cache.teacher_cache import HEAD, TeacherCache, cache_folder, example_key
from srd.training.settings import CacheConfig, TrainingConfig
from srd.training.tiers.base import Tier


def tier_of_run(run: Run, name: str | None = None, *, number: int = 0) -> Tier:
    """What the cache of a teacher keeps of a token."""
    return cache_tier(run.recipe, _running(run, number), name)


def _running(run: Run, number: int) -> str:
    """The precision that a teacher runs in."""
    teacher = run.recipe.all_teachers[number]
    running: str = "float32" if teacher.endpoint is not None else teacher.dtype
    return precision_of(config_of(*run.teacher_options_of(number))) if running == "auto" else running


def tier_of_pairs(run: Run, config: TrainingConfig) -> list[Any]:
    """What a training on pairs is given of the teacher, which no step before it says; of the usual tier nothing."""
    if not (config.on_pairs and may_cache(run.recipe)):
        return []
    usual = cache_tier(run.recipe.model_copy(update={"cache": CacheConfig()}), _running(run, 0))
    return [found for found in [tier_of_run(run).identity] if found != usual.identity]


def taught_rows(run: Run, number: int = 0) -> EncodedExamples:
    """The training examples that a teacher is read for: all, or those that are its own."""
    examples = run.read_by_teacher("train")
    if not run.recipe.teach_by_row:
        return examples
    owners = zip(examples.ids, run.owners, strict=True)
    return examples.subset([name for name, owner in owners if owner == number])


def needed_cache_bytes(run: Run, number: int = 0) -> int:
    """What the cache of a teacher takes."""
    teacher, tier = run.recipe.all_teachers[number], tier_of_run(run, number=number)
    width = 0 if teacher.endpoint is not None else run.teacher_configs[number].get_text_config().hidden_size
    return taught_rows(run, number).response_tokens * tier.token_bytes(int(width), run.teacher_width)


def all_cache_bytes(run: Run) -> int:
    """What the caches of all teachers take."""
    return sum(needed_cache_bytes(run, number) for number in range(len(run.recipe.all_teachers)))


def cache_fits(run: Run) -> bool:
    """Whether the recipe allows a cache of that size."""
    return all_cache_bytes(run) <= run.recipe.cache.limit_gb * 1e9


def check_fits(recipe: Recipe, needed: int) -> None:
    """Refuse a cache that is larger than the recipe allows, of teachers that cannot be asked in every step."""
    limit = recipe.cache.limit_gb
    if needed > limit * 1e9:
        raise UserError(
            f"what the teacher says would take {shown_bytes(needed)}, more than cache.limit_gb = {limit:g}. "
            f"Set cache.limit_gb={limit_for(needed)}, or a smaller cache.tier."
        )


def place_of_cache(run: Run, number: int = 0) -> Path:
    """The folder of a teacher's cache."""
    root = Path(run.recipe.cache.dir).expanduser() if run.recipe.cache.dir else run.files.cache
    # As the key of the step `teacher` is with one: a cache is the same, alone and among others.
    several, own = run.recipe.teachers, model_identity(run.recipe.all_teachers[number])
    key = fingerprint("teacher", [], own) if several else run.keys["teacher"]
    return cache_folder(root, fingerprint(key, run.teacher_width), tier_of_run(run, number=number).identity)


def caches_of(run: Run) -> TeacherCache | SeveralCaches:
    """The teacher's cache; of several teachers all of them, as one."""
    recipe = run.recipe
    caches = [TeacherCache(place_of_cache(run, number)) for number in range(len(recipe.all_teachers))]
    if not recipe.teachers:
        return caches[0]
    if not recipe.teach_by_row:
        return SeveralCaches(caches, [each.weight or 1.0 for each in recipe.teachers])
    examples = run.encoded("train")
    owners: dict[str, int] = {}
    for index, owner in enumerate(run.owners):
        key = example_key(*examples.tokens(index).values())
        if owners.setdefault(key, owner) != owner:
            names = [recipe.teachers[each].title for each in (owners[key], owner)]
            raise UserError(
                f"example '{examples.ids[index]}' is there twice, once with the teacher '{names[0]}' and once with "
                f"'{names[1]}'. Remove one of the two rows."
            )
    return SeveralCaches(caches, owners=owners)


def collator(run: Run) -> Collator:
    """The teacher's collator, before any model is loaded."""
    config, teacher = run.configs[0], run.recipe.teacher
    padding = padding_id(run.teacher_tokenizer if run.apart else run.tokenizer)
    if not config.is_encoder_decoder:
        return Collator(padding)
    generation = load_generation_config(teacher.model, **teacher.found)
    return Collator(padding, prefix_of(config, generation))


def read_once_of(run: Run, examples: EncodedExamples, folder: Path) -> TeacherCache:
    """Let the teacher read text that the student has written, as it reads the references for the run's cache."""
    tier = tier_of_run(run, "exact")
    place = cache_folder(folder, fingerprint(run.keys["teacher"], run.width), tier.identity)
    parallel.on_main(lambda: _share_head(place, [*folder.parent.glob(f"*.work/{place.name}"), place_of_cache(run)]))
    return _read(run, place, examples, "teacher reads", tier)


def _read(run: Run, place: Path, examples: EncodedExamples, told: str, tier: Tier, **options: Any) -> TeacherCache:
    """What the teacher's model says of texts."""
    with run.progress(told) as update:
        return build_cache(
            place,
            lambda: load(run.teacher_source, run, run.teacher_options()),
            examples,
            collator(run),
            tier=tier,
            width=run.width,
            batch_size=run.recipe.generation.batch_size,
            progress=update,
            **options,
        )


def _share_head(place: Path, others: list[Path]) -> None:
    """Take the teacher's head from another cache of the same kind: it is as large as a fifth of a small teacher."""
    for other in others:
        if other.name == place.name and (other / HEAD[-1]).is_file() and not (place / HEAD[-1]).is_file():
            for name in HEAD:
                link(other / name, place / name)


def _asked(run: Run, place: Path, tier: Tier, examples: EncodedExamples) -> TeacherCache:
    """What a server says of texts; it need not be there where all of it is known."""
    lists = functools.cache(lambda: lists_of(run, place, run.recipe.cache.listed, examples=examples))
    with run.progress("teacher") as update:
        found = fill_cache(
            place, tier, examples, lambda rows: lists()(rows), width=run.width,
            batch_size=MADE_AT_ONCE * run.recipe.teacher.parallel, progress=update,
        )  # fmt: skip
    if lists.cache_info().currsize:
        lists().journal.remove()  # all that was said is in the cache
    return found


def pair_cache(run: Run, examples: EncodedExamples) -> TeacherCache | None:
    """What the teacher says of both texts of each prompt; None where the recipe wants no cache, or one so large."""
    cache, place, tier = run.recipe.cache, place_of_cache(run), tier_of_run(run)
    needed = examples.response_tokens * tier.token_bytes(run.hidden_size, run.width)
    if run.is_served:
        check_fits(run.recipe, needed)
        return _asked(run, place, tier, examples)
    if not may_cache(run.recipe) or needed > cache.limit_gb * 1e9:
        return None
    return _read(run, place, examples, "teacher", tier, max_kl=cache.max_kl)
