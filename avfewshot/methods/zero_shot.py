"""Zero-shot: what the text branches say, as the project's own fusion has it; learns nothing."""

from __future__ import annotations

from avfewshot.methods.base import Floats
from avfewshot.methods.method import Method
from avfewshot.methods.rows import Head, Rows


class ZeroShot(Method):
    """The zero-shot prediction behind the protocol of the few-shot methods."""

    name = "zero_shot"

    def fit_head(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """Nothing is fitted: a clip's own label changes nothing, so the left-out prediction is the prediction."""
        return Head({"targets": targets[:0]}, loo=rows.text["fused"])

    def score_head(self, head: Head, rows: Rows) -> Floats:
        """See :meth:`Method.score_head`."""
        return rows.text["fused"]
