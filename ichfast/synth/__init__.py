"""Synthetic heads with hemorrhages, as DICOM files with labels."""
