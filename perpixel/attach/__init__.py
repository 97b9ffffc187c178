"""Where models meet losses: `attach` adds terms to an existing training loop in one line."""

from perpixel.attach.criterion import Feedback, attach

__all__ = ["Feedback", "attach"]
