from .calibration import Calibration as Calibration
from .calibration import fit_calibration as fit_calibration
from .evaluation import Evaluation as Evaluation
from .evaluation import evaluate as evaluate
from .metrics import weighted_log_loss as weighted_log_loss
from .predictions import (
    read_predictions as read_predictions,
)
from .predictions import (
    write_predictions as write_predictions,
)
