"""From ordinary networks to ring networks and back."""
