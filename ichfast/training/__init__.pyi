from .config import Phase as Phase
from .config import TrainConfig as TrainConfig
from .step import Stepper as Stepper
from .trainer import Trainer as Trainer
