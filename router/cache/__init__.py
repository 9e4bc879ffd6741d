"""The response cache: identity and entries (`keys`, `entry`), the Redis client (`client`), the private server
(`embedded`), and what `crossover cache` shows (`inspect`). The only place that imports redis."""
