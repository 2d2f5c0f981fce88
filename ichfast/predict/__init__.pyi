from .blending import blend_files as blend_files
from .calibration import calibrate_run as calibrate_run
from .calibration import remove_calibration as remove_calibration
from .ensemble import PredictConfig as PredictConfig
from .ensemble import predict_runs as predict_runs
from .extract import extract_features as extract_features
from .from_dicom import predict_dicom as predict_dicom
from .submission import write_submission as write_submission
