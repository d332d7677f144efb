"""`python -m glmtune`."""

import os
import sys

# `-m` puts the working folder first on the path, where a stranger's yaml.py may lie; the command `glmtune` does not.
if os.path.realpath(sys.path[0]) == os.getcwd():
    del sys.path[0]

from glmtune.cli import main

if __name__ == "__main__":
    main()
