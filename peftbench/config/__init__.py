"""What a cell is made of, and how Hydra's words become one."""
