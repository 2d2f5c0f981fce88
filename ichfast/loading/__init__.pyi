from .batch import Batch as Batch
from .batch import Loader as Loader
from .config import (
    DataConfig as DataConfig,
)
from .config import (
    measure_normalization as measure_normalization,
)
from .loader import make_loader as make_loader
from .splits import FoldConfig as FoldConfig
from .splits import split_slices as split_slices
