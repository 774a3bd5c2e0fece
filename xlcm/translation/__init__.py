"""Captions in further languages by machine translation, and how good they are."""
