"""What people look at: figures and pages drawn from stores and their statistics."""

from .page import report

__all__ = ["report"]
