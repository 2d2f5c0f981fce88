from .build import (
    ARCHS as ARCHS,
)
from .build import (
    ModelConfig as ModelConfig,
)
from .build import (
    build_model as build_model,
)
