"""`python -m zchunk` is the `zchunk` command."""

from zchunk.startup import main

if __name__ == "__main__":
    main()
