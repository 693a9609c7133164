"""Faults on purpose: kills, damaged files, full disks, signals, two runs in one folder, a soak (docs/reliability.md).

Left out of the default tests; `make faults` runs them.
"""
