"""NIfTI volumes to slices, laid out as those of DICOM files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
