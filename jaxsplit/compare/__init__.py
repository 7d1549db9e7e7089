"""A grid of runs that differ in method, division, seed and chosen fields: `jaxsplit compare`."""
