"""Work in shards, and models that actors of a Ray cluster hold: the same bytes as in one process, whoever is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from srd.base.errors import RunError, UserError
from srd.models import cluster
from srd.models.cluster import RemoteModel, ask, spread
from srd.models.settings import ClusterConfig
from tests.runs import TinyRun

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


@pytest.mark.parametrize("setting", [{"address": "head:6379"}, {"actors": 2}, {"gpus": 0.0}, {"memory_gb": 1.0}])
def test_a_cluster_that_is_not_asked_is_not_set_up(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(setting))} is for a Ray cluster. Set engine: ray"):
        ClusterConfig(**setting)
    assert ClusterConfig(engine="ray", **setting).engine == "ray"


@pytest.fixture(scope="module")
def two_machines() -> Iterator[Any]:
    """A cluster of two machines, as Ray simulates it."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    here = str(Path(__file__).parents[2])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([f"{here}/src", here])
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    made.add_node(num_cpus=2)
    made.wait_for_nodes()
    yield made
    import ray

    ray.shutdown()
    made.shutdown()
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


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


@needs_ray
@pytest.mark.slow
def test_a_run_on_a_cluster_makes_the_same_bytes(two_machines: Any, tiny_run: TinyRun) -> None:
    tiny_run.set(
        training__curriculum={"stages": 2, "score": ["ce", "ifd", "gap"]}, generation__batch_size=4,
        baselines={"seqkd": {"method": {"name": "seqkd", "max_new_tokens": 6}, "curriculum": None}},
    )  # fmt: skip
    tiny_run.run()
    for actors in (2, 5):
        other = tiny_run.twin().set(
            cluster={"engine": "ray", "address": two_machines.address, "actors": actors, "cpus": 0.5}
        )
        folder = tiny_run.folder / f"{actors}"
        if actors == 5:  # a machine is lost while shards are on their way
            victim = next(iter(two_machines.worker_nodes))
            two_machines.remove_node(victim)
        other.run(folder)
        for name in ("reflection/scores.parquet", "reflection/measures.parquet", "curriculum/ranked.parquet",
                     "seqkd/responses.parquet", "student/model.safetensors"):  # fmt: skip
            assert (folder / name).read_bytes() == (tiny_run.run_dir / name).read_bytes(), name
        shards = [sorted(path.read_bytes() for path in (where / "cache").rglob("shard-*.safetensors"))
                  for where in (folder, tiny_run.run_dir)]  # fmt: skip
        assert shards[0] == shards[1] != []


@needs_ray
@pytest.mark.slow
def test_an_address_without_a_cluster_is_refused() -> None:
    import ray

    ray.shutdown()
    with pytest.raises(UserError, match=r"no Ray cluster answers there .*ray start --head"):
        cluster.connect(ClusterConfig(engine="ray", address="127.0.0.1:1"))
