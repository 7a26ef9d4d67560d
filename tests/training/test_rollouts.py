"""Who writes a batch: probabilities, buffer and threshold follow their definitions over 10,000 steps."""

from __future__ import annotations

import json
import math
from collections import Counter, deque
from typing import Any

import numpy as np
import pytest

from srd.training.rollouts import AdaptiveOffPolicy, OnPolicy, replace_responses

STEPS = 10_000


def rows_of(step: int, count: int = 4) -> list[dict[str, Any]]:
    return [{"id": f"{step}-{i}", "prompt_ids": [step], "response_ids": [7, 2]} for i in range(count)]


def within(observed: int, count: int, probability: float) -> bool:
    """Within five standard deviations of a binomial variable."""
    return abs(observed - count * probability) <= 5 * math.sqrt(count * probability * (1 - probability)) + 1e-9


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_mixture_probability(share: float) -> None:
    writers = Counter(OnPolicy(share, seed=3).writer(step, STEPS) for step in range(STEPS))
    assert set(writers) <= {"student", "data"}
    assert within(writers["student"], STEPS, share)
    if share in (0.0, 1.0):
        assert writers["student"] == share * STEPS


def test_choices_follow_seed_and_step_alone() -> None:
    """A resumed run and every process choose alike, whatever was asked before."""
    first = [OnPolicy(0.5, seed=1).writer(step, 100) for step in range(100)]
    assert [OnPolicy(0.5, seed=1).writer(step, 100) for step in reversed(range(100))] == first[::-1]
    assert [OnPolicy(0.5, seed=2).writer(step, 100) for step in range(100)] != first


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_share_of_student_text_and_of_fresh_samples(threshold: float) -> None:
    """Student text with probability threshold; of it, fresh with 1 - step/total, so half over the whole."""
    rollouts = AdaptiveOffPolicy(threshold, seed=5, buffer=rows_of(0), capacity=4)
    writers = [rollouts.writer(step, STEPS) for step in range(STEPS)]
    counts = Counter(writers)
    assert within(counts["data"], STEPS, 1 - threshold)
    assert within(counts["student"], STEPS, threshold / 2)
    for tenth in range(10):
        part = Counter(writers[tenth * 1000 : (tenth + 1) * 1000])
        assert within(part["student"], 1000, threshold * (1 - (tenth + 0.5) / 10))
    assert writers[-1] != "student"


def test_the_buffer_is_filled_before_it_is_read() -> None:
    rollouts = AdaptiveOffPolicy(1.0, capacity=8)
    for step in (97, 98):
        assert rollouts.writer(99, 100) == "student"
        rollouts.add(rows_of(step), step)
    assert rollouts.writer(99, 100) == "buffer"


def test_capacity_and_age_of_the_buffer() -> None:
    """It holds the newest responses up to its capacity, the oldest leave first, and age is the step of writing."""
    rollouts = AdaptiveOffPolicy(1.0, capacity=1000, seed=2)
    for step in range(STEPS // 4):
        rollouts.add(rows_of(step), step)
        assert len(rollouts.buffer) == min(1000, 4 * (step + 1))
    assert [row["id"] for row in rollouts.buffer[:2]] == ["2250-0", "2250-1"]
    assert [row["written"] for row in rollouts.buffer] == [step for step in range(2250, 2500) for _ in range(4)]
    drawn = Counter(row["id"] for step in range(STEPS // 8) for row in rollouts.draw(8, step))
    assert sum(drawn.values()) == STEPS and len(drawn) == 1000
    ages = [2500 - int(name.split("-")[0]) for name in drawn.elements()]
    assert sum(ages) / len(ages) == pytest.approx(125.5, abs=5 * 72.2 / math.sqrt(STEPS))


def test_drawn_rows_differ_where_there_are_enough() -> None:
    rollouts = AdaptiveOffPolicy(1.0, buffer=rows_of(0, 6))
    assert len({row["id"] for row in rollouts.draw(6, 1)}) == 6
    assert len(rollouts.draw(9, 1)) == 9
    assert rollouts.draw(3, 1) == rollouts.draw(3, 1) != rollouts.draw(3, 2)


@pytest.mark.parametrize(
    ("losses", "thresholds"),
    [
        ([2.0 + 0.08 * i for i in range(21)], [0.25 * min(4, i // 2) for i in range(21)]),  # a slow rise counts
        ([3.0, 2.0, 2.2, 3.05, 3.2, 3.25, 3.31], [0, 0, 0, 0, 0.25, 0.25, 0.5]),  # a fall moves nothing
        ([2.0, 2.1, 9.0, 1.0, 9.05, 9.1, 20.0, 30.0], [0, 0.25, 0.5, 0.5, 0.5, 0.75, 1, 1]),  # never above 1
    ],
)
def test_threshold_rises_above_the_reference(losses: list[float], thresholds: list[float]) -> None:
    """The first loss is that of before training; the reference moves only when the threshold does."""
    rollouts, history = AdaptiveOffPolicy(0.0, step_size=0.25, tolerance=0.1 - 1e-9), []
    for loss in losses:
        rollouts.observe(loss)
        history.append(rollouts.threshold)
    assert history == pytest.approx(thresholds)


def published(
    seed: int, losses: list[float], every: int, total: int, batch: int, start: float, capacity: int
) -> list[tuple[str, float, int]]:
    """The rule of the published code in plain words: who writes each step, the threshold then, the buffer after it."""
    threshold, reference, buffer, history = start, losses[0], deque[int](maxlen=capacity), []
    for step in range(total):
        chance = np.random.default_rng((seed, step)).random()
        if chance < threshold * (1 - step / total) or (chance < threshold and len(buffer) < capacity):
            writer = "student"
            buffer.extend([step] * batch)
        else:
            writer = "buffer" if chance < threshold else "data"
        history.append((writer, round(threshold, 9), len(buffer)))
        if (step + 1) % every == 0:
            loss = losses[(step + 1) // every]
            if loss >= reference + 0.1:
                threshold, reference = min(threshold + 0.1, 1.0), loss
    return history


@pytest.mark.parametrize("stages", [[240], [60, 60, 120], [24, 96, 120]], ids=["whole", "three stages", "growing"])
@pytest.mark.parametrize("seed", range(8))
def test_distillm_is_the_published_rule(seed: int, stages: list[int]) -> None:
    """Over random courses of the loss and a whole training, the state handed on from stage to stage by a file."""
    random = np.random.default_rng(seed)
    losses = (2 + np.cumsum(random.normal(0.03, 0.12, 21))).tolist()
    expected = published(seed, losses, 12, 240, 4, 0.2 * (seed % 2), 40)
    history: list[tuple[str, float, int]] = []
    state, done = None, 0
    for steps in stages:
        rollouts = AdaptiveOffPolicy(
            0.2 * (seed % 2), capacity=40, seed=seed, steps_before=done, steps_in_all=sum(stages)
        )
        assert rollouts.wants_reference
        rollouts.observe(losses[0]) if state is None else rollouts.restore(json.loads(state))
        for step in range(steps):
            threshold, writer = rollouts.threshold, rollouts.writer(step, steps)
            replace_responses([rows_of(0)], rollouts, step, steps, lambda rows: [[5, 2]] * len(rows))
            history.append((writer, round(threshold, 9), len(rollouts.buffer)))
            if (done + step + 1) % 12 == 0:
                rollouts.observe(losses[(done + step + 1) // 12])
        state, done = json.dumps(rollouts.state()), done + steps
    assert history == expected
    ages = [row["written"] for row in json.loads(state or "")["buffer"]]
    assert ages == [step for step, (writer, _, _) in enumerate(history) if writer == "student" for _ in range(4)][-40:]


def test_a_simulated_training_follows_its_own_threshold() -> None:
    """10,000 steps with a validation every 100: the number of student batches is that of the thresholds in force."""
    rollouts = AdaptiveOffPolicy(0.0, step_size=0.1, tolerance=0.05, capacity=50, seed=9)
    expected, variance, students, drawn_ages = 0.0, 0.0, 0, []
    for step in range(STEPS):
        if step % 100 == 0:
            rollouts.observe(2.0 + math.sin(step / 400))
        expected += rollouts.threshold
        variance += rollouts.threshold * (1 - rollouts.threshold)
        batches, by_student = replace_responses(
            [rows_of(step, 2)], rollouts, step, STEPS, lambda rows: [[5, 2]] * len(rows)
        )
        students += by_student
        if by_student and "written" in batches[0][0]:
            drawn_ages += [step - row["written"] for row in batches[0]]
    assert 0 < rollouts.threshold <= 1
    assert abs(students - expected) < 5 * math.sqrt(variance)
    assert min(drawn_ages) > 0 and len(rollouts.buffer) == 50


def test_on_policy_ignores_validation_and_keeps_nothing() -> None:
    rollouts = OnPolicy(0.5)
    rollouts.observe(9.0)
    rollouts.add(rows_of(1), 1)
    assert rollouts.student_share == 0.5 and rollouts.state() == {}
    rollouts.restore({})
    with pytest.raises(AssertionError):
        rollouts.draw(1, 1)


def test_state_makes_the_round_trip_through_a_file() -> None:
    one = AdaptiveOffPolicy(0.2, seed=4, capacity=10)
    for step, loss in enumerate((2.0, 2.5, 2.4)):
        one.add(rows_of(step), step)
        one.observe(loss)
    two = AdaptiveOffPolicy(0.0, seed=4, capacity=10)
    two.restore(json.loads(json.dumps(one.state())))
    assert two.threshold == pytest.approx(0.3) and two.reference_loss == 2.5 and len(two.buffer) == 10
    for step in range(3, 60):
        assert one.writer(step, 60) == two.writer(step, 60)
        assert one.draw(4, step) == two.draw(4, step)
        for rollouts in (one, two):
            rollouts.add(rows_of(step, 1), step)
            rollouts.observe(2.0 + (step % 3) / 4)
    assert one.state() == two.state()


def test_data_stays_as_it_is() -> None:
    batches = [rows_of(0), rows_of(1)]
    kept, by_student = replace_responses(batches, OnPolicy(0.0), 0, 10, lambda rows: pytest.fail("nobody asked"))
    assert kept is batches and not by_student


def test_student_text_replaces_responses_alone() -> None:
    """The prompt and the id stay; the teacher's cached states of the reference do not come along."""
    data = [[{**row, "teacher_hidden": "of the reference"} for row in rows_of(step)] for step in (3, 4)]
    asked: list[str] = []

    def write(rows: list[dict[str, Any]]) -> list[list[int]]:
        asked.extend(row["id"] for row in rows)
        return [[40 + i, 2] for i in range(len(rows))]

    rollouts = AdaptiveOffPolicy(1.0)
    written, by_student = replace_responses(data, rollouts, 0, 10, write)
    assert by_student and asked == [row["id"] for batch in data for row in batch]
    assert [[row["response_ids"][0] for row in batch] for batch in written] == [[40, 41, 42, 43], [44, 45, 46, 47]]
    assert all(set(row) == {"id", "prompt_ids", "response_ids"} for batch in written for row in batch)
    assert sorted(row["id"] for row in rollouts.buffer) == sorted(asked)
    assert data[0][0]["response_ids"] == [7, 2]


@pytest.mark.parametrize("sizes", [(8,), (4, 4), (2, 2, 2, 2), (5, 3), (8, 0)])
def test_what_a_step_draws_does_not_depend_on_its_split(sizes: tuple[int, ...]) -> None:
    rollouts = AdaptiveOffPolicy(1.0, seed=1, buffer=rows_of(0, 40), capacity=40)
    batches = [rows_of(9, size) for size in sizes]
    drawn, by_student = replace_responses(batches, rollouts, 10, 10, lambda rows: pytest.fail("the buffer will do"))
    assert by_student and [len(batch) for batch in drawn] == list(sizes)
    whole, _ = replace_responses([rows_of(9, 8)], rollouts, 10, 10, lambda rows: [])
    assert [row["id"] for batch in drawn for row in batch] == [row["id"] for row in whole[0]]
    assert len({row["id"] for row in whole[0]}) == 8
