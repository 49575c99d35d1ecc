"""D2VLM: evidence tokens. Importing the package registers its temporal head as ``d2vlm``."""

from d2vlm.evidence import EvidenceHead

__all__ = ["EvidenceHead"]
