"""What is learned: classification and segmentation."""
