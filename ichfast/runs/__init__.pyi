from .callbacks import Callback as Callback
from .callbacks import RunStart as RunStart
from .crossvalidation import train_folds as train_folds
from .run import TrainReport as TrainReport
from .run import train_run as train_run
from .trained import open_run as open_run
