from .calibration import calibrate_run as calibrate_run
from .calibration import remove_calibration as remove_calibration
from .ensemble import PredictConfig as PredictConfig
from .ensemble import predict_runs as predict_runs
from .from_dicom import predict_dicom as predict_dicom
from .submission import write_submission as write_submission
