"""The operating system: files, memory, signals, the terminal, ranks."""
