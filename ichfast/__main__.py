"""`python -m ichfast` is `ichfast`."""

from ichfast.cli import main

if __name__ == "__main__":
    main()
