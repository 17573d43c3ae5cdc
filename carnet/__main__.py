"""`python -m carnet`, the same as `carnet`."""

from carnet.cli.main import main

if __name__ == "__main__":
    main()
