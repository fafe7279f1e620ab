"""Training and evaluation from the command line; needs the extra ``sre-triton[train]``.

Its packages import in one direction::

    data <- tasks <- runs <- evaluation <- train, predict <- commands

``data`` reads, draws and augments images; ``tasks`` are classification and segmentation: network, loss and scores;
``runs`` trains a task in a folder and restores it, or a predictor, from there; ``evaluation`` turns images and
compares networks. ``schema``, ``options``, ``files`` and ``figures`` (all that is drawn, in one style) know none of
these and may be imported by all.
"""
