"""What torch does slowly on a CPU, as small loops that numba compiles once per machine.

Each module loads its kernel when it is imported, so it is imported where the kernel is first needed.
"""
