"""CUDA graphs of whole sampling loops.

device    what records and replays: CUDA's graphs, one pool and one capture stream a device
key       the signature of a run
captured  one run: static memory, recording, replay
cache     which call gets a graph, which graphs are kept, what they have cost
network   one network evaluation alone
"""

from .cache import GraphCache, GraphStats
from .captured import CaptureError
from .device import GRAPH_DEVICES, has_graphs
from .network import GraphedNetwork

__all__ = ["GRAPH_DEVICES", "CaptureError", "GraphCache", "GraphStats", "GraphedNetwork", "has_graphs"]
