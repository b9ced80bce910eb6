"""Distances of sets of image files of any size."""
