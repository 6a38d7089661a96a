"""What `scripts/bench` runs: figures of zchunk, each with what it is held against."""
