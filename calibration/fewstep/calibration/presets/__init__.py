"""Presets of a bundle as points of a measured curve: milliseconds of an image against the distance
to real images."""
