"""`python -m deploy` is `instructloop`: children start without relying on the PATH."""

from deploy.cli import main

if __name__ == "__main__":
    main()
