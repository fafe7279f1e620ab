"""Figures: their one style (:mod:`.style`), and what is drawn in it. They know numbers and names, no tasks, no runs."""

from sre_triton.training.figures.confusion import confusion_matrix_figure
from sre_triton.training.figures.kernels import draw_kernels, draw_profiles
from sre_triton.training.figures.rotation import draw_angle_curves
from sre_triton.training.figures.style import caption_line, drawing
from sre_triton.training.figures.training import draw_curves, draw_images, draw_learning_curves

__all__ = [
    "caption_line",
    "confusion_matrix_figure",
    "draw_angle_curves",
    "draw_curves",
    "draw_images",
    "draw_kernels",
    "draw_learning_curves",
    "draw_profiles",
    "drawing",
]
