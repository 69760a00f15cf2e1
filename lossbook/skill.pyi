# written by tools/stubs.py
# mypy: disable-error-code="override"
from typing import Any
import lossbook as lb

__all__ = []
