"""Choosing as the load moves: a controller for services, and a simulator that runs the same functions."""

from .arrivals import arrivals, recorded
from .controller import (
    Controller,
    Decision,
    Request,
    State,
    admit,
    decide,
    finish,
)
from .simulate import Outcome, World, best_fixed, simulate
from .stitch_choices import Choice, Choices

__all__ = [
    'Choice',
    'Choices',
    'Controller',
    'Decision',
    'Outcome',
    'Request',
    'State',
    'World',
    'admit',
    'arrivals',
    'best_fixed',
    'decide',
    'finish',
    'recorded',
    'simulate',
]
