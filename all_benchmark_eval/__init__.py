"""Benchmarks: one folder each with a ``task.py``, and beside them what several share.

Nothing here knows which model or head wrote an answer.
"""
