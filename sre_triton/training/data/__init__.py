"""Images: readers, sets, augmentation and loading. Imports no other package of the training."""
