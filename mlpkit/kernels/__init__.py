"""Everything that Numba compiles: arrays and sizes in, arrays out; no objects and no exceptions inside."""
