"""The table of environments: what it says is what the environments are, and what was measured."""

import subprocess
import sys

import gymnasium
import pytest

from headstart.envs import engine
from headstart.envs.banks import import_seeds
from headstart.envs.experts import BOT, expert_for
from headstart.envs.missions import mission_length
from headstart.envs.registry import ENVIRONMENTS, FRAME_BYTES, Environment, Variant
from headstart.experiments import measure
from headstart.experiments.runlog import read_rows

ROWS = list(ENVIRONMENTS.values())
STUDY = [row for row in ROWS if row.study]
MEASURED = {row["id"]: row for row in read_rows(measure.RESULTS, kind=measure.KIND)}


def test_the_eight_of_the_study() -> None:
    assert [row.name for row in STUDY] == [
        *("key_corridor", "fetch", "blocked_unlock", "multi_room"),
        *("memory", "synth", "dynamic_obstacles", "mini_boss"),
    ]
    assert [row.name for row in ROWS if not row.study] == ["door_key"]
    assert all(name == row.name for name, row in ENVIRONMENTS.items())


def test_every_environment_of_the_study_has_variants_of_its_own() -> None:
    assert all(row.ood for row in STUDY)
    ids = [row.id for row in ROWS] + [variant.id for row in ROWS for variant in row.ood]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_says_what_the_environment_is(row: Environment) -> None:
    levels = import_seeds(row.id, range(2))
    assert row.n_actions == engine.n_actions(levels.rows)
    assert row.n_actions == gymnasium.make(row.id).action_space.n  # type: ignore[attr-defined]
    assert row.mission_words == mission_length(row.id)
    assert engine.observe(levels.rows).shape[1] == FRAME_BYTES
    assert (row.expert == "bot") == (expert_for(row.id) is BOT)
    assert row.budget >= 8
    assert row.history >= 1


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_variants_have_the_expert_and_the_actions_of_their_environment(row: Environment) -> None:
    for variant in row.ood:
        assert expert_for(variant.id) is expert_for(row.id)
        assert engine.n_actions(import_seeds(variant.id, [0]).rows) == row.n_actions


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_figures_are_those_that_were_measured(row: Environment) -> None:
    found = MEASURED[row.id]
    assert row.expert_length == float(found["expert_length"])
    assert row.expert_success == float(found["expert_success"])
    assert row.random_success == float(found["random_success"])
    assert float(found["expert_unlimited"]) >= 0.95
    assert row.expert_success >= 0.85
    assert row.random_success < 0.5


@pytest.mark.parametrize("row", [place for row in STUDY for place in (row, *row.ood)], ids=lambda row: row.id)
def test_horizons_are_four_times_the_experts_length(row: Environment | Variant) -> None:
    found = MEASURED[row.id]
    assert row.horizon == min(int(4 * float(found["expert_length"])), int(found["max_steps"]))


def test_the_table_is_light_to_import() -> None:
    code = "import sys, headstart.envs.registry; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"numpy", "torch", "gymnasium", "minigrid", "numba"} & set(loaded)
