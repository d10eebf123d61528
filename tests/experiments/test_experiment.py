"""What an experiment says of itself."""

import dataclasses

import pytest
from tiny import LEARNED, TINY

from headstart.envs.registry import ENVIRONMENTS
from headstart.experiments import experiment
from headstart.experiments.arms import Arm
from headstart.experiments.experiment import RL, Exam, Experiment, exams, plan, seconds
from headstart.learners import BCConfig, IWMConfig, JudgeConfig, NoopConfig, ReflectionConfig

EXPERIMENT = dataclasses.replace(
    TINY,
    arms={
        "scratch": Arm(None, memory=0, rl=True),
        "bc": TINY.arms["bc"],
        "iwm": Arm(IWMConfig(bc=LEARNED, updates=4), memory=0, rl=False),
    },
    rl=RL(steps=384),
    test_levels=12,
)


def test_the_plan_says_what_is_going_to_happen() -> None:
    text = plan(EXPERIMENT, (0, 1), processes=2)
    for words in ("tiny", TINY.env_id, "2 demonstrations", "12 test episodes", "20 steps", "seeds 0, 1", "minute"):
        assert words in text
    for arm, updates in (("bc", "3 updates"), ("iwm", "7 updates"), ("scratch", "no warm start")):
        line = next(line for line in text.splitlines() if line.split()[0] == arm)
        assert updates in line
        assert ("PPO for 384 steps" in line) == EXPERIMENT.arms[arm].rl


# Of 60 updates of bc, 3 x 30 of judges and 2 x 25 after practice; its control leaves the judges out.
REFLECT = ReflectionConfig(bc=BCConfig(updates=60), judge=JudgeConfig(members=3, updates=30), round_updates=25)


def test_seconds_by_hand() -> None:
    """0.012 an update, 2.3 times that with reflection; 2,500 steps of PPO and 100,000 of a test in one."""
    # 20 steps in three modes; 30 and 50 in two
    doors = dataclasses.replace(EXPERIMENT, ood={"one": 30, "other": 50}, test_levels=1000)
    tests = 1000 * (3 * 20 + 2 * (30 + 50)) / 100_000
    assert seconds(doors, "scratch") == pytest.approx((tests, 384 / 2500 + tests))
    assert seconds(doors, "bc") == pytest.approx((3 * 0.012 + tests, 384 / 2500 + tests))
    assert seconds(doors, "iwm") == pytest.approx((7 * 0.012 + tests, 0))
    # and in three that tell it something untrue
    arms = {"reflect": Arm(REFLECT, 1, rl=True), "noop": Arm(NoopConfig(REFLECT), 1, rl=False)}
    env = ENVIRONMENTS["fetch"]
    fetch = dataclasses.replace(Experiment.of(env, arms, RL(steps=5000)), test_levels=500)
    tests = 500 * (3 * 20 + 2 * (32 + 20) + 3 * 20) / 100_000
    assert seconds(fetch, "reflect") == pytest.approx((200 * 2.3 * 0.012 + tests, 5000 / 2500 + tests))
    assert seconds(fetch, "noop") == pytest.approx((110 * 2.3 * 0.012 + tests, 0))


def test_an_estimate_knows_who_is_told_something() -> None:
    """Without the levels that an exam asks, which take their time to make."""
    told = {name for name, env in ENVIRONMENTS.items() if experiment._is_instructed(env.id)}
    assert told == {"key_corridor", "fetch", "blocked_unlock", "synth", "mini_boss"}


def test_minutes_and_megabytes_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "available_cores", lambda: 2)
    # tests are 60 x 100,000 steps, so 60 s, and twice with RL, which is another 300 s
    longer = dataclasses.replace(EXPERIMENT, test_levels=100_000, rl=RL(steps=750_000))
    arms = {"scratch": longer.arms["scratch"], "bc": Arm(BCConfig(updates=10_000), memory=0, rl=False)}
    # scratch 420 s, bc 120 + 60 s: 1,800 s for three seeds, or half in two processes
    for processes, last in (
        (1, "about 30 minutes in 1 processes, about 18 MB"),
        (2, "about 15 minutes in 2 processes, about 18 MB"),
    ):
        text = plan(dataclasses.replace(longer, arms=arms), (0, 1, 2), processes)
        assert text.splitlines()[-1] == last
    # one run takes as long as it takes
    assert "about 7 minutes in 2 processes" in plan(dataclasses.replace(longer, arms=arms), (0,), 2)


def test_more_processes_than_cores_save_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "available_cores", lambda: 2)
    minutes = [plan(EXPERIMENT, tuple(range(10_000)), some).splitlines()[-1].split()[1] for some in (1, 2, 64)]
    assert int(minutes[0]) > int(minutes[1])
    assert minutes[1] == minutes[2]


def test_a_warm_start_that_is_shared_is_counted_once() -> None:
    bc, seeds = EXPERIMENT.arms["bc"], tuple(range(1000))
    alone, other = ({"bc": bc, "last": Arm(last, bc.memory, rl=True)} for last in (bc.learner, IWMConfig(bc=LEARNED)))
    shared, apart = (plan(dataclasses.replace(EXPERIMENT, arms=arms), seeds, 1) for arms in (alone, other))
    assert "last  the warm start of bc, then PPO for 384 steps" in shared
    assert "updates without reward" in next(line for line in apart.splitlines() if "last" in line)
    minutes, more = (int(text.splitlines()[-1].split()[1]) for text in (shared, apart))
    assert minutes < more


def test_more_work_takes_longer() -> None:
    longer = dataclasses.replace(EXPERIMENT, rl=RL(steps=10 * EXPERIMENT.rl.steps))
    assert seconds(longer, "bc")[0] == seconds(EXPERIMENT, "bc")[0] < seconds(EXPERIMENT, "iwm")[0]
    assert seconds(longer, "bc")[1] > seconds(EXPERIMENT, "bc")[1]
    assert seconds(longer, "iwm")[1] == 0  # has no PPO


def test_what_is_tested() -> None:
    """In distribution, in every mode; out of distribution, with its step limit; with instructions that are not true."""
    env = ENVIRONMENTS["fetch"]
    fetch = Experiment.of(env, EXPERIMENT.arms, RL())
    found = exams(dataclasses.replace(fetch, test_levels=4))
    for mode in ("sampled", "cool", "greedy"):
        assert Exam(env.id, env.horizon, "given", mode) in found
    for variant in env.ood:
        assert Exam(variant.id, variant.horizon, "given", "greedy") in found
    assert {exam.levels for exam in found if exam.instruction != "given"} == {env.id}
    assert {exam.instruction for exam in exams(EXPERIMENT)} == {"given"}  # DoorKey asks for nothing
