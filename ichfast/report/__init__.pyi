from .comparison import compare_runs as compare_runs
from .overview import describe_store as describe_store
from .preview import write_preview as write_preview
from .run_report import report_run as report_run
