from .packing import PackReport as PackReport
from .packing import pack_store as pack_store
from .prepare import prepare_store as prepare_store
from .repair import repair_store as repair_store
from .report import PrepareReport as PrepareReport
