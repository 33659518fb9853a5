"""Conventions of other libraries, as fastdiff's processes, levels and solvers."""
