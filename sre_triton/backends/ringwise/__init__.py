"""The ring-wise backend: ring sums, then one small product, in PyTorch operations alone."""

from sre_triton.backends.ringwise.passes import backward, forward, refusal, transpose, weight_grad

__all__ = ["backward", "forward", "refusal", "transpose", "weight_grad"]
