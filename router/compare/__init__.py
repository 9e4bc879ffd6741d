"""`crossover compare`: who is asked (`askers`), which texts (`rows`, `attacks`), what the replies say (`figures`)."""
