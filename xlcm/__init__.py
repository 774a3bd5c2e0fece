"""Find images and videos from text in any language."""
