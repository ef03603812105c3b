"""Samples under conditions -> stored rows, answers and times, with and without pruning."""
