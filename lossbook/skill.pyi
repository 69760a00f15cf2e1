# written by tools/stubs.py
# mypy: disable-error-code="override"
from typing import Any
from .catalog import catalog
from .check import check_loss
from .core import check_batch
from .properties import properties

__all__ = []
