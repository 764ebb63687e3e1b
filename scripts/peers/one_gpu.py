"""Imported before torch by peers: one GPU at most, as a run of ours takes; the Trainer would share a batch over all."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
