"""Training and evaluation of rotation-equivariant networks: what ``sre-triton train`` and its kin run.

Needs the extra ``sre-triton[train]``. Arrows go one way: options and files know nothing of networks; data
(:mod:`.medmnist`, :mod:`.patches`, :mod:`.vessels`, :mod:`.drive`) know nothing of training; tasks join a network,
a loss and metrics; runs own the folder that a training writes; the rotation test, comparison and pictures read it.
"""
