from .prepare import prepare_store as prepare_store
from .repair import repair_store as repair_store
from .report import PrepareReport as PrepareReport
