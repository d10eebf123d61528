"""DoorKey as a picture: its expert plans behind the pixels, forks are exact, and it is learned from what is seen."""

import numpy as np
import pytest
import torch

from headstart.envs import Demos, branch, demonstrate, make_vec_env
from headstart.experiments.pixels import HORIZON, Pictured, reached
from headstart.learners import BC, PPO, BCConfig
from headstart.models import HeadstartPolicy


@pytest.fixture(scope="module")
def demos() -> Demos:
    pictured = Pictured()
    return demonstrate(pictured.make, pictured.expert, 1, horizon=HORIZON, success=reached, mode="deepcopy")


def test_the_expert_reaches_the_goal_and_what_is_shown_are_pixels(demos: Demos) -> None:
    assert len(demos) < HORIZON
    assert [part.picture for part in demos.layout.pictures] == [(3, 56, 56)]
    branches = branch(demos)
    ends = branches.ended[np.arange(len(demos)), demos.action, 0]
    assert ends.tolist() == [False] * (len(demos) - 1) + [True]
    led_to = branches.future[np.arange(len(demos) - 1), demos.action[:-1], 0]
    np.testing.assert_equal(led_to, demos.obs["frames"][1:, -1])  # forks show what really came


def test_it_is_learned_by_heart(demos: Demos) -> None:
    env = make_vec_env(demos, 1)
    kwargs = {"features_extractor_kwargs": {"width": 32, "channels": 8}}
    policy = PPO(HeadstartPolicy, env, seed=0, n_steps=8, batch_size=8, policy_kwargs=kwargs).policy
    BC(policy, BCConfig(updates=100, batch_size=16, learning_rate=3e-3, hidden_past=0.0)).fit(demos)
    with torch.no_grad():
        assert (policy.probabilities(demos.obs).argmax(1) == demos.action).mean() > 0.9
