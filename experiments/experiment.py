"""What an experiment is: demonstrations, arms, fine-tuning, tests; and how long it may take."""

from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module

from headstart.envs.banks import bank, import_seeds
from headstart.envs.errors import UsageError
from headstart.envs.instructions import ALTERATIONS, has_instructions
from headstart.envs.processes import available_cores
from headstart.envs.registry import Environment
from headstart.envs.simulator import GridStates
from headstart.experiments.arms import Arm
from headstart.experiments.finetune import RL
from headstart.learners import LEARNERS, IWMReflect, Reflection

__all__ = ["MODES", "RL", "Exam", "Experiment", "exams", "experiment_of", "plan", "seconds"]


@dataclass(frozen=True)
class Experiment:
    """Everything that one script decides. Nothing edits it; command-line flags make a changed copy."""

    name: str
    env_id: str
    demos: int
    horizon: int
    """Step limit of an episode."""
    history: int
    """Earlier frames and actions in an observation."""
    ood: dict[str, int]
    """Ids of the out-of-distribution variants, each with its step limit."""
    random_success: float
    """Success of uniform actions and of the expert, between which success is scaled."""
    expert_success: float
    arms: dict[str, Arm]
    rl: RL
    train_levels: int = 8192
    validation_levels: int = 300
    """Levels on which curves are drawn; test levels are played once, after the fit."""
    test_levels: int = 1000

    @classmethod
    def of(cls, env: Environment, arms: dict[str, Arm], rl: RL) -> "Experiment":
        """What the registry says of an environment, with the arms and the fine-tuning of its script."""
        return cls(
            name=env.name,
            env_id=env.id,
            demos=env.budget,
            horizon=env.horizon,
            history=env.history,
            ood={variant.id: variant.horizon for variant in env.ood},
            random_success=env.random_success,
            expert_success=env.expert_success,
            arms=arms,
            rl=rl,
        )

    def rl_of(self, arm: str) -> RL:
        """Fine-tuning from an arm's warm start, with its own settings."""
        ppo = self.arms[arm].ppo
        if self.arms[arm].rl and ppo and self.rl.algorithm != "ppo":
            raise UsageError(f"{arm}: has settings of PPO, but {self.name} fine-tunes by {self.rl.algorithm}.")
        return replace(self.rl, settings={**self.rl.settings, **ppo})


def experiment_of(name: str) -> Experiment:
    """The experiment of a script, by the name that the registry has for its environment."""
    return import_module(f"headstart.experiments.{name}").EXPERIMENT


# ---- how it is tested ----
@dataclass(frozen=True)
class Exam:
    """One way to test a policy, each level once."""

    levels: str
    """An id; the levels are its test split."""
    horizon: int
    instruction: str
    """"given", or what the agent is told instead of the truth."""
    mode: str


MODES = {"sampled": {}, "cool": {"temperature": 0.5}, "greedy": {"greedy": True}}


def exams(experiment: Experiment) -> list[Exam]:
    """In distribution in every mode, out of distribution, and with instructions that are not true."""
    levels = bank(experiment.env_id, "test", experiment.test_levels)
    return _exams(experiment, instructed=has_instructions(GridStates.of(levels).mission()))


def _exams(experiment: Experiment, *, instructed: bool) -> list[Exam]:
    env_id, horizon = experiment.env_id, experiment.horizon
    tests = [Exam(env_id, horizon, "given", mode) for mode in MODES]
    tests += [
        Exam(ood, limit, "given", mode) for ood, limit in experiment.ood.items() for mode in ("sampled", "greedy")
    ]
    if instructed:
        tests += [Exam(env_id, horizon, alteration, "sampled") for alteration in ALTERATIONS]
    return tests


# ---- how long it takes ----
# Seconds on one core of the machine that experiments/results/ names; only the estimate of the time uses them.
_SECONDS_PER_UPDATE = 0.012
_REFLECTION = 2.3  # times that: 1.6 to 3.0 have been measured (README.md, `reflect` over bc_long, as many updates)
_RL_STEPS_PER_SECOND = 2500
_TEST_STEPS_PER_SECOND = 100_000


def seconds(experiment: Experiment, name: str) -> tuple[float, float]:
    """Estimated seconds of an arm's fit and its tests, and of its PPO with the tests that follow."""
    arm = experiment.arms[name]
    steps = sum(exam.horizon for exam in _exams(experiment, instructed=_is_instructed(experiment.env_id)))
    tests = experiment.test_levels * steps / _TEST_STEPS_PER_SECOND
    return _fit_seconds(arm) + tests, experiment.rl.steps / _RL_STEPS_PER_SECOND + tests if arm.rl else 0.0


@cache
def _is_instructed(env_id: str) -> bool:
    """What `exams` asks the test levels, of a few that are not kept: an estimate leaves nothing in the cache."""
    return len(set(import_seeds(env_id, range(8)).mission)) > 1


def _fit_seconds(arm: Arm) -> float:
    if arm.learner is None:
        return 0.0
    practises = issubclass(LEARNERS[type(arm.learner)], Reflection | IWMReflect)
    return (_REFLECTION if practises else 1.0) * _SECONDS_PER_UPDATE * arm.learner.total_updates


def plan(experiment: Experiment, seeds: tuple[int, ...], processes: int) -> str:
    """What a run will do and how long it may take, in words."""
    lines = [
        f"{experiment.name}: {experiment.env_id}, {experiment.demos} demonstrations, "
        f"{experiment.test_levels} test episodes of at most {experiment.horizon} steps, "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    ]
    times, first, width = [], {}, max(map(len, experiment.arms))
    for name, arm in experiment.arms.items():
        twin, time = first.setdefault(arm.fit, name), sum(seconds(experiment, name))
        if arm.learner is None:
            fit = "no warm start"
        elif twin == name:
            fit = f"{arm.learner.total_updates:,} updates without reward"
        else:
            fit, time = f"the warm start of {twin}", time - _fit_seconds(arm)
        lines.append(f"  {name:{width}}  {fit}" + (f", then PPO for {experiment.rl.steps:,} steps" if arm.rl else ""))
        times += [time] * len(seeds)
    at_once = min(processes, available_cores())
    minutes = max(1, round(max(sum(times) / at_once, *times) / 60))
    megabytes = 3 * len(times)
    lines.append(f"about {minutes} minute{'s' if minutes > 1 else ''} in {processes} processes, about {megabytes} MB")
    return "\n".join(lines)
