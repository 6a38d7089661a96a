"""What the tracker answers, a room a subject: each class takes the requests of its own.

`tracker/core.py` puts them together. All are pure: the store is touched in `Work` alone.
"""
