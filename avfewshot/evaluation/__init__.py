"""Evaluation: predictions and targets in, figures with intervals out; NumPy only, no model and no training.

Entry points: :func:`avfewshot.evaluation.evaluate.evaluate` (one system),
:func:`avfewshot.evaluation.evaluate.evaluate_systems` (several on the same clips),
:func:`avfewshot.evaluation.evaluate.average_comparisons` (over runs with different seeds) and
:func:`avfewshot.evaluation.targets.fit_background` (what counts as background in a second).
docs/metrics.md defines every figure.
"""
