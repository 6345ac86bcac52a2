"""Controlled comparisons of selection methods, and what they found."""
