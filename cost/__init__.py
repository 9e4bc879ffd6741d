"""What things cost: prices, the ledger, the crossover model and its report.

Imports nothing of the other packages, and starts without torch, transformers or Litestar.
"""
