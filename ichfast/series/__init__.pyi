from .batches import SeriesArrays as SeriesArrays
from .batches import series_rows as series_rows
from .blend import blend as blend
from .blend import choose_blend as choose_blend
from .config import SeriesConfig as SeriesConfig
from .fit import fit_head as fit_head
from .fit import predict_series as predict_series
from .head import SeriesHead as SeriesHead
