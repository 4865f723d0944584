"""The pure core: decides, never does.  No clock, socket, file, thread, log or torch in here."""
