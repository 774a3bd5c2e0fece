"""Scenes, the built-in benchmark: pictures drawn on the fly, captions in seven languages."""
