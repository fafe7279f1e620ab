"""What a ring convolution is, in numbers alone: rings, arguments, windows and schedules. Nothing here imports torch."""
