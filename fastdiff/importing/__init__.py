"""Reading what other projects have published, without running any of it."""
