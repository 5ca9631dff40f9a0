"""The demo, its sample warehouse, and a real Postgres and Valkey from wheels.

`make demo`, the tests, the notebook and the benchmarks use it; the service never does, and the
wheel does not carry it.
"""
