"""Complete named settings of a run."""
