# written by tools/stubs.py
# mypy: disable-error-code="override"
from typing import Any
import functools, inspect, re, torch
from html import escape
from torch.nn.functional import one_hot
from typing import NamedTuple
from ._modidx import d as modidx
from .check import check_task, loss_classes, task_of
from .core import BinaryLoss, ClassLoss, load
from .plot import loss_curve
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
    formula: str
    bounded: bool | None
    lipschitz: float | None
    convex: bool | None
    symmetric: bool | None
    proper: bool | None
    margin: bool | None
measured: tuple
def entry(cls) -> Entry: ...
def walk(loss) -> tuple | None: ...
def sketch(cls) -> str: ...
usual: list
def explained(cls) -> dict: ...
def said(v): ...
class Catalog(list):
    def to_frame(self): ...
    def _repr_markdown_(self): ...
    def _repr_html_(self): ...
def html_row(o) -> str: ...
def catalog(**want): ...
