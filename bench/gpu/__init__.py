"""Correctness and speed on the GPU of this machine, in one command: ``python -m bench.gpu``.

Every kernel, dtype and tile is held against float64 first. Then the table, most telling rows first, until the time is
spent: what is timed is what was checked, and a wrong result gets no speed-up. Whatever faults, dies or hangs takes
only its own row along, because all that touches the GPU happens in processes that are replaced; each result is on disk
before the next is begun.

`cases` says what runs, `run` in which order, `workers` where; `checks`, `table`, `networks` and `sanitizer` are the
four kinds of work, `timing` and `truth` what they share; `record` keeps the results and `summary` prints them.
"""
