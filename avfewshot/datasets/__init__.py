"""Data sets: descriptions, annotation readers, media lookup, integrity checks and k-shot supports.

Entry points: :func:`avfewshot.datasets.load.load_dataset`, :func:`avfewshot.datasets.folder.load_folder`,
:func:`avfewshot.datasets.sampler.draw_support` and :func:`avfewshot.datasets.check.check_dataset`.
"""
