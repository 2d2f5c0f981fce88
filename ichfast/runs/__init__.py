"""Runs: a recipe applied to a store, and the folder it leaves."""
