"""Recorded results of the official codes, replayed through fastdiff. See `cases.py` for where the data comes from."""
