"""The frontier: adapters on the official SDKs, the chain that orders them, and the simulator.

Imports only `cost` (prices and the books) beside itself.
"""
