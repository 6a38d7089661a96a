"""`python -m zchunk` is the `zchunk` command."""

from zchunk.cli import main

if __name__ == "__main__":
    main()
