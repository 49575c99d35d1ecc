"""From annotation files to neutral records: what users import, without the rooms' inner order."""

from videollm.data.annotations import AnnotationError, parse_record
from videollm.data.check import Report, validate
from videollm.data.load import draw_rejected, load_records, read_annotations
from videollm.data.record import Record, neutral_json

__all__ = [
    "AnnotationError", "Record", "Report", "draw_rejected", "load_records", "neutral_json", "parse_record",
    "read_annotations", "validate",
]  # fmt: skip
