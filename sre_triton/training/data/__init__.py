"""Images: readers, sets, augmentation and loading."""
