"""Lightning callbacks, imported as `lightning_vcppo.callbacks`; one a file."""

from .aime_evaluation import AIMEEvaluation
from .critic_calibration import CriticCalibration
from .guard_rails import GuardRails
from .model_export import ModelExport
from .plots import LearningCurves
from .progress import RolloutProgressBar
from .response_writer import ResponseWriter
from .reward_decay import RewardDecayMonitor
from .rollout_checkpoint import RolloutCheckpoint
from .value_pretraining import ValuePretraining

__all__ = [
    "AIMEEvaluation",
    "CriticCalibration",
    "GuardRails",
    "LearningCurves",
    "ModelExport",
    "ResponseWriter",
    "RewardDecayMonitor",
    "RolloutCheckpoint",
    "RolloutProgressBar",
    "ValuePretraining",
]
