"""The public Python API: what `import fusionseg` gives.

Each function calls the same code as the command of its name, and raises `UserError` where the command prints an error.

May import: `utils`, `config`, `data`, `models`, `runs`, `training`, `inference`.
"""

from fusionseg.api.configuration import load_config
from fusionseg.api.data import open_dataset
from fusionseg.api.networks import build_network
from fusionseg.api.parts import register_loss, register_network, register_optimizer, register_schedule
from fusionseg.api.runs import Run, evaluate, load_run, predict
from fusionseg.api.training import pretrain, train
from fusionseg.utils.errors import TrainingStopped, UserError

__all__ = [
    "Run",
    "TrainingStopped",
    "UserError",
    "build_network",
    "evaluate",
    "load_config",
    "load_run",
    "open_dataset",
    "predict",
    "pretrain",
    "register_loss",
    "register_network",
    "register_optimizer",
    "register_schedule",
    "train",
]
