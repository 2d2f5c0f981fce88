"""One DICOM file to slices of raw uint16."""
