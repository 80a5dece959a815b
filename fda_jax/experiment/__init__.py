"""Floor 4: whole experiments."""

from fda_jax.experiment.diagnose import NonFiniteError
from fda_jax.experiment.folder import WorkdirError
from fda_jax.experiment.memory import Epoch, epochs
from fda_jax.experiment.run import evaluate, train
from fda_jax.experiment.saved import SavedRun, opened
from fda_jax.experiment.setup import Experiment, build
from fda_jax.experiment.shipping import Release, release
from fda_jax.training.checkpoints import CheckpointError

# What a user can mend; anything else is a fault of the program and keeps its traceback.
USER_ERRORS = (ValueError, WorkdirError, CheckpointError, NonFiniteError)

__all__ = [
    "USER_ERRORS",
    "CheckpointError",
    "Epoch",
    "Experiment",
    "NonFiniteError",
    "Release",
    "SavedRun",
    "WorkdirError",
    "build",
    "epochs",
    "evaluate",
    "opened",
    "release",
    "train",
]
