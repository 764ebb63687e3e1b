"""One model over the classes of several tasks that come one after the other: class-incremental learning."""
