"""One revision's side of ``bench.revisions``: a process that times networks of whichever sre_triton it imports.

It knows nothing else of this checkout, so that it runs with the modules of older ones. Answers, a line of JSON each:
first the package's place and version, then for each ``[network, mode, layout]`` that is read the seconds of one call.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import cache

import torch
from torch import nn

import sre_triton
from sre_triton.models import get_model

_LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


@cache
def _call(name: str, mode: str, layout: str, batch: int, size: int) -> Callable[[], object]:
    torch.manual_seed(0)
    options = {"sre_conv_size": [9, 9, 5, 5]} if name.startswith("sre_") else {}
    network = get_model(name, num_classes=9, skip_first_maxpool=True, **options)
    network = network.to(memory_format=_LAYOUTS[layout]).train(mode == "train")  # type: ignore[call-overload]
    x = torch.randn(batch, 3, size, size).contiguous(memory_format=_LAYOUTS[layout])
    if mode == "fused":
        network = network.fuse()

        def infer() -> None:
            with torch.inference_mode():
                network(x)

        return infer
    target = torch.arange(batch) % 9

    def step() -> None:
        network.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(network(x), target).backward()

    return step


def main(threads: int, batch: int, size: int) -> None:
    torch.set_num_threads(threads)
    # On one thread what other programs take is not counted.
    clock = time.process_time if threads == 1 else time.perf_counter
    print(json.dumps([sre_triton.__file__, sre_triton.__version__]), flush=True)
    for line in sys.stdin:
        name, mode, layout = json.loads(line)
        call = _call(name, mode, layout, batch, size)
        start = clock()
        call()
        print(json.dumps(clock() - start), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
