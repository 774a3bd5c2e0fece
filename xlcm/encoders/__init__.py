"""Towers: image and text encoders, their tokenizers, poolings and heads."""
