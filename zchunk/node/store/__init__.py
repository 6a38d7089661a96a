"""A node's chunks on disk: `chunkstore` is what others use, the rest are its parts."""
