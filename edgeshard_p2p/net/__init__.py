"""Sockets: ZeroMQ and multicast DNS.  Makes no decisions, imports no torch."""
