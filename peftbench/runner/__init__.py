"""One cell, end to end: from a configuration to a record, and what is done with a finished run."""
