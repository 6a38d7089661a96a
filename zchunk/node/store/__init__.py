"""A node's chunks on disk: `chunk_store` is what others use, the rest are its parts."""
