"""Evidence on real images: which network sees what, turned and upright, under a protocol that is written down first.

``python -m bench.evidence run TABLE --data DIR`` makes the results of one table, each in a JSON file of its own under
``bench/results/evidence/TABLE/``, and goes on where it stopped; ``python -m bench.evidence tables`` makes the page with
all tables and figures from these files alone. The data are not part of the project: each table says which set it
wants, and how it has to lie in DIR.

Every table is made alike (:mod:`.protocol`):

1. *Rates.* Each network is trained with each of its learning rates for the same few steps with a seed of its own; the
   rate with the best validation score is taken. Every network has as many rates to try.
2. *Results.* Each network is trained with each seed and tested: its threshold, where there is one, and its best epoch
   come from validation. All networks with one seed come first, then all with the next. ``--networks`` and ``--seeds``
   make some of them.
3. *Costs.* Parameters, arithmetic, time and memory, measured together and in turn; ``costs TABLE`` measures them anew,
   for a quiet machine. Rows of equal time have as many steps as these figures say.

A table is one module here that makes a :class:`.protocol.Table`, and a line in :mod:`.registry`.
"""
