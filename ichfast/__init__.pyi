from .augment.config import AugmentConfig as AugmentConfig
from .errors import IchfastError as IchfastError
from .evaluation.evaluation import evaluate as evaluate
from .loading.batch import Batch as Batch
from .loading.config import DataConfig as DataConfig
from .loading.loader import make_loader as make_loader
from .models.build import build_model as build_model
from .predict.ensemble import predict_runs as predict_runs
from .prepare.prepare import prepare_store as prepare_store
from .recipes.recipe import Recipe as Recipe
from .recipes.resolve import resolve_recipe as resolve_recipe
from .runs.run import train_run as train_run
from .store.store import Store as Store
from .windows import Window as Window

__version__: str
