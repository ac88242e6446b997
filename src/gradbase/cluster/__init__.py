"""Engines that run the store's state machines: processes on one host, Ray, and the simulator."""
