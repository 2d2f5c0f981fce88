"""`python -m ichfast` is `ichfast`."""

from ichfast.cli.main import main

if __name__ == "__main__":
    main()
