"""peftbench: parameter-efficient fine-tuning methods compared on GLUE, fairly and cheaply."""

__version__ = "0.1.0"
