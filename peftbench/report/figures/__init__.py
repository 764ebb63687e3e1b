"""A study's figures: what each shows, one function per figure, drawn to files and on the page from the same numbers."""
