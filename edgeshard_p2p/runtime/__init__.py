"""The thin shell around the core: one event loop, one compute thread, one planner process."""
