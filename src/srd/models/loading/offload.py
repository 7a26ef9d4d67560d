"""A model that does not fit into memory, run a group of layers at a time from its files.

What lies outside the stacks of layers (embeddings, norms, the head) stays in memory; the layers' weights stay on disk.
Many forward passes are under way at once, each in a thread of its own, of which one works at a time: it runs until it
meets a layer that is not here, and waits. When all wait, the next group of layers is read, once for all of them. So the
model is run by its own code, batch by batch as ever, and gives the same numbers; only the order of the work is another.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook
from torch import nn
from transformers import PreTrainedConfig

from srd.base.text import duration, many, shown_bytes
from srd.models.loading.architecture import count_parameters, precision_of, without_weights
from srd.models.pruning import layer_stacks

T = TypeVar("T")

MOST_PASSES = 64  # forward passes under way at once: their activations are in memory, and each has a thread
SHARE = 0.8  # of free memory that a whole model may take
GROUP_SHARE = 0.25  # of free memory that a group of layers may take: activations take the rest
READ_TO_MEASURE = 256 << 20


def free_memory(device: torch.device | str | None = None) -> int:
    """Bytes that can be taken: of a GPU, or of this machine and what this process may have of it."""
    if device is not None and torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        files = [Path("/sys/fs/cgroup", name) for name in (limit, used)]
        if all(file.is_file() for file in files):
            most, taken = (file.read_text(encoding="utf-8").strip() for file in files)
            free = min(free, int(most) - int(taken)) if most.isdigit() else free
    return max(0, free)


def weight_bytes(config: PreTrainedConfig, dtype: str = "auto") -> int:
    """Bytes of a model's weights in a precision; ``auto``: as its configuration says."""
    kind = getattr(torch, precision_of(config) if dtype == "auto" else dtype)
    return int(count_parameters(config)["total"] * kind.itemsize)


def device_map(config: PreTrainedConfig, device: Any) -> dict[str, Any]:
    """Where each part of a model goes: layers to ``disk``, all others to ``device``."""
    model = without_weights(config)
    layers = {f"{path}.{place}" for path, stack in layer_stacks(model).values() for place in range(len(stack))}
    found: dict[str, Any] = {}

    def walk(prefix: str, module: nn.Module) -> None:
        for name, _ in module.named_parameters(recurse=False):
            found[prefix + name] = device
        for name, _ in module.named_buffers(recurse=False):
            found[prefix + name] = device
        for name, part in module.named_children():
            path = prefix + name
            if any(layer.startswith(f"{path}.") for layer in layers):
                walk(f"{path}.", part)
            else:
                found[path] = "disk" if path in layers else device

    walk("", model)
    return found


class _Stopped(BaseException):
    """Ends a pass that nobody waits for."""


class _Pass(threading.Thread):
    """A forward pass that stops before layers that are not here.

    Attributes:
        at: The group of layers that it waits for; None: it has not begun, or is done.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.at: int | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_stopped = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)

    def run(self) -> None:
        self._go.acquire()
        try:
            if not self.is_stopped:
                with torch.no_grad():  # a thread begins with gradients on
                    self.result = self.work()
        except BaseException as error:  # it is raised where the passes were asked for
            self.error = error
        self.at = None
        self._back.release()

    def resume(self) -> None:
        """Let it work until it waits again, or is done."""
        self._go.release()
        self._back.acquire()
        if self.error is not None and not isinstance(self.error, _Stopped):
            raise self.error

    def wait_for(self, group: int) -> None:
        """Wait, from within the pass, until its group of layers is here."""
        self.at = group
        self._back.release()
        self._go.acquire()
        if self.is_stopped:
            raise _Stopped

    def stop(self) -> None:
        """End it where it waits."""
        self.is_stopped = True
        self._go.release()
        self._back.acquire()


class LayerGroups:
    """Runs a model whose layers lie on disk (`device_map`).

    Args:
        model: As transformers has loaded it.
        memory: Bytes that a group of layers may take.

    Attributes:
        bytes: Of all layers.
        groups: Layers that are in memory at the same time.
    """

    def __init__(self, model: nn.Module, memory: int) -> None:
        self.groups: list[list[nn.Module]] = []
        self._here: int | None = None
        self._held: list[tuple[nn.Module, AlignDevicesHook]] = []
        self.bytes, taken = 0, memory
        for _, stack in layer_stacks(model).values():  # type: ignore[arg-type]
            for layer in stack:
                size = sum(tensor.numel() * tensor.element_size() for tensor in layer.parameters())
                if taken + size > memory:
                    self.groups.append([])
                    taken = 0
                self.groups[-1].append(layer)
                self.bytes, taken = self.bytes + size, taken + size
                layer.register_forward_pre_hook(partial(self._arrive, len(self.groups) - 1))

    def _arrive(self, group: int, module: nn.Module, args: Any) -> None:
        current = threading.current_thread()
        if isinstance(current, _Pass) and group != self._here:
            current.wait_for(group)

    def run(self, works: Iterable[Callable[[], T]]) -> Iterator[T]:
        """What some forward passes give, each group of layers being read once for `MOST_PASSES` of them."""
        rest = iter(works)
        while some := list(itertools.islice(rest, MOST_PASSES)):
            yield from self._together(some)

    def _together(self, works: Sequence[Callable[[], T]]) -> list[T]:
        passes = [_Pass(work) for work in works]
        try:
            for each in passes:
                each.start()
                each.resume()
            while waiting := [each for each in passes if each.at is not None]:
                self._bring(waiting[0].at)
                for each in (each for each in waiting if each.at == self._here):
                    each.resume()
        finally:
            self._bring(None)
            for each in (each for each in passes if each.at is not None):
                each.stop()
        return [each.result for each in passes]

    def _bring(self, group: int | None) -> None:
        """Have the weights of one group here, and of no other."""
        for module, hook in self._held:
            hook.offload = True
            hook.post_forward(module, None)
        self._held = []
        for layer in [] if group is None else self.groups[group]:
            for module, hook in _reading(layer):
                hook.pre_forward(module)
                hook.offload = False  # it has them, and neither reads nor drops them
                self._held.append((module, hook))
        self._here = group

    def reads(self, passes: int) -> int:
        """Bytes that are read for so many forward passes."""
        return self.bytes * -(-passes // MOST_PASSES)

    def outlook(self, passes: int, files: Sequence[Path]) -> str:
        """What so many forward passes will read, and how long that takes at the speed of these files."""
        waves, speed = -(-passes // MOST_PASSES), reading_speed(files)
        took = duration(self.reads(passes) / speed) if speed else "an unknown time"
        return (
            f"its {sum(map(len, self.groups))} layers ({shown_bytes(self.bytes)}) are read from disk in "
            f"{many(len(self.groups), 'group')}, {['once', 'twice'][waves - 1] if waves < 3 else f'{waves} times'}: "
            f"{shown_bytes(self.reads(passes))}, about {took} of reading"
        )


def _reading(layer: nn.Module) -> Iterator[tuple[nn.Module, AlignDevicesHook]]:
    """The modules of a layer that read their weights when they run, and what does it."""
    for module in layer.modules():
        hook = getattr(module, "_hf_hook", None)
        for each in hook.hooks if isinstance(hook, SequentialHook) else [hook]:
            if isinstance(each, AlignDevicesHook) and each.offload:
                yield module, each


def reading_speed(files: Sequence[Path]) -> float:
    """Bytes a second that come from the first of these files; 0 where there is nothing to read."""
    file = next((file for file in files if file.is_file() and file.stat().st_size), None)
    if file is None:
        return 0.0
    started, done = time.perf_counter(), 0
    with open(file, "rb", buffering=0) as opened:
        while done < READ_TO_MEASURE and (block := opened.read(1 << 24)):
            done += len(block)
    return done / max(time.perf_counter() - started, 1e-9)
