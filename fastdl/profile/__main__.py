"""``python -m fastdl.profile script.py [arguments]`` is ``fastdl profile script`` with these words."""

import sys

from fastdl.cli import main

if __name__ == "__main__":
    sys.exit(main(["profile", "script", *sys.argv[1:]]))
