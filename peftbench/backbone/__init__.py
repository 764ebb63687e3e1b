"""Models: built, loaded, with every parameter's place known."""
