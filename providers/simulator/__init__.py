"""A stand-in for the frontier, for tests, the demo and benches."""

from providers.simulator.model import read_answers
from providers.simulator.server import Simulator

__all__ = ["Simulator", "read_answers"]
