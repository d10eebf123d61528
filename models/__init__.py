"""Networks: encoders, memory, the policy, and the heads that learners put on it."""

from headstart.models.judge import Judge
from headstart.models.policy import FrameHistoryExtractor, HeadstartPolicy
from headstart.models.world_model import WorldModelHead

__all__ = ["FrameHistoryExtractor", "HeadstartPolicy", "Judge", "WorldModelHead"]
