"""The store's state machines: pure, single-threaded, without I/O. The protocol is in ../README.md."""
