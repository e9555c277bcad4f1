"""Data sets: descriptions, annotation readers, media lookup, integrity checks and k-shot supports.

Entry points: :func:`avfewshot.data.load.load_dataset`, :func:`avfewshot.data.folder.load_folder`,
:func:`avfewshot.data.sampler.draw_support` and :func:`avfewshot.data.check.check_dataset`.
"""
