from .header import is_nifti as is_nifti
from .volume import read_volume as read_volume
