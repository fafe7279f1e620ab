"""Ring convolutions."""
