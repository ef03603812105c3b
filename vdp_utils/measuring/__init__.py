"""Samples under conditions -> stored rows, answers and times, with and without pruning."""

from vdp_utils.measuring.store import ResultStore

__all__ = ["ResultStore"]
