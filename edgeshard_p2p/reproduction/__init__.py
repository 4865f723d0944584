"""EdgeShard's comparison of algorithms (arXiv 2405.14371), scaled down to emulated devices: which
devices and links, what is measured, and the report of it.  Pure; `scripts/reproduce` runs it."""
