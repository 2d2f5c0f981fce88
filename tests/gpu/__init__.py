"""The same contracts on a device. They run with ``pytest -m gpu`` where one is."""
