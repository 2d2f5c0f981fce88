"""How things are measured: timing, records, tables."""
