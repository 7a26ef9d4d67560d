"""The outline of a run: its steps in their order, what each comes after, and what it costs.

Everything here is worked out from a recipe alone, and nothing heavy is imported: `srd plan` asks it for costs,
`srd.run.flow` for the steps to do. How a step is made is in `srd.run.steps`, a file each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from srd.curation.detectors.base import DETECTORS, MOST, REPAIRS, work_for
from srd.curation.scores.base import PASSES, measured_needs
from srd.curation.settings import SHOWN
from srd.recipe.schema import Recipe
from srd.run.folder import UNCLEANED
from srd.run.outline.costs import Facts, Phase, inference_memory, one_pass, training_phase
from srd.training.settings import TrainingConfig


class Outline:
    """A step as a plan sees it.

    Attributes:
        name: In the manifest and on the screen.
    """

    name: str

    def after(self, recipe: Recipe) -> tuple[str, ...]:
        """The steps whose results this one uses."""
        return ()

    def cost(self, facts: Facts) -> Phase:
        """What it takes; by default nothing that is counted."""
        return Phase(self.name)

    def costs(self, facts: Facts) -> list[Phase]:
        """What it takes, with the steps that are made for it alone."""
        return [self.cost(facts)]


class Examples(Outline):
    """Read, split and limit the rows."""

    name = "examples"


class Likelihoods(Outline):
    """Read the rows for the cleaning."""

    name = "likelihoods"

    def after(self, recipe: Recipe) -> tuple[str, ...]:
        return ("examples",)

    def cost(self, facts: Facts) -> Phase:
        """Each need is a pass over the responses behind some prompt, and so is each kind of damage, on some rows."""
        return reading_phase(self.name, facts, facts.data.train)


class Cleaning(Outline):
    """Mark the rows that are wrong."""

    name = "cleaning"

    def after(self, recipe: Recipe) -> tuple[str, ...]:
        # Where a repair has the rows read in any case, what was read decides which of near copies stays, too.
        cleaning = recipe.data.cleaning
        asks = cleaning.teacher_answers or any(DETECTORS.get(name).damage for name in cleaning.find)
        return ("examples", *([Likelihoods.name] if asks else []))


class Teacher(Outline):
    """Fine-tune the teacher, where the recipe does."""

    name = "teacher"

    def after(self, recipe: Recipe) -> tuple[str, ...]:
        return ("examples", *cleaning_steps(recipe, repaired=False)) if recipe.teacher.sft else ()

    def cost(self, facts: Facts) -> Phase:
        sft = facts.recipe.teacher.sft
        return Phase(self.name) if sft is None else training_phase(self.name, sft, facts, False, kept="teacher")


class Repairs(Outline):
    """Let the teacher answer the prompts of wrong rows."""

    name = "teacher repairs"

    def after(self, recipe: Recipe) -> tuple[str, ...]:
        return ("examples", Teacher.name)  # which rows it is asked about decides, not for what else they were marked

    def cost(self, facts: Facts) -> Phase:
        """As if a tenth of the rows were wrong: the teacher answers each five times."""
        passes, teacher = _repairs_per_row(facts.recipe), facts.teacher
        return Phase(
            self.name, teacher_passes=passes, tokens=passes * (facts.prompt + facts.response),
            flops=passes * teacher.forward(facts.prompt, facts.response), memory=inference_memory(teacher, facts),
        )  # fmt: skip


class Repair(Outline):
    """Take the best of these answers."""

    name = "repair"

    def after(self, recipe: Recipe) -> tuple[str, ...]:
        return ("examples", Likelihoods.name, Cleaning.name, Repairs.name)

    def cost(self, facts: Facts) -> Phase:
        """The answers are read as the rows were."""
        return reading_phase(self.name, facts, int(_repairs_per_row(facts.recipe) * facts.data.train))


def _repairs_per_row(recipe: Recipe) -> float:
    return (1.0 if recipe.data.cleaning.action == "rewrite" else 0.1) * (REPAIRS + 1)


class TeacherText(Outline):
    """Let the teacher answer the training prompts."""

    name = "teacher text"

    def after(self, recipe: Recipe) -> tuple[str, ...]:
        return ("examples", *cleaning_steps(recipe), "teacher")

    def cost(self, facts: Facts) -> Phase:
        return one_pass(self.name, facts.teacher, facts, teacher_passes=1.0)


class Cache(Outline):
    """Keep what the teacher says of the training examples."""

    name = "cache"

    def after(self, recipe: Recipe) -> tuple[str, ...]:
        return ("examples", *cleaning_steps(recipe), "teacher")

    def cost(self, facts: Facts) -> Phase:
        if not facts.cache_fits:
            return Phase(self.name)
        phases = [one_pass(self.name, size, facts, teacher_passes=1.0) for size in facts.teachers]
        read = list(zip(facts.shares, phases, strict=True))
        return replace(
            max(phases, key=lambda phase: phase.memory),
            teacher_passes=sum(facts.shares),
            tokens=sum(share * phase.tokens for share, phase in read),
            flops=sum(share * phase.flops for share, phase in read),
            disk=facts.cache_bytes + facts.beside_bytes(facts.tier, facts.data.train),
            scratch=facts.journal_bytes,
        )


class Student(Outline):
    """Shorten the starting student and warm it up, where the recipe does."""

    name = "student"

    def after(self, recipe: Recipe) -> tuple[str, ...]:
        student, warm = recipe.student, recipe.student.warm_start
        if not is_made(recipe):
            return ()
        steps = ["examples", *cleaning_steps(recipe)]
        if student.model is None or (warm is not None and needs_teacher(warm)):
            steps.append("teacher")
        if warm is not None:
            steps += teaching_steps(recipe, warm)
        return tuple(steps)

    def cost(self, facts: Facts) -> Phase:
        warm = facts.recipe.student.warm_start
        if warm is None:
            return Phase(self.name, disk=4.0 * facts.student.parameters if is_made(facts.recipe) else 0.0)
        return training_phase(self.name, warm, facts, runs_live(facts, warm))


class Pairs(Outline):
    """Let teacher and student answer the training prompts, for a training on both texts."""

    name = "pairs"

    def after(self, recipe: Recipe) -> tuple[str, ...]:
        return ("examples", *cleaning_steps(recipe), "teacher", "student")

    def cost(self, facts: Facts) -> Phase:
        """Both write, and where a cache may keep them the teacher then reads both texts."""
        cached = may_cache(facts.recipe) and facts.pairs_fit
        passes = 3 if cached else 1
        teacher = one_pass(self.name, facts.teacher, facts, teacher_passes=float(passes))
        student = one_pass(self.name, facts.student, facts)
        total = {name: passes * getattr(teacher, name) + getattr(student, name) for name in ("tokens", "flops")}
        disk = facts.pairs_bytes + facts.beside_bytes(facts.tier, 2 * facts.data.train) if cached else 0
        memory = max(teacher.memory, student.memory)
        return replace(teacher, **total, memory=memory, disk=disk, scratch=2 * facts.journal_bytes)


class Reflection(Outline):
    """Let the starting student answer the training prompts."""

    name = "reflection"

    def after(self, recipe: Recipe) -> tuple[str, ...]:
        rows = ("examples", *cleaning_steps(recipe))
        if recipe.out_of_sample == "off":
            return (*rows, "student")
        if recipe.out_of_sample == "before":
            return rows
        # Those that are warmed up in its place need what it needs.
        return tuple(dict.fromkeys((*rows, *Student().after(recipe))))

    def cost(self, facts: Facts) -> Phase:
        """The reference is read, and an answer is written behind the same prompt; of folds, their warm-ups before."""
        student = facts.student
        flops = student.forward(facts.prompt, facts.response) + student.forward(0, facts.response)
        tokens = facts.prompt + 2 * facts.response
        memory = inference_memory(student, facts)
        passes, warm = 1.0, facts.recipe.student.warm_start
        if facts.recipe.out_of_sample == "cross_fit" and warm is not None:
            times = facts.recipe.reflection.folds - 1  # each fold is left out of one of them
            one = training_phase(self.name, warm, facts, runs_live(facts, warm))
            flops, tokens = flops + times * one.flops, tokens + times * one.tokens
            passes, memory = 1 + times * one.student_passes, max(memory, one.memory)
        return Phase(self.name, student_passes=passes, tokens=tokens, flops=flops, memory=memory)


class Measures(Outline):
    """Read what the scores of a curriculum need beside the reflection."""

    name = "measures"

    def after(self, recipe: Recipe) -> tuple[str, ...]:
        needs, steps = needs_of(recipe), ["examples", *cleaning_steps(recipe)]
        if needs & PASSES.keys() and recipe.out_of_sample != "before":
            steps.append("student")
        if needs & {"endings", "mismatched"}:  # which go on from what was read there
            steps.append("reflection")
        if "teacher" in needs:
            steps += ["teacher", *_caching(recipe)]
        return tuple(steps)

    def cost(self, facts: Facts) -> Phase:
        """A pass of the student over the responses for each other prompt, and one of the teacher without a cache."""
        needs = needs_of(facts.recipe)
        alone = facts.student.forward(0, facts.response) if "unprompted" in needs else 0.0
        behind = sum(PASSES[need] for need in needs & PASSES.keys() - {"unprompted"})
        flops = alone + behind * facts.student.forward(facts.prompt, facts.response)
        live = "teacher" in needs and (not _caching(facts.recipe) or not facts.cache_fits)
        flops += facts.teacher.forward(facts.prompt, facts.response) if live else 0.0
        tokens = behind * (facts.prompt + facts.response) + ("unprompted" in needs) * facts.response
        return Phase(
            self.name, student_passes=behind + ("unprompted" in needs), teacher_passes=float(live), tokens=tokens,
            flops=flops, memory=inference_memory(facts.student, facts) if flops else 0.0,
        )  # fmt: skip


class Ranking(Outline):
    """Rank the training rows and lay out the stages."""

    name = "ranking"

    def after(self, recipe: Recipe) -> tuple[str, ...]:
        curriculum = recipe.training.curriculum
        marking = ("cleaning", *cleaning_steps(recipe)) if recipe.data.cleaning.action != "off" else ()
        return ("reflection", *(measuring_steps(curriculum.score) if curriculum else ()), *dict.fromkeys(marking))


class Training(Outline):
    """One of the compared trainings."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.name = f"train/{label}"

    def after(self, recipe: Recipe) -> tuple[str, ...]:
        training = recipe.variants[self.label]
        steps = ["examples", *cleaning_steps(recipe), "student"]
        if needs_teacher(training):
            steps += ["teacher", *teaching_steps(recipe, training)]
        if training.curriculum is not None:
            steps += ["reflection", *measuring_steps(training.curriculum.score)]
        return tuple(steps)

    def cost(self, facts: Facts) -> Phase:
        training = facts.recipe.variants[self.label]
        return training_phase(self.name, training, facts, runs_live(facts, training))


class Uncleaned(Training):
    """A baseline on the rows as they came: of a run of its own, which makes teacher and starting student from those."""

    def after(self, recipe: Recipe) -> tuple[str, ...]:
        return ("examples",)

    def cost(self, facts: Facts) -> Phase:
        """It takes what the other run has made."""
        return Phase(self.name)

    def costs(self, facts: Facts) -> list[Phase]:
        other = replace(facts, recipe=facts.recipe.without_cleaning)
        own = [step.cost(other) for step in uncleaned_steps(facts.recipe, self.name)]
        return [*(replace(phase, name=phase.name + UNCLEANED) for phase in own), self.cost(facts)]


class Evaluation(Outline):
    """Let all models answer the test examples."""

    name = "evaluation"

    def after(self, recipe: Recipe) -> tuple[str, ...]:
        ranking = ("ranking",) if recipe.training.curriculum is not None else ()
        trainings = (f"train/{label}" for label in recipe.variants)
        return ("examples", *cleaning_steps(recipe), "teacher", "student", *ranking, *trainings)

    def cost(self, facts: Facts) -> Phase:
        """Answers of all models to the run's test split with all seeds. Named tasks come on top, of unknown size."""
        settings, data = facts.recipe.evaluation, facts.data
        seeds = len(settings.seeds) if settings.temperature > 0 else 1
        count = seeds * min(data.test, settings.limit or data.test)
        names = settings.models or ["teacher", "student", *facts.recipe.variants]
        sizes = [facts.teacher if name == "teacher" else facts.student for name in names]
        flops = sum(size.forward(data.prompt * count, data.response * count) for size in sizes)
        memory = max(inference_memory(size, facts) for size in sizes)
        tokens = len(names) * count * (data.prompt + data.response)
        if facts.recipe.training.curriculum is not None:  # the report shows answers to training prompts, too
            shown = min(3 * SHOWN, data.train)
            flops += facts.student.forward(data.prompt * shown, data.response * shown)
            tokens += shown * (data.prompt + data.response)
        return Phase(self.name, tokens=tokens, flops=flops, memory=memory)


class Cards(Outline):
    """Write the students' model cards."""

    name = "cards"

    def after(self, recipe: Recipe) -> tuple[str, ...]:
        return ("evaluation", *(f"train/{label}" for label in recipe.variants))


def all_steps(recipe: Recipe) -> list[Outline]:
    """All steps that a run of a recipe may go through, in their order."""
    return [
        Examples(),
        Likelihoods(),
        Cleaning(),
        Teacher(),
        Repairs(),
        Repair(),
        TeacherText(),
        Cache(),
        Student(),
        Pairs(),
        Reflection(),
        Measures(),
        Ranking(),
        *(Uncleaned(label) if recipe.takes_uncleaned(label) else Training(label) for label in recipe.variants),
        Evaluation(),
        Cards(),
    ]


def planned(recipe: Recipe, *wanted: str) -> list[Outline]:
    """The steps that a run goes through, in their order.

    Args:
        recipe: The recipe.
        wanted: The steps that are asked for, with all that they need; none: all that the recipe needs.
    """
    steps = all_steps(recipe)
    by_name = {step.name: step for step in steps}
    found: set[str] = set()
    todo = [*(wanted or ("cards", *(["cleaning"] if recipe.data.cleaning.action == "report" else [])))]
    while todo:
        name = todo.pop()
        if name in by_name and name not in found:
            found.add(name)
            todo += by_name[name].after(recipe)
    return [step for step in steps if step.name in found]


# ------------------------------------------------------------------------------------------ what steps have in common


def cleaning_steps(recipe: Recipe, *, repaired: bool = True) -> tuple[str, ...]:
    """The steps that change the training rows, which those that read them come after."""
    if not recipe.data.cleaning.changes_rows:
        return ()
    return (Cleaning.name, *((Repair.name,) if repaired and recipe.data.cleaning.teacher_answers else ()))


def costs_of(steps: Sequence[Outline], facts: Facts) -> list[Phase]:
    """What steps take, with those that are made for one of them alone: once, where it is for several."""
    return list({phase.name: phase for step in steps for phase in step.costs(facts)}.values())


def uncleaned_steps(recipe: Recipe, *wanted: str) -> list[Outline]:
    """The steps that trainings on the rows as they came take, with the same examples as the others."""
    return [step for step in planned(recipe.without_cleaning, *wanted) if step.name != Examples.name]


def reading_phase(name: str, facts: Facts, rows: int) -> Phase:
    """What it takes a model that has not been trained to read so many rows, all of one script, as detectors ask."""
    needs, kinds = work_for(facts.recipe.data.cleaning.find)
    size = facts.whole or facts.student
    passes = 1 + sum(PASSES[need] for need in needs & PASSES.keys())
    reads = passes * rows + len(kinds) * min(rows, MOST)
    flops = reads * size.forward(facts.data.prompt, facts.data.response)
    share = reads / max(1, facts.data.train)
    return Phase(
        name, student_passes=share, tokens=reads * (facts.data.prompt + facts.data.response), flops=flops,
        memory=inference_memory(size, facts),
    )  # fmt: skip


def is_made(recipe: Recipe) -> bool:
    """Whether the starting student is made here, and not a model that is taken as it is."""
    return bool(recipe.student.drop_layers or recipe.student.warm_start or not recipe.student.model)


def needs_teacher(training: TrainingConfig) -> bool:
    """Whether a training's result depends on the teacher."""
    return training.needs_teacher or training.teacher_writes


def may_cache(recipe: Recipe) -> bool:
    """Whether the recipe allows a cache at all; other teachers than the model itself are asked in every step."""
    return recipe.cache.enabled is not False and not recipe.teacher.source


def teaching_steps(recipe: Recipe, training: TrainingConfig) -> list[str]:
    """The steps that bring the teacher's part to a training: its text, or its cache."""
    if training.teacher_writes:
        return ["teacher text"]
    if training.on_pairs:  # which are cached as the training begins
        return ["pairs"]
    return ["cache"] if may_cache(recipe) and training.caches_references else []


def runs_live(facts: Facts, training: TrainingConfig) -> bool:
    """Whether the teacher runs in every pass of a training, because no cache serves it."""
    cached = training.writes_ahead or training.on_pairs or "cache" in teaching_steps(facts.recipe, training)
    fits = facts.pairs_fit if training.on_pairs else facts.cache_fits
    return not (cached and fits and may_cache(facts.recipe))


def needs_of(recipe: Recipe) -> set[str]:
    """What the curricula of a recipe rank by beside the reflection and the rows themselves."""
    scores = [training.curriculum.score for training in recipe.variants.values() if training.curriculum is not None]
    return {need for score in scores for need in measured_needs(score)}


def measuring_steps(score: str | Sequence[str]) -> list[str]:
    """The step that a ranking by some scores comes after, beside the reflection."""
    return [Measures.name] if measured_needs(score) else []


def _caching(recipe: Recipe) -> list[str]:
    """The step that fills the cache of a training that ranks by what the teacher says."""
    found = [
        teaching_steps(recipe, training) for training in recipe.variants.values() if training.curriculum is not None
    ]
    return ["cache"] if any("cache" in steps for steps in found) else []
