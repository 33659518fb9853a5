"""Exposure bias: the drift between what a network saw in training and what it sees while sampling."""

from .schedules import LinearScale, epsilon_scales

__all__ = ["LinearScale", "epsilon_scales"]
