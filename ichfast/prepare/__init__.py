"""DICOM sources to a store, in parallel and resumable."""
