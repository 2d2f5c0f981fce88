"""One step, one epoch, one run of phases."""
