"""Sockets: the interface (`base`), ZeroMQ (`zeromq`), its in-memory twin (`memory`), keys (`auth`)."""
