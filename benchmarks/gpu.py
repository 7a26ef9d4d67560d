"""``python -m benchmarks.gpu``: what a GPU makes of training. One JSON file and one table, in under 20 minutes.

Nothing is downloaded: models of real sizes and tokenizer widths with random weights, texts of random tokens. It needs
torch, transformers and accelerate; ``trainer`` and ``trl`` need what they train with, and say so. Without a GPU,
``--tiny`` shows that it works. All but these two go through one bare loop with the same optimizer, so that what differs
is the loss:

- ``sft``     cross-entropy at response positions: the limit
- ``build``   the teacher reads all texts once, into the exact cache
- ``kd``      cross-entropy and forward KL from that cache
- ``kd-compiled`` the same with ``training.compile: loss``
- ``trainer`` the same by `srd.DistillTrainer`, with all that a run does besides
- ``stage``   the same on texts that the student wrote at once and the teacher read once
- ``write``   the student answers 256 prompts at once (tokens a second are of those it writes)
- ``sample``  the same by chance, at temperature 1
- ``plain``   the same as published scripts have it: in every step both models' logits at all positions
- ``trl``     TRL's GKDTrainer off policy (lmbda 0), where TRL is installed
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks import conventional
from benchmarks.lengths import SEED, dolly_lengths
from srd.base.files import atomic_write
from srd.data.batching import Collator, EncodedExamples, LengthBatches
from srd.models.generation import Decoding, decode_batch
from srd.models.head import head_weights, response_hidden
from srd.training.cache.building import build_cache
from srd.training.cache.teacher_cache import TeacherCache
from srd.training.loss.response_loss import head_loss
from srd.training.loss.settings import LossSettings

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "runs" / "bench-gpu.json"
DOCUMENT = ROOT / "docs" / "speed.md"
NOT_TRAINED = ("build", "write", "sample")
WARM_UP = 2  # steps that are not timed
WEIGHT = 0.8  # of the divergence; cross-entropy has the rest
MATRIX = 8192  # of the product that says what the device can do

Result = dict[str, Any]
LossOf = Callable[[Any, dict[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Shape:
    """Dimensions of a Qwen2 model."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool = True


SHAPES = {
    "0.5B": Shape(896, 4864, 24, 14, 2, 151_936),
    "1.5B": Shape(1536, 8960, 28, 12, 2, 151_936),
    "7B": Shape(3584, 18_944, 28, 28, 4, 152_064, False),
    "tiny": Shape(32, 64, 2, 2, 1, 96),
    "tiny-teacher": Shape(48, 96, 2, 2, 1, 104, False),
}


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        pairs: Teacher and student.
        texts: Name, examples in a step. Dolly's lengths, or so many tokens: a quarter of them prompt.
        steps: That are timed.
        written: Tokens that the student writes at most; as long as the responses, else.
        minutes: After which nothing more is begun.
    """

    pairs: tuple[tuple[str, str], ...] = (("1.5B", "0.5B"), ("7B", "0.5B"))
    texts: tuple[tuple[str, int], ...] = (("dolly", 32), ("512", 16), ("2048", 4), ("4096", 2))
    steps: int = 8
    written: int = 256
    minutes: float = 18.0


TINY = Plan((("tiny-teacher", "tiny"),), (("dolly", 4), ("64", 2)), steps=2, written=8)


@dataclass
class Work:
    """Texts of one length, and the models that train on them.

    Attributes:
        examples: All texts, as token ids.
        steps: Indices of each step's examples, the ones for warming up first.
        teacher: Its model, frozen.
        student: Makes a fresh one.
        width: Token ids that both have.
        device: That computes.
    """

    examples: EncodedExamples
    steps: list[list[int]]
    teacher: Any
    student: Callable[[], Any]
    width: int
    device: torch.device
    collator: Collator = field(default_factory=lambda: Collator(0))

    @property
    def tokens(self) -> int:
        """Of the timed steps: prompt and response, without padding."""
        lengths = self.examples.lengths
        return sum(lengths[i] for step in self.steps[WARM_UP:] for i in step)

    @property
    def written_rows(self) -> int:
        """Examples of the timed steps."""
        return sum(map(len, self.steps[WARM_UP:]))


# -------------------------------------------------------------------------------------------- texts, models, the clock


def make_model(shape: Shape, dtype: torch.dtype, device: torch.device, positions: int) -> Any:
    """A Qwen2 model with random weights, made where it is to compute."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**asdict(shape), max_position_embeddings=positions, eos_token_id=None, bos_token_id=None)
    torch.manual_seed(SEED)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def make_texts(profile: str, batch_size: int, steps: int, vocabulary: int) -> tuple[EncodedExamples, list[list[int]]]:
    """Random tokens at these lengths, and steps of similar length, spread evenly over them; the longest first."""
    count = batch_size * (steps + WARM_UP) * (4 if profile == "dolly" else 1)
    if profile == "dolly":
        prompts, responses = dolly_lengths(count)
    else:
        prompts, responses = [int(profile) // 4] * count, [int(profile) - int(profile) // 4] * count
    random = np.random.default_rng(SEED)
    rows = {
        "id": [str(i) for i in range(count)],
        "prompt_ids": [random.integers(1, vocabulary, n).tolist() for n in prompts],
        "response_ids": [random.integers(1, vocabulary, n).tolist() for n in responses],
    }
    examples = EncodedExamples(rows)
    lengths = examples.lengths
    order = sorted(LengthBatches(lengths, batch_size, seed=SEED).batches(), key=lambda batch: lengths[batch[0]])
    chosen = [order[int((place + 0.5) / (steps + WARM_UP) * len(order))] for place in range(steps + WARM_UP)]
    # The longest come first: memory runs out at once or never.
    return examples, [chosen[-1], *np.random.default_rng(SEED).permutation(np.array(chosen[:-1])).tolist()]


class Clock:
    """Seconds, memory and occupation of a device over what is done within."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.busy = device, 0.0, float("nan")
        self.on_gpu = device.type == "cuda"
        self._ended = threading.Event()
        self._seen: list[int] = []

    def _sample(self) -> None:
        while not self._ended.wait(0.05):
            with contextlib.suppress(Exception):  # it needs the vendor's package, which may not be there
                self._seen.append(torch.cuda.utilization(self.device))

    def __enter__(self) -> Clock:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self._started
        if self.on_gpu:
            self._ended.set()
            self._thread.join()
            self.busy = float(np.mean(self._seen)) if self._seen else float("nan")


def memory_peak(device: torch.device) -> int:
    """Most bytes that the GPU held since `forget_peak`; 0 on other devices."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def forget_peak(device: torch.device) -> None:
    """Begin to count anew, with nothing held in reserve."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_flops(device: torch.device) -> float:
    """What the device does in a large product of bfloat16 matrices, a second."""
    size = MATRIX if device.type == "cuda" else 256
    left = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        left @ left
    with Clock(device) as clock:
        for _ in range(10):
            left @ left
    return 10 * 2 * size**3 / clock.seconds


# ------------------------------------------------------------------------------------------------------------ one loop


def train(work: Work, examples: EncodedExamples, loss_of: LossOf) -> Result:
    """Train a fresh student over the steps, and time all but the first."""
    student = work.student().train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    gpu = work.device.type == "cuda"
    loader = DataLoader(examples, batch_sampler=work.steps, collate_fn=work.collator, pin_memory=gpu)  # type: ignore[arg-type,var-annotated]
    clock = Clock(work.device)
    with contextlib.ExitStack() as timed:
        for number, batch in enumerate(loader):
            if number == WARM_UP:
                timed.enter_context(clock)
            inputs = {name: value.to(work.device, non_blocking=gpu) for name, value in batch.items()}
            with torch.autocast(work.device.type, torch.bfloat16):
                loss = loss_of(student, inputs)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    final = float(loss.detach())
    assert np.isfinite(final), f"the loss is {final}"
    return {"seconds": clock.seconds, "tokens": work.tokens, "busy": clock.busy, "loss": final}


def our_loss(
    student: Any, inputs: dict[str, Tensor], head: Any = None, width: int | None = None, compiled: bool = False
) -> Tensor:
    """Cross-entropy, and forward KL where the batch brings the teacher's states."""
    settings = LossSettings() if head is None else LossSettings("fkl", weight=WEIGHT, compiled=compiled)
    targets = inputs["targets"]
    hidden = response_hidden(student, inputs)
    teacher = {} if head is None else {"teacher_hidden": inputs["teacher_hidden"], "teacher_head": head}
    items = torch.full((), len(targets), device=targets.device)
    return head_loss(hidden, head_weights(student, width), targets, settings, items, **teacher)[0]


def plain_loss(student: Any, inputs: dict[str, Tensor], teacher: Any, width: int) -> Tensor:
    """The same from all logits of both models, with each softmax over all of them."""
    tokens = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    ours = student(**tokens, use_cache=False).logits[:, :-1, :width]
    with torch.no_grad():
        theirs = teacher(**tokens, use_cache=False).logits[:, :-1, :width]
    labels = torch.full_like(inputs["input_ids"], conventional.IGNORED)
    labels.view(-1)[inputs["index"]] = inputs["targets"]
    labels = labels[:, :-1]
    divergence = conventional.forward_kl_loss(ours, theirs, labels, 1.0)
    return (1 - WEIGHT) * conventional.cross_entropy_loss(ours, labels) + WEIGHT * divergence


# ------------------------------------------------------------------------------------------------------------ systems


def sft(work: Work, folder: Path) -> Result:
    """Plain fine-tuning."""
    return train(work, work.examples, our_loss)


def _used(work: Work) -> EncodedExamples:
    """The examples of all steps."""
    return work.examples.subset(list(dict.fromkeys(work.examples.ids[i] for step in work.steps for i in step)))


def _read(work: Work, examples: EncodedExamples, folder: Path) -> TeacherCache:
    return build_cache(folder, lambda: work.teacher, examples, work.collator, batch_size=len(work.steps[0]))


def build(work: Work, folder: Path) -> Result:
    """The teacher reads every text once; what is written to disk counts."""
    used = _used(work)
    _read(work, used.subset(used.ids[:2]), folder / "warm-up")
    with Clock(work.device) as clock:
        _read(work, used, folder / "cache")
    return {"seconds": clock.seconds, "tokens": sum(used.lengths), "busy": clock.busy}


def _distil(work: Work, examples: EncodedExamples, cache: TeacherCache, *, compiled: bool = False) -> Result:
    examples.teacher = cache
    head = cache.head().cut(work.width)
    head = replace(head, weight=head.weight.to(work.device))
    try:
        return train(work, examples, functools.partial(our_loss, head=head, width=work.width, compiled=compiled))
    finally:
        examples.teacher = None


def kd(work: Work, folder: Path) -> Result:
    """Distillation from the cache that `build` has left."""
    return _distil(work, work.examples, TeacherCache(folder / "cache"))


def kd_compiled(work: Work, folder: Path) -> Result:
    """The same with the loss compiled, which happens as training warms up."""
    return _distil(work, work.examples, TeacherCache(folder / "cache"), compiled=True)


def trainer(work: Work, folder: Path) -> Result:
    """The same steps from the same cache as a run trains: logging, checks, learning rate, the Trainer's own work."""
    from transformers import TrainingArguments

    from benchmarks.workload import StepClock
    from srd.training.teachers.cache import CachedTeacher
    from srd.training.trainer import DistillTrainer

    clock, on_cpu, steps = StepClock(WARM_UP), work.device.type == "cpu", work.steps
    cache = TeacherCache(folder / "cache")
    work.examples.teacher = cache
    try:
        arguments = TrainingArguments(
            str(folder / "trained"), max_steps=len(steps), per_device_train_batch_size=len(steps[0]),
            learning_rate=1e-5,
            optim="adamw_torch_fused", bf16=not on_cpu, use_cpu=on_cpu, save_strategy="no", report_to="none",
            disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=not on_cpu,
        )  # fmt: skip
        ours = DistillTrainer(
            work.student(), arguments, work.examples, token_names(work.width),
            CachedTeacher(cache.head().cut(work.width)), LossSettings("fkl", weight=WEIGHT),
        )  # fmt: skip
        ours.add_callback(clock)
        ours.batches.batches = lambda: steps  # type: ignore[method-assign]
        ours.train()
    finally:
        work.examples.teacher = None
    return {"seconds": clock.seconds * (len(steps) - WARM_UP), "tokens": work.tokens}


def stage(work: Work, folder: Path, longest: int = 256) -> Result:
    """The student writes all answers, the teacher reads them, and training goes on as off-policy training does."""
    used = _used(work)
    student = work.student().eval()
    long = max(map(len, used.responses))
    decoding = Decoding(min(longest, long), temperature=1.0)
    answers: list[list[int]] = []
    with Clock(work.device) as writing, torch.autocast(work.device.type, torch.bfloat16):
        for start in range(0, len(used), 256):
            rows = range(start, min(start + 256, len(used)))
            prompts, names = [used.prompts[i] for i in rows], [used.ids[i] for i in rows]
            answers += decode_batch(student, prompts, names, decoding, [], 0, width=work.width)[0]
    del student
    texts = EncodedExamples({"id": used.ids, "prompt_ids": list(used.prompts), "response_ids": answers})
    with Clock(work.device) as reading:
        cache = _read(work, texts, folder / "written")
    position = {name: i for i, name in enumerate(used.ids)}
    steps = [[position[work.examples.ids[i]] for i in step] for step in work.steps]
    trained = _distil(replace(work, examples=texts, steps=steps), texts, cache)
    share = trained["tokens"] / sum(texts.lengths)  # of what was written and read, that is in the timed steps
    once = {"write_seconds": writing.seconds * share, "read_seconds": reading.seconds * share}
    return {**trained, **once, "written_tokens": sum(map(len, answers)) * share}


def write(work: Work, folder: Path, *, temperature: float = 0.0) -> Result:
    """The student's own text, with nothing that ends it."""
    student, used = work.student().eval(), _used(work)
    rows = [used.prompts[i % len(used)] for i in range(256)]
    names = [str(i) for i in range(len(rows))]
    longest = 128 if work.device.type == "cuda" else 8
    with torch.autocast(work.device.type, torch.bfloat16):
        decode_batch(student, rows, names, Decoding(longest, temperature), [], 0, width=work.width)  # warms up
        with Clock(work.device) as clock:
            answers, _ = decode_batch(student, rows, names, Decoding(longest, temperature), [], 0, width=work.width)
    return {"seconds": clock.seconds, "tokens": sum(map(len, answers)), "busy": clock.busy}


def plain(work: Work, folder: Path) -> Result:
    """Both models in every step."""
    return train(work, work.examples, functools.partial(plain_loss, teacher=work.teacher, width=work.width))


def trl(work: Work, folder: Path) -> Result:
    """TRL's trainer for the same: ``lmbda=0`` trains on the given texts, ``beta=0`` is forward KL."""
    from benchmarks.peers import off_policy_gkd

    # It has no way to cut heads of different widths to one.
    teacher = work.teacher
    if teacher.config.vocab_size != work.width:
        teacher.resize_token_embeddings(work.width)
    rows = [[work.examples[i] for i in step] for step in work.steps]
    seconds = off_policy_gkd(
        work.student(), teacher, token_names(work.width), rows, 0, warm_up=WARM_UP, cpu=work.device.type == "cpu"
    )
    return {"seconds": seconds * (len(work.steps) - WARM_UP), "tokens": work.tokens}


def token_names(count: int) -> Any:
    """A tokenizer whose tokens are numbers, for trainers that ask for one."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    names = Tokenizer(models.WordLevel({str(i): i for i in range(count)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=names, pad_token="0", eos_token="1")


SYSTEMS: dict[str, Callable[[Work, Path], Result]] = {
    "sft": sft, "build": build, "kd": kd, "kd-compiled": kd_compiled, "trainer": trainer, "stage": stage,
    "write": write, "sample": functools.partial(write, temperature=1.0), "plain": plain, "trl": trl,
}  # fmt: skip


# -------------------------------------------------------------------------------------------------- all, and the table


def measure(plan: Plan, device: torch.device, systems: Sequence[str] = tuple(SYSTEMS)) -> Iterator[tuple[str, Result]]:
    """Systems on every length and pair, the cheap ones first; a system that runs out of memory says so."""
    end = time.perf_counter() + 60 * plan.minutes
    for teacher_name, student_name in plan.pairs:
        longest = max([512, *(int(name) for name, _ in plan.texts if name.isdigit())]) + 1
        teacher_shape, student_shape = SHAPES[teacher_name], SHAPES[student_name]
        width = min(teacher_shape.vocab_size, student_shape.vocab_size)
        teacher = make_model(teacher_shape, torch.bfloat16, device, longest).eval().requires_grad_(False)
        student = functools.partial(make_model, student_shape, torch.float32, device, longest)
        for profile, batch_size in plan.texts:
            examples, steps = make_texts(profile, batch_size, plan.steps, width)
            work = Work(examples, steps, teacher, student, width, device)
            with tempfile.TemporaryDirectory() as folder:
                if profile == plan.texts[0][0]:  # what is loaded at the first use is nobody's time
                    attempt(functools.partial(sft, work, Path(folder)), device)
                for name in systems:
                    key = f"{teacher_name} → {student_name}/{profile}/{name}"
                    if name == "trl" and find_spec("trl") is None:
                        yield key, {"failed": "TRL is not installed"}
                    elif time.perf_counter() > end:
                        yield key, {"failed": "no time was left"}
                    else:
                        yield key, attempt(functools.partial(SYSTEMS[name], work, Path(folder)), device)
        del teacher


def attempt(system: Callable[[], Result], device: torch.device) -> Result:
    """What a system gives, and the memory that it took."""
    forget_peak(device)
    try:
        result = system()
    except torch.OutOfMemoryError:
        result = {"failed": "out of memory"}
    except Exception as error:  # one system's fault must not cost the figures of the others
        result = {"failed": f"{type(error).__name__}: {error}"[:300]}
    return {**result, "memory": memory_peak(device)}


def model_flops(teacher: str, student: str, result: Result, name: str) -> float:
    """Operations of the models' matrices: 6 a weight and token that is trained on, 2 for one that is read."""
    trained, read = (_weights(SHAPES[each]) for each in (student, teacher))
    each = {
        "sft": 6 * trained,
        "kd": 6 * trained,
        "kd-compiled": 6 * trained,
        "trainer": 6 * trained,
        "build": 2 * read,
        "plain": 6 * trained + 2 * read,
    }
    return float(each.get(name, 0) * result["tokens"])


def _weights(shape: Shape) -> int:
    """Weights of the layers; the head is left out, which works at some positions only."""
    kept = shape.hidden_size * shape.num_key_value_heads // shape.num_attention_heads
    attention = 2 * shape.hidden_size**2 + 2 * shape.hidden_size * kept
    return shape.num_hidden_layers * (attention + 3 * shape.hidden_size * shape.intermediate_size)


def table(results: Result) -> str:
    """A row a system."""
    head = "| models | tokens | system | tokens a second | time ÷ SFT | peak memory | device busy | of the peak |"
    rows = [head, "|---|---|---|---:|---:|---:|---:|---:|"]
    for key, found in results["measured"].items():
        models, profile, name = key.split("/")
        if "failed" in found:
            rows.append(f"| {models} | {profile} | {name} | {found['failed']} | – | – | – | – |")
            continue
        once = found.get("write_seconds", 0.0) + found.get("read_seconds", 0.0)
        pace = found["tokens"] / (found["seconds"] + once)
        limit = results["measured"].get(f"{models}/{profile}/sft", {})
        ratio = limit["tokens"] / limit["seconds"] / pace if "seconds" in limit and name not in NOT_TRAINED else None
        share = model_flops(*models.split(" → "), found, name) / found["seconds"] / results["peak_flops"]
        busy = found.get("busy", float("nan"))
        cells = [
            f"{pace:,.0f}", "–" if ratio is None else f"{ratio:.2f}",
            f"{found['memory'] / 1e9:.1f} GB" if found["memory"] else "–",
            f"{busy:.0f} %" if busy == busy else "–", f"{100 * share:.0f} %" if share else "–",
        ]  # fmt: skip
        rows.append(f"| {models} | {profile} | {name} | {' | '.join(cells)} |")
    machine = f"{results['device']}, torch {results['torch']}, transformers {results['transformers']}"
    return "\n".join([machine, "", *rows])


def main() -> None:
    """Measure, keep the figures, print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny models, on whatever device there is: does it work?")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the figures are kept, as JSON")
    parser.add_argument("--minutes", type=float, default=Plan.minutes, help="begin nothing more after these")
    parser.add_argument("--texts", nargs="+", choices=[name for name, _ in Plan.texts], help="these alone")
    parser.add_argument(
        "--pairs", nargs="+", choices=[name for name, _ in Plan.pairs], help="with these teachers alone"
    )
    parser.add_argument(
        "--systems",
        nargs="+",
        choices=[*SYSTEMS],
        default=[*SYSTEMS],
        help="these alone, in this order; kd and trainer come after build",
    )
    parser.add_argument("--document", action="store_true", help="put the table into docs/speed.md")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.tiny:
        parser.error("there is no GPU that torch can use. --tiny shows on any machine that the benchmark works.")
    import transformers

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    results: Result = {"device": named, "torch": torch.__version__, "transformers": transformers.__version__}
    results |= {"date": time.strftime("%Y-%m-%d"), "peak_flops": peak_flops(device), "measured": {}}
    plan = replace(TINY if options.tiny else Plan(), minutes=options.minutes)
    if options.texts and not options.tiny:
        plan = replace(plan, texts=tuple(text for text in plan.texts if text[0] in options.texts))
    if options.pairs and not options.tiny:
        plan = replace(plan, pairs=tuple(pair for pair in plan.pairs if pair[0] in options.pairs))
    for key, result in measure(plan, device, options.systems):
        print(key, result.get("failed") or f"{result['seconds']:.2f} s", flush=True)
        results["measured"][key] = result
        options.results.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(options.results) as partial:
            partial.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(f"\n{table(results)}\n\n{options.results}")
    if options.document:
        from benchmarks.tables import write_document

        write_document(DOCUMENT, {"gpu": table(results)})


if __name__ == "__main__":
    main()
