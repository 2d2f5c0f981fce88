from .build import Backbone as Backbone
from .build import build_model as build_model
from .config import ARCHS as ARCHS
from .config import ModelConfig as ModelConfig
