"""Which stitch answers which request as the load changes: a controller, and a simulator that runs it."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_package

if TYPE_CHECKING:
    from .arrivals import draw_arrivals, read_arrivals
    from .controller import Controller, ControllerState, Decision, admit, decide, finish
    from .simulation import Outcome, World, best_fixed, simulate
    from .stitch_choices import Choice, Choices
    from .waiting_queue import Request
else:
    __getattr__, __dir__ = lazy_package(
        __name__,
        {
            'arrivals': ['draw_arrivals', 'read_arrivals'],
            'controller': ['Controller', 'Decision', 'ControllerState', 'admit', 'decide', 'finish'],
            'simulation': ['Outcome', 'World', 'best_fixed', 'simulate'],
            'stitch_choices': ['Choice', 'Choices'],
            'waiting_queue': ['Request'],
        },
    )

__all__ = [
    'Choice',
    'Choices',
    'Controller',
    'ControllerState',
    'Decision',
    'Outcome',
    'Request',
    'World',
    'admit',
    'best_fixed',
    'decide',
    'draw_arrivals',
    'finish',
    'read_arrivals',
    'simulate',
]
