"""The response cache, the only place that imports redis.

What is kept: identity and entries (`keys`, `entry`), the answers a process remembers (`memory`), the generation that a
purge replaces (`generations`) and who has seen it (`replica`). How Redis is asked: `client`, which may wait but briefly
(`waiting`), stops asking what fails (`breaker`), writes in the background (`writer`) and lets one process buy what
several want (`herd`). Beside it: the private server (`embedded`) and what `crossover cache` shows (`inspect`)."""
