"""What a trained network is worth when the image turns."""
