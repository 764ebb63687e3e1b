"""Views of records. Nothing here imports torch."""
