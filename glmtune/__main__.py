"""`python -m glmtune`."""

from glmtune.cli import main

if __name__ == "__main__":
    main()
