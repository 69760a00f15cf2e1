# written by tools/stubs.py
# mypy: disable-error-code="override"
from typing import Any
import functools, re, torch
from typing import NamedTuple
from ._modidx import d as modidx
from .check import check_task, loss_classes, task_of
from .core import BinaryLoss, ClassLoss, load
from .properties import properties

__all__ = ['catalog']
def page_of(cls) -> str: ...
def source_of(cls) -> str: ...
def targets_of(loss) -> str: ...
class Entry(NamedTuple):
    name: str
    chapter: str
    page: str
    task: str
    targets: str
    parameters: str
    source: str
    bounded: bool | None
    lipschitz: float | None
    convex: bool | None
    symmetric: bool | None
    proper: bool | None
    margin: bool | None
measured: tuple
def entry(cls) -> Entry: ...
class Catalog(list):
    def to_frame(self): ...
    def _repr_markdown_(self): ...
def catalog(**want): ...
