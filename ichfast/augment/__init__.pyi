from .config import PRESETS as PRESETS
from .config import AugmentConfig as AugmentConfig
from .parameters import draw as draw
from .reference import apply_parameters as apply_parameters
