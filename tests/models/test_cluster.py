"""Work in shards, and models that actors of a Ray cluster hold: the same bytes as in one process, whoever is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from srd.base.errors import RunError, UserError
from srd.curation.reflection import reflect
from srd.models import cluster
from srd.models.cluster import RemoteModel, ask, spread
from srd.models.generation import Decoding, generate_tokens
from srd.models.settings import ClusterConfig
from srd.run import flow
from srd.training.batches import make_collator
from srd.training.cache import building as cache_building
from srd.training.cache.building import build_cache
from tests.faults import cache_killed_after
from tests.runs import TinyRun
from tests.tiny import tiny_model, tiny_tokenizer
from tests.training.test_trainer import encoded

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs ray")


class Doubler(nn.Module):
    """A model that can be asked something."""

    config, generation_config = {"size": 2}, None

    def forward(self, number: int) -> int:
        return 2 * number


def doubled(model: Any, more: int, number: int) -> int:
    return int(model(number)) + more


def test_shards_are_made_one_by_one_as_they_are_needed() -> None:
    made: list[int] = []

    def shards() -> Iterator[tuple[int]]:
        for number in range(3):
            made.append(number)
            yield (number,)

    found = []
    for place, result in spread(Doubler(), doubled, (10,), shards()):
        found.append((place, result, len(made)))
    assert found == [(0, 10, 1), (1, 12, 2), (2, 14, 3)]
    assert ask(Doubler(), doubled, 1, 4) == 9


def test_without_ray_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ray\[default\]'"):
        cluster.check_installed()


def test_an_address_at_which_nothing_listens_is_refused_before_any_work(
    tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "check_installed", lambda: None)
    with pytest.raises(UserError, match=r"'127.0.0.1:9': no Ray cluster answers there.*`ray start --head`"):
        tiny_run.set(cluster={"engine": "ray", "address": "127.0.0.1:9"}).advance("reflection")
    assert not (tiny_run.run_dir / "examples").exists()


def test_a_machine_on_which_ray_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    told = cluster._no_cluster(ClusterConfig(engine="ray"), Exception("The node timed out.\nSomething\nat 12 s\n"))
    assert isinstance(told, RunError) and "timed out. … at 12 s The same command tries again" in str(told)
    monkeypatch.setenv("RAY_ADDRESS", "head:1")
    assert str(cluster._no_cluster(ClusterConfig(engine="ray"), OSError("no"))).startswith("RAY_ADDRESS 'head:1': no")


@pytest.mark.parametrize("setting", [{"address": "head:6379"}, {"actors": 2}, {"gpus": 0.0}, {"memory_gb": 1.0}])
def test_a_cluster_that_is_not_asked_is_not_set_up(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(setting))} is for a Ray cluster. Set engine: ray"):
        ClusterConfig(**setting)
    assert ClusterConfig(engine="ray", **setting).engine == "ray"


class StandIn:
    """What is used of Ray, in this process: actors on machines, of which one can be lost.

    Args:
        machines: How many.
        lost_after: Answers after which the first machine is lost, with what its actors have not answered.
    """

    exceptions = SimpleNamespace(RayError=OSError, RayTaskError=type("RayTaskError", (OSError,), {}))

    def __init__(self, machines: int, lost_after: int | None = None) -> None:
        self.machines, self.lost_after = list(range(machines)), lost_after
        self.lost: set[int] = set()
        self.answers: list[str] = []  # names of the functions that were answered
        self.actors = 0
        self.order = random.Random(0)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 8.0}

    def nodes(self) -> list[dict[str, bool]]:
        return [{"Alive": True} for _ in self.machines]

    def is_initialized(self) -> bool:
        return True

    def put(self, value: Any) -> Any:
        return value

    def remote(self, kind: Any) -> Any:
        return SimpleNamespace(options=lambda **takes: SimpleNamespace(remote=lambda: self._actor(kind())))

    def _actor(self, holder: Any) -> Any:
        self.actors += 1
        machine = self.machines[self.actors % len(self.machines)]

        def asked(name: str) -> Any:
            return SimpleNamespace(remote=lambda *given: _Awaited((machine, holder, name, given)))

        return _Actor(asked)

    def wait(self, awaited: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return [self.order.choice(awaited)], []  # any may be the next

    def get(self, awaited: Any) -> Any:
        machine, holder, name, given = awaited.asked
        if name == "call":
            self.answers.append(given[2].__name__)
        if len(self.answers) == self.lost_after and not self.lost:
            self.lost.add(self.machines.pop(0))
        if machine in self.lost:
            raise OSError("its machine is gone")
        return getattr(holder, name)(*given) if hasattr(holder, name) else None

    def cancel(self, awaited: Any) -> None:
        pass

    def kill(self, actor: Any) -> None:
        pass


class _Awaited:
    """An answer that is on its way."""

    def __init__(self, asked: Any) -> None:
        self.asked = asked


class _Actor:
    """Its methods have ``remote``."""

    def __init__(self, asked: Any) -> None:
        self._asked = asked

    def __getattr__(self, name: str) -> Any:
        return self._asked(name)


TOKENIZER = tiny_tokenizer("llama")


def fill_a_cache(model: Any, folder: Path) -> Any:
    examples, collator = encoded(16, TOKENIZER), make_collator(tiny_model("llama"), TOKENIZER)
    build_cache(folder / "cache", lambda: model, examples, collator, batch_size=2)
    return {path.name: path.read_bytes() for path in (folder / "cache").glob("*.safetensors")}


def answer_prompts(model: Any, folder: Path) -> Any:
    rows = encoded(16, TOKENIZER)
    prompts = [rows.tokens(i)["prompt_ids"] for i in range(len(rows))]
    way = Decoding(4, temperature=1.0)
    return generate_tokens(model, TOKENIZER, prompts, rows.ids, way, batch_size=2, folder=folder / "batches")


def reflect_on(model: Any, folder: Path) -> Any:
    rows = [{"id": f"{i}", "instruction": "the sky", "output": "is blue " * (1 + i % 3)} for i in range(12)]
    reflect(model, TOKENIZER, rows, batch_size=2, max_new_tokens=3, folder=folder / "batches")
    return {path.name: path.read_bytes() for path in (folder / "batches").iterdir()}


WORK = {"cache": fill_a_cache, "texts and evaluation": answer_prompts, "reflection": reflect_on}


def on_a_cluster(ray: Any, actors: int, monkeypatch: pytest.MonkeyPatch) -> RemoteModel:
    """The tiny model, held by actors of a stand-in."""
    monkeypatch.setattr(cluster, "connect", lambda settings: ray)
    monkeypatch.setattr(cluster, "_in_use", [])
    return RemoteModel(ClusterConfig(engine="ray", actors=actors), lambda: tiny_model("llama", seed=1))


@pytest.mark.parametrize("work", WORK)
def test_a_machine_that_is_lost_in_the_middle_changes_no_byte(
    work: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = WORK[work](tiny_model("llama", seed=1).eval(), tmp_path / "here")
    for actors, machines, lost_after in ((2, 2, None), (5, 3, 5)):
        ray = StandIn(machines, lost_after)
        model = on_a_cluster(ray, actors, monkeypatch)
        assert WORK[work](model, tmp_path / f"{actors}") == whole != {}
        assert len(ray.lost) == (lost_after is not None) and ray.actors >= actors + len(ray.lost)
        again = len(ray.answers)
        assert WORK[work](model, tmp_path / f"{actors}") == whole  # what is a file by now is not asked for again
        assert len(ray.answers) == again


def test_actors_that_never_start_end_the_run_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = StandIn(2)
    answers = ray.get

    def get(awaited: Any) -> Any:
        if awaited.asked[2] == "__ray_ready__":
            raise OSError("The actor died in its creation task\n  File x\nModuleNotFoundError: No module named 'srd'\n")
        return answers(awaited)

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(cluster, "PAUSE", 0.0)
    with pytest.raises(RunError, match=r"starts \(8 tries\).*creation task … ModuleNotFoundError.*need Python, srd"):
        on_a_cluster(ray, 2, monkeypatch)
    assert ray.actors == 2 + 7  # one for each, and another after each failure but the last


@pytest.mark.parametrize(
    ("address", "variable", "place"),
    [(None, None, "local"), (None, "head:1", "head:1"), ("head:2", "head:1", "head:2")],
)
def test_a_cluster_that_happens_to_run_here_is_not_joined(
    address: str | None, variable: str | None, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert cluster._place(ClusterConfig(engine="ray", address=address)) == place


def test_the_command_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_building, "SHARD_BATCHES", 2)
    whole = fill_a_cache(tiny_model("llama", seed=1).eval(), tmp_path / "here")
    rays = [StandIn(2), StandIn(2)]
    with cache_killed_after(2):
        fill_a_cache(on_a_cluster(rays[0], 2, monkeypatch), tmp_path / "there")
    kept = len(list((tmp_path / "there" / "cache").glob("shard-*.json")))
    assert fill_a_cache(on_a_cluster(rays[1], 5, monkeypatch), tmp_path / "there") == whole
    assert kept == 2 and rays[1].answers.count("_packed") == 8 - 2 * kept  # of eight batches


def patiently(start: Callable[[], Any]) -> Any:
    """Start a node of a cluster: Ray gives it half a minute, which a machine at work may not have."""
    for _ in range(4):
        with contextlib.suppress(Exception):
            return start()
    return start()


@pytest.fixture(scope="module")
def two_machines() -> Iterator[Any]:
    """A cluster of two machines, as Ray simulates it."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    here, patch = str(Path(__file__).parents[2]), pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", os.pathsep.join([f"{here}/src", here]))
    patch.setenv("RAY_worker_niceness", "0")  # else workers wait for all that the machine does beside them
    head = {"num_cpus": 2, "include_dashboard": False}
    made = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    patiently(lambda: made.add_node(num_cpus=2))
    made.wait_for_nodes()
    yield made
    import ray

    ray.shutdown()
    made.shutdown()
    patch.undo()


def slow_and_mortal(model: Any, folder: str, number: int) -> int:
    """A shard in which the first actor that comes by is killed."""
    mark = Path(folder) / f"{number}"
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def always_fatal(model: Any, number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def refused(model: Any, number: int) -> int:
    raise RunError(f"shard {number} is not finite")


@needs_ray
@pytest.mark.slow
def test_actors_do_shards_and_lost_ones_are_made_up_for(two_machines: Any, tmp_path: Path) -> None:
    settings = ClusterConfig(engine="ray", address=two_machines.address, actors=3)
    model = RemoteModel(settings, Doubler)
    assert model.config == {"size": 2}
    assert dict(spread(model, doubled, (1,), [(i,) for i in range(40)])) == {i: 2 * i + 1 for i in range(40)}
    assert dict(spread(model, slow_and_mortal, (str(tmp_path),), [(i,) for i in range(12)])) == {
        i: 2 * i for i in range(12)
    }
    with pytest.raises(RunError, match="shard 1 is not finite"):
        list(spread(model, refused, (), [(1,)]))
    with pytest.raises(RunError, match="shard 0 has ended 3 actors"):
        list(spread(model, always_fatal, (), [(1,)]))


COMPARED = ("reflection/scores.parquet", "reflection/measures.parquet", "curriculum/ranked.parquet",
            "seqkd/responses.parquet", "student/model.safetensors")  # fmt: skip


def bytes_of(folder: Path) -> dict[str, bytes]:
    """What a run makes by shards, its answers and its student."""
    files = [folder / name for name in COMPARED]
    files += [path for pattern in ("cache/**/shard-*.safetensors", "evaluation/predictions/*.jsonl")
              for path in sorted(folder.glob(pattern))]  # fmt: skip
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def lose_a_machine_in_each_step(machines: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Take a machine away when half of the first round of each kind of work is answered, and bring a fresh one.

    Returns:
        The names of the functions of the work, as that happens.
    """
    answer, begun, hit = cluster._Round._answer, {}, []

    def answered(self: Any, reference: Any) -> Any:
        found, kind = answer(self, reference), self.asked[2].__name__
        begun.setdefault(kind, []).append(found)
        if len(begun[kind]) == 2 and self.given:
            hit.append(kind)
            machines.remove_node(next(iter(machines.worker_nodes)))
            patiently(lambda: machines.add_node(num_cpus=2))
        return found

    monkeypatch.setattr(cluster._Round, "_answer", answered)
    return hit


class StoodIn:
    """Machines of a `StandIn`, as Ray's simulation has them."""

    address = "head:6379"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ray = StandIn(3)
        monkeypatch.setattr(cluster, "connect", lambda settings: self.ray)
        monkeypatch.setattr(cluster, "_in_use", [])
        monkeypatch.setattr(cluster, "check_installed", lambda: None)
        monkeypatch.setattr(flow, "check_address", lambda settings: None)

    @property
    def worker_nodes(self) -> list[int]:
        return self.ray.machines[1:]

    def remove_node(self, machine: int) -> None:
        self.ray.machines.remove(machine)
        self.ray.lost.add(machine)

    def add_node(self, num_cpus: int) -> None:
        self.ray.machines.append(max(*self.ray.machines, *self.ray.lost) + 1)


@pytest.fixture(params=["stand-in", pytest.param("ray", marks=needs_ray)])
def machines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cluster that loses machines: Ray's simulation of one, or what stands for it."""
    return StoodIn(monkeypatch) if request.param == "stand-in" else request.getfixturevalue("two_machines")


@pytest.mark.slow
def test_a_run_on_a_cluster_makes_the_same_bytes(
    machines: Any, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_run.set(
        training__curriculum={"stages": 2, "score": ["ce", "ifd", "gap"]}, generation__batch_size=4,
        baselines={"seqkd": {"method": {"name": "seqkd", "max_new_tokens": 6}, "curriculum": None}},
        data__test_size=12, evaluation__models=["student"],
    )  # fmt: skip
    tiny_run.run()
    whole, ray = bytes_of(tiny_run.run_dir), {"engine": "ray", "address": machines.address, "cpus": 0.5}
    assert bytes_of(tiny_run.twin().set(cluster={**ray, "actors": 2}).run(tiny_run.folder / "2").folder) == whole
    hit = lose_a_machine_in_each_step(machines, monkeypatch)
    assert bytes_of(tiny_run.twin().set(cluster={**ray, "actors": 5}).run(tiny_run.folder / "5").folder) == whole
    assert {"_packed", "_decode"} < set(hit) and len(hit) >= 4  # the cache, texts, reflection, likelihoods


@needs_ray
@pytest.mark.slow
def test_an_address_without_a_cluster_is_refused() -> None:
    import ray

    ray.shutdown()
    with pytest.raises(UserError, match=r"no Ray cluster answers there .*ray start --head"):
        cluster.connect(ClusterConfig(engine="ray", address="127.0.0.1:1"))
