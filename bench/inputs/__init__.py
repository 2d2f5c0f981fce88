"""Data to measure with: stores, copies, files in all transfer syntaxes."""
