"""`python -m dphpc` is `dphpc`."""

from dphpc.cli.main import main

if __name__ == "__main__":
    main()
