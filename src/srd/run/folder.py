"""The run directory: every name in it, spelt once, and who may work in it."""

from __future__ import annotations

from pathlib import Path

from srd.base.errors import UserError

SPLITS = ("train", "validation", "test")
UNCLEANED = ", rows as they came"  # behind the name of a step that is made a second time, without the cleaning


#: Folders of a run directory that no attribute of `RunFolder` names, as there may be several of them.
OTHERS = ("examples", "baselines", "stages", "student", "logs", "displaced")


def check_outside(target: Path) -> None:
    """Refuse a file or folder for something else that is a run directory, or lies where a run keeps its own files.

    Raises:
        UserError: naming the run directory.
    """
    place = target.resolve()
    for above in (place, *place.parents):
        names = RunFolder(above, "")
        if names.recipe.is_file() and names.manifest.is_file():
            own = {path.relative_to(above).parts[:1] for path in vars(names).values() if isinstance(path, Path)}
            if place.relative_to(above).parts[:1] in {*own, *((name,) for name in OTHERS)}:
                raise UserError(f"-o {target} is for the files of the run in {above} alone. Choose another place.")


class RunFolder:
    """The names of a run directory.

    Args:
        root: The directory.
        main: Label of the recipe's main training, whose stages and student lie at the top.
    """

    def __init__(self, root: Path, main: str) -> None:
        self.root = root
        self.main = main
        self.lock = root / ".lock"
        self.recipe = root / "recipe.yaml"
        self.manifest = root / "manifest.json"
        self.metrics = root / "metrics.jsonl"
        self.mapped = root / ".mapped"
        self.leaks = root / ".leaks.json"
        self.cards = root / ".cards.json"
        self.bad_rows = root / ".bad_rows.json"
        self.dropped = root / "examples" / "dropped.jsonl"
        self.teacher = root / "teacher"
        self.teacher_work = root / "teacher-sft"
        self.start = root / "start"
        self.start_work = root / "warm-start"
        self.teacher_text = root / "seqkd" / "responses.parquet"
        self.teacher_text_work = root / "seqkd" / "batches"
        self.pairs_work = root / "pairs" / "batches"
        self.cache = root / "cache"
        self.served = root / "served"
        self.alignment = root / "alignment"
        self.scores = root / "reflection" / "scores.parquet"
        self.own_losses = root / "reflection" / "endings.parquet"
        self.batches = root / "reflection" / "batches"
        self.folds = root / "reflection" / "folds"
        self.measures = root / "reflection" / "measures.parquet"
        self.measured = root / "reflection" / "measured"
        self.likelihoods = root / "cleaning" / "likelihoods.parquet"
        self.likelihoods_work = root / "cleaning" / "batches"
        self.marked = root / "cleaning" / "rows.parquet"
        self.cleaned = root / "cleaning" / "cleaned.parquet"
        self.detectors = root / "cleaning" / "detectors.json"
        self.unrepaired = root / "cleaning" / "unrepaired"
        self.repairs = root / "cleaning" / "repairs.parquet"
        self.repairs_work = root / "cleaning" / "answers"
        self.repair_work = root / "cleaning" / "reading"
        self.uncleaned = root / "uncleaned"
        self.ranked = root / "curriculum" / "ranked.parquet"
        self.evaluation = root / "evaluation"
        self.results = self.evaluation / "metrics.json"
        self.comparisons = self.evaluation / "comparisons.json"
        self.details = self.evaluation / "details.json"
        self.train_samples = self.evaluation / "train_samples.jsonl"
        self.report = root / "report" / "index.html"

    def pair_text(self, who: str) -> Path:
        """What teacher or student wrote to each training prompt, where a training has two texts of each."""
        return self.root / "pairs" / f"{who}.parquet"

    def examples(self, split: str) -> Path:
        """The examples of a split."""
        return self.root / "examples" / f"{split}.parquet"

    def training(self, label: str) -> Path:
        """Where a training's ``stages`` and ``student`` lie."""
        return self.root if label == self.main else self.root / "baselines" / label

    def stages(self, label: str) -> Path:
        """Checkpoints, metrics and the best model of every stage of a training."""
        return self.training(label) / "stages"

    def student(self, label: str) -> Path:
        """What a training made."""
        return self.training(label) / "student"

    def log(self, label: str) -> Path:
        """What one training logged; ``metrics.jsonl`` is all of these, one after the other."""
        return self.root / "logs" / f"{label}.jsonl"
