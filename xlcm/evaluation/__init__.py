"""Ranks, metrics with intervals, reports and plots; knows only embeddings."""
